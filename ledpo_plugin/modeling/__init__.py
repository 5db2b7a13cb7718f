"""Passes of a model, and what is taken from them: log-probabilities, hidden states, answers."""
