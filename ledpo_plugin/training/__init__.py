"""Preference training: the trainers, their batches, beta's own optimizer, and what a run uses and logs."""
