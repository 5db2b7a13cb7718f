"""What several methods have in common, and what each loses by it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .verdicts import ScoreTable


@dataclass(frozen=True)
class Lost:
    """What a method had that the alignment could not use."""

    method: str
    items: int  # that the method has
    kept: int
    incomplete: int  # without a score of every common model
    elsewhere: int  # complete here, and missing or incomplete with another method
    models: tuple[str, ...] = ()  # that not every method has
    reasons: Mapping[str, int] = field(default_factory=dict)  # of its missing cells


@dataclass(frozen=True)
class Aligned:
    """Methods on the items and models that they all have; `values[method]` is [items, models], more is better."""

    items: tuple[str, ...]
    models: tuple[str, ...]
    values: Mapping[str, np.ndarray]
    lost: tuple[Lost, ...]


def align(tables: Sequence[ScoreTable], models: Sequence[str] | None = None) -> Aligned:
    """Return score tables on their common models and the items that are complete in all, and what is lost.

    Args:
        tables: one per method.
        models: those that are compared; left out: those that every method has.

    Raises:
        ValueError: no table, or two of the same method, or a model that a method does not have.
    """
    names = [table.method for table in tables]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"Methods to align are {names}; give one table or more, each of another method.")
    absent = [f"{model!r} with {t.method!r}" for model in models or () for t in tables if model not in t.models]
    if absent:
        raise ValueError(f"There are no scores of {', '.join(absent)}; leave these models out, or score them first.")
    common = tuple(m for m in tables[0].models if all(m in t.models for t in tables)) if models is None else models
    common = tuple(common)
    complete = [set(table.complete_items(common)) if common else set() for table in tables]
    shared = set.intersection(*complete)
    items = tuple(item for item in tables[0].items if item in shared)
    lost = tuple(
        Lost(
            table.method,
            len(table.items),
            len(items),
            len(table.items) - len(own),
            len(own) - len(items),
            tuple(model for model in table.models if model not in common),
            counted(table.missing.values()),
        )
        for table, own in zip(tables, complete, strict=True)
    )
    return Aligned(items, common, {table.method: table.better(items, common) for table in tables}, lost)


def counted(reasons: Iterable[str]) -> dict[str, int]:
    """Return how often each reason occurs, the most frequent first."""
    counts: dict[str, int] = {}
    for reason in reasons:
        counts[reason] = counts.get(reason, 0) + 1
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))
