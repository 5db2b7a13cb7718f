"""Contrasts: what two variants' runs say of each other in a metric, and how large a difference they could have shown.

A contrast's verdict follows from its own runs alone. Its test is a family of its own: what else stands in a report does
not enter it, so that the same runs get the same verdict wherever they stand. Pure.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ledpo_plugin.common.stats import (
    LEVEL,
    POWER,
    Difference,
    Estimate,
    bootstrap_difference,
    detectable_by_interval,
    detectable_difference,
    equivalence,
    holm,
    paired_difference,
    plain,
)
from ledpo_plugin.experiments.results.collected import number

from .formatting import verdict, verdict_words
from .per_item import BOOTSTRAP_SEED, item_differences


def contrasts(
    runs: Sequence[Mapping[str, Any]],
    named: Sequence[Mapping[str, str]],
    metrics: Sequence[str],
    *,
    per_item: Mapping[str, Any] | None,
    margins: Mapping[str, float],
    before: Sequence[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Return a row of every contrast in every metric; of the first one, which answers the question, with a verdict.

    Args:
        runs: `variant`, `seed`, `phase` and `final` (metric -> value) of each.
        named: `variant`, `label`, `against` and `against_label` of each contrast.
        metrics: the primary one first.
        per_item: see `per_item.per_item`; None where it was not kept.
        margins: metric -> margin of equivalence that was declared beforehand.
        before: rows of results without per-item values, whose intervals over items are taken over.
    """
    rows: list[dict[str, Any]] = []
    for metric in metrics:
        of_metric = [_contrast(runs, one, metric, margins.get(metric)) for one in named]
        if metric == metrics[0]:
            corrected = holm([row["difference"].p for row in of_metric])
            for row, p in zip(of_metric, corrected, strict=True):
                row["p_holm"] = p
                row["items"] = _over_items(per_item, row) if per_item else _kept(before, row)
                _judge(row, per_item)
        rows += of_metric
    return rows


def _contrast(
    runs: Sequence[Mapping[str, Any]], named: Mapping[str, str], metric: str, margin: float | None
) -> dict[str, Any]:
    ours, theirs = (
        {run["seed"]: number((run["final"] or {}).get(metric)) for run in runs
         if run["variant"] == name and run["phase"] == "finished"}
        for name in (named["variant"], named["against"])
    )  # fmt: skip
    found = paired_difference(ours, theirs)
    row: dict[str, Any] = {"metric": metric, **named, "difference": found, "detectable": _detectable(found, None)}
    if margin is not None:
        tested = equivalence(found, margin)
        row["equivalence"] = {**vars(tested), "shown": tested.p is not None and tested.p < 1 - LEVEL}
    return row


def _judge(row: dict[str, Any], per_item: Mapping[str, Any] | None) -> None:
    """Add what the interval over items makes of it: what could be detected, equivalence, the verdict in words."""
    items = row["items"]
    row["detectable"] = _detectable(row["difference"], items)
    if "equivalence" in row:
        tested = row["equivalence"]
        # Two one-sided tests at 5 % are the interval of 90 %.
        narrow = _over_items(per_item, row, level=2 * LEVEL - 1) if per_item else None
        tested["items"] = narrow
        if narrow is not None and narrow.low is not None:
            tested["shown"] &= -tested["margin"] < narrow.low and narrow.high < tested["margin"]
    facts = plain(row)
    row["verdict"] = verdict(facts)
    row["words"] = verdict_words({**facts, "verdict": row["verdict"]})


def _detectable(found: Difference, items: Estimate | None) -> dict[str, Any]:
    """Return the least true difference that would probably be shown: over seeds, over items, and by both together.

    By both is the larger of the two, as both must show it: under it, one experiment in five or more misses it.
    """
    seeds = detectable_difference(found.sd, found.n)
    over = None if items is None else detectable_by_interval(items.low, items.high)
    both = None if seeds is None else max(seeds, over or 0.0)
    return {"power": POWER, "seeds": seeds, "items": over, "value": both}


def _over_items(per_item: Mapping[str, Any], row: Mapping[str, Any], level: float = LEVEL) -> Estimate | None:
    differences = [
        item_differences(per_item, (row["variant"], seed), (row["against"], seed), row["metric"])
        for seed in row["difference"].seeds
    ]
    if not differences or None in differences or len({len(each) for each, _ in differences}) > 1:
        return None
    stacked = np.stack([each for each, _ in differences])
    return bootstrap_difference(stacked, differences[0][1], seed=BOOTSTRAP_SEED, level=level)


def _kept(before: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> Estimate | None:
    same = ("metric", "variant", "against")
    items = next((old.get("items") for old in before if all(old[key] == row[key] for key in same)), None)
    return None if items is None else Estimate(**items)
