"""Recipes checked and completed, without loading a model."""
