"""Templates of programming tasks: those to train on, and those that are held out whole."""

from . import collections, held_out, number_lists, single_numbers, strings
from .template import Template, Values

TEMPLATES = (*number_lists.TEMPLATES, *collections.TEMPLATES, *strings.TEMPLATES, *single_numbers.TEMPLATES)
HELD_OUT_TEMPLATES = held_out.TEMPLATES

__all__ = ["HELD_OUT_TEMPLATES", "TEMPLATES", "Template", "Values"]
