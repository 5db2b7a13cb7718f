"""Experiments run: from a plan to finished runs, here or on a cluster."""
