"""The results folder: what it is of, the state of each run, and what lies in it."""
