"""The table of what is measured of generated texts: one row is a function, its unit and direction, and what it means.

A row here is measured of every experiment that generates answers, and stands in its reports and in docs/metrics.md.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from ledpo_plugin.common.lookup import by_name

from .diversity import distinct, repetition

# One answer: `output`, its text; `ids`, its token ids without what ended it; `ended`, whether it ended by itself.
Answer = Mapping[str, Any]


@dataclass(frozen=True)
class TextMetric:
    """One row of the table."""

    name: str
    of: Callable[[Sequence[Answer]], float | None]  # one or more answers -> the metric, None where it is undefined
    unit: str
    meaning: str  # "mean length of the generated answers (tokens)"
    better: int = 0  # whether more of it is better (1), worse (-1) or neither
    drawn_only: bool = False  # of answers that are drawn at temperature 1, not of greedy ones


def _mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of what is defined, None where nothing is."""
    found = [value for value in values if value is not None]
    return float(np.mean(found)) if found else None


TEXT_METRICS: Mapping[str, TextMetric] = MappingProxyType(
    by_name(
        TextMetric(
            "distinct1",
            lambda answers: distinct([row["ids"] for row in answers], 1),
            "share of tokens",
            "distinct tokens as a share of all tokens of the answers",
            drawn_only=True,
        ),
        TextMetric(
            "length",
            lambda answers: _mean(len(row["ids"]) for row in answers),
            "tokens",
            "mean length of the generated answers (tokens)",
        ),
        TextMetric(
            "ended",
            lambda answers: _mean(bool(row["ended"]) for row in answers),
            "share of answers",
            "share of generated answers that end by themselves",
        ),
        TextMetric(
            "distinct2",
            lambda answers: distinct([row["ids"] for row in answers], 2),
            "share of bigrams",
            "distinct bigrams as a share of all bigrams of the generated answers",
        ),
        TextMetric(
            "repetition",
            lambda answers: _mean(repetition(row["ids"], 4) for row in answers),
            "share of 4-grams",
            "mean share of 4-grams of a generated answer that occurred in it before",
        ),
    )
)


def text_metrics(answers: Sequence[Answer], drawn: bool = False) -> dict[str, float]:
    """Return the metrics of answers, by name; one that is undefined for them is left out, and all are where none is.

    Args:
        answers: of one model.
        drawn: whether they were drawn at temperature 1.
    """
    if not answers:
        return {}
    found = {name: row.of(answers) for name, row in TEXT_METRICS.items() if drawn or not row.drawn_only}
    return {name: float(value) for name, value in found.items() if value is not None and np.isfinite(value)}
