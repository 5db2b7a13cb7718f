"""Evaluation of trained models: tasks, win rates, people, and how far these agree."""
