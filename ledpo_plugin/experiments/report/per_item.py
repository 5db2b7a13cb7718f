"""What each held-out item said of each run, as `results.json` keeps it: numbers and hashed ids, never a text.

Whoever has the file can work out every interval over items again. The report itself is made from these numbers.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ledpo_plugin.common.stats import CHUNK, LEVEL, RESAMPLES, to_digits
from ledpo_plugin.experiments.definition.metrics import SCORERS
from ledpo_plugin.experiments.measuring.columns import OF_EACH_PAIR, won
from ledpo_plugin.experiments.results.collected import Base, Collected, Run

BOOTSTRAP_SEED = 20240229
DIGITS = 9  # significant ones that are kept of a value
LOST = (
    "This report was made from results without per-item values (by an earlier version): its intervals over held-out "
    "items stand as they were worked out then, and cannot be worked out again from results.json."
)

# Kind of data -> metric -> its value for each item [N], from the columns [N] of a measurement.
_OF_EACH: Mapping[str, Mapping[str, Callable[[Mapping[str, np.ndarray]], np.ndarray]]] = {
    "pairs": {**OF_EACH_PAIR, "beta": lambda columns: columns["beta"]},
    "instructions": {
        "nll": lambda columns: columns["nll"] / columns["length"],
        "length": lambda columns: columns["length"],
    },
    "scores": {
        "score": lambda columns: columns["score"],
        "win_rate": lambda columns: won(columns["score"] - columns["start"]),
    },
}


def per_item(found: Collected) -> dict[str, Any]:
    """Return the values of every finished run's items, and what the intervals over them were drawn by.

    Returns:
        `runs`: of each `variant`, `seed` and `values`, DATASET/metric -> a number an item, in the order of `items`;
        `bases`: the same of the models before training; `items`: DATASET -> ids (None where they were not kept);
        `weights`: metric -> the values that are its items' weights in a mean; `bootstrap`: how draws are made. A run
        whose items are others than those of the first one has `items` of its own.
    """
    items: dict[str, list[str] | None] = {}
    runs = []
    for run in (run for variant in found.variants for run in found.finished(variant)):
        base = found.bases.get(str(run.result.get("base")))
        own, values = _of(found, run, base)
        row: dict[str, Any] = {"variant": run.variant, "seed": run.seed, "values": values}
        other = {name: ids for name, ids in own.items() if items.setdefault(name, ids) != ids}
        runs.append(row | ({"items": other} if other else {}))
    bases = {}
    for base in found.bases.values():
        own, values = _of(found, base, base)
        bases[base.name] = values
        for name, ids in own.items():
            items.setdefault(name, ids)
    return {
        "items": items,
        "runs": runs,
        "bases": bases,
        "weights": {f"{name}/nll": f"{name}/length" for name in found.evaluation.get("instructions") or ()},
        "bootstrap": {
            "seed": BOOTSTRAP_SEED,
            "resamples": RESAMPLES,
            "level": LEVEL,
            "draws": "numpy.random.default_rng(seed).integers(0, n, (resamples, n)), of the mean over seeds; more than "
            f"{CHUNK:,} numbers are drawn in parts of {CHUNK:,} // n rows; quantiles are interpolated linearly",
        },
    }


def item_differences(
    kept: Mapping[str, Any], ours: tuple[str, int], theirs: tuple[str, int], metric: str
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return ours minus theirs per held-out item [N], and the items' weights in the mean [N].

    None for a metric that is no mean over items, or where the two did not measure the same items.

    Args:
        kept: of `per_item`.
        ours, theirs: variant and seed of two runs.
        metric: DATASET/metric.
    """
    rows = {(row["variant"], row["seed"]): row for row in kept["runs"]}
    pair = [rows.get(ours), rows.get(theirs)]
    if None in pair or any(metric not in row["values"] for row in pair):
        return None
    dataset = metric.rpartition("/")[0]
    ids = [row.get("items", {}).get(dataset, kept["items"].get(dataset)) for row in pair]
    first, second = (as_array(row["values"][metric]) for row in pair)
    if first.shape != second.shape or not first.size or ids[0] != ids[1]:
        return None
    weights = kept["weights"].get(metric)
    return first - second, as_array(pair[0]["values"][weights]) if weights else np.ones(len(first))


def as_array(values: Sequence[float | None]) -> np.ndarray:
    """Return values [N] as numbers; nan for None."""
    return np.asarray([math.nan if value is None else value for value in values], dtype=np.float64)


def rounded(values: Sequence[float]) -> list[float | None]:
    """Return values with as many significant digits as are kept; None for what is not finite."""
    return [to_digits(float(value), DIGITS) for value in values]


def _of(
    found: Collected, measured: Run | Base, base: Base | None
) -> tuple[dict[str, list[str] | None], dict[str, list[float | None]]]:
    """Return the ids of the items of everything that was measured, and their values."""
    ids: dict[str, list[str] | None] = {}
    values: dict[str, list[float | None]] = {}
    answers = found.evaluation.get("answers") or {}
    datasets = {
        "pairs": found.evaluation.get("pairs") or (),
        "instructions": found.evaluation.get("instructions") or (),
        "scores": [role for role in SCORERS if answers.get(role)],
    }
    for kind, names in datasets.items():
        for name in names:
            columns = measured.items(kind, name)
            if columns is None:
                continue
            start = base.items(kind, name) if kind == "scores" and base is not None else None
            if start is not None and start["score"].shape == columns["score"].shape:
                columns = {**columns, "start": start["score"]}
            ids[name] = measured.item_ids(kind, name)
            for short, score in _OF_EACH[kind].items():
                try:
                    values[f"{name}/{short}"] = rounded(score(columns))
                except KeyError:  # a column that was not measured, as beta where it is fixed
                    continue
    return ids, values
