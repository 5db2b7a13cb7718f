"""What a study keeps of each item: verdicts, scores and ratings under hashed ids, never a prompt or an answer.

Whoever has results.json can work out every interval, kappa and win rate again. The order of items, verdicts and units
is that in which the bootstrap draws them.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from eval_harness.agreement.agreement import Ratings
from eval_harness.agreement.comparing import DRAWS
from eval_harness.agreement.verdicts import TIE, ScoreTable, Verdict
from ledpo_plugin.common.stats import CHUNK, LEVEL, RESAMPLES
from ledpo_plugin.experiments.report.per_item import rounded

from .parts import digest

TIED = 0  # how a tie is kept; a missing verdict is None
LENGTH_DRAWS = 200  # of the figures on length: a model is fitted in each
HOW = {
    "level": LEVEL,
    "seed": 0,
    "means": f"numpy.random.default_rng(seed).integers(0, n, ({RESAMPLES}, n)), of one value an item in the order of "
    f"its first verdict or score; more than {CHUNK:,} numbers are drawn in parts of {CHUNK:,} // n rows",
    "other statistics": "as many times integers(0, n, n) of one numpy.random.default_rng(seed) as `draws` says; of "
    "ratings in the order in which they are kept; draws in which a statistic is not defined are left out",
    "draws": {"kappas": DRAWS, "alphas": DRAWS, "correlations": DRAWS, "length": LENGTH_DRAWS},
    "quantiles": "interpolated linearly",
}


def item(prompt: str) -> str:
    """Return what a prompt is called: 16 hex digits, of its text without space around it."""
    return digest(prompt.strip())


def verdicts(given: Sequence[Verdict]) -> dict[str, Any]:
    """Return verdicts as rows: places in `items` and `models` (first, second), preference, repeat, strength, same.

    The preference is 1, 2, 0 for a tie, or None where there is none; the strength None where it was not given; the last
    whether both answers are the same text, None where that is not known.
    """
    items = list(dict.fromkeys(verdict.item for verdict in given))
    models = sorted({model for verdict in given for model in (verdict.model_1, verdict.model_2)})
    places, names = ({name: place for place, name in enumerate(own)} for own in (items, models))
    rows = [
        [
            places[verdict.item],
            names[verdict.model_1],
            names[verdict.model_2],
            TIED if verdict.preference == TIE else verdict.preference,
            verdict.repeat,
            verdict.strength,
            verdict.same_text,
        ]
        for verdict in given
    ]
    return {"items": [item(name) for name in items], "models": models, "rows": rows}


def read_verdicts(kept: Mapping[str, Any], method: str) -> list[Verdict]:
    """Return what `verdicts` made of them as verdicts again; items are their ids.

    Older rows end with the strength: whether texts are the same is not known of them.
    """
    found = []
    for place, first, second, preference, repeat, strength, *same in kept["rows"]:
        given = TIE if preference == TIED and preference is not None else preference
        reason = "not parsed" if preference is None else None
        names = kept["models"][first], kept["models"][second]
        found.append(Verdict(kept["items"][place], method, *names, given, reason, repeat, strength, *same))
    return found


def scores(table: ScoreTable) -> dict[str, Any]:
    """Return a table's scores: `items` and per model a value an item, None where there is none."""
    items = list(table.scores)
    values = {
        model: [None if (v := table.scores[name].get(model)) is None else rounded([v])[0] for name in items]
        for model in table.models
    }
    return {"items": [item(name) for name in items], "values": values}


def ratings(given: Mapping[str, Ratings]) -> dict[str, Any]:
    """Return raters' categories of units: `items` in the order in which units are drawn, None where not rated."""
    units = sorted({unit for own in given.values() for unit in own})
    return {
        "items": [item(unit[0]) for unit in units],
        "ratings": {name: [own.get(unit) for unit in units] for name, own in given.items()},
    }


def columns(values: Mapping[str, Iterable[float]]) -> dict[str, list[float | None]]:
    """Return values of prompts [N], None for nan; a column without a single value is left out."""
    found = {name: rounded(np.asarray(list(column), dtype=float)) for name, column in values.items()}
    return {name: own for name, own in found.items() if any(v is not None and math.isfinite(v) for v in own)}
