"""Data sets and base models of the cpu profiles, made without a network but for two files from PyPI."""

from .prepare import Offline, prepare_offline

__all__ = ["Offline", "prepare_offline"]
