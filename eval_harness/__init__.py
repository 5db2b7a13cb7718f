"""Evaluation of trained models: objective tasks, judges, people, and how far they agree."""
