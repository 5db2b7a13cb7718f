"""`make quickstart`: a real model and real preference pairs, and what training on them did, on a CPU."""

from .prepare import Prepared, prepare
from .show import show

__all__ = ["Prepared", "prepare", "show"]
