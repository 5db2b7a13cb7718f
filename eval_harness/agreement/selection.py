"""Which of several is best, without judging the choice by the items that it was made on.

The highest of several means is high partly by luck: on the same items it flatters the one that is chosen, and tests of
the others against it find differences where there are none (with 13 equal settings, in most studies). So items are
split: one half chooses, the other half judges.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ledpo_plugin.common.stats import LEVEL, holm, paired_difference

LEAST = 30  # items that must judge a choice before it is recommended
SPLIT_SEED = 20240305  # of the halves: fixed, so that nobody can look for a split that suits


def halves(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of `n` items in two random halves, the same for the same `n`: to choose by, to judge by.

    Of an odd number the half that judges has one more.
    """
    order = np.random.default_rng(SPLIT_SEED).permutation(n)
    return np.sort(order[: n // 2]), np.sort(order[n // 2 :])


def choose(columns: Mapping[str, np.ndarray]) -> dict[str, Any] | None:
    """Return the best of several on one half of the items, and tests of the others against it on the other half.

    Args:
        columns: name -> value of each item [N], more is better, nan where there is none.

    Returns:
        None where fewer than two have a value; else `chosen_on` and `n`, the numbers of items that chose and judge;
        `best`, None with a `reason` where fewer than `LEAST` judge; `value`, its mean over the items that judge; and
        `tests`, one a name: `difference` of the best minus it, its interval, and the two-sided p of a paired t-test,
        not corrected yet (see `judge`).
    """
    known = {name: np.asarray(column, dtype=float) for name, column in columns.items()}
    known = {name: column for name, column in known.items() if np.isfinite(column).any()}
    if len(known) < 2:
        return None
    # Where one alone has a value there is nothing to choose: a baseline's win rate against itself is known everywhere.
    places = np.flatnonzero(np.sum([np.isfinite(column) for column in known.values()], axis=0) > 1)
    choosing, judging = (places[half] for half in halves(len(places)))
    means = {name: column[choosing][np.isfinite(column[choosing])] for name, column in known.items()}
    means = {name: float(values.mean()) for name, values in means.items() if len(values)}
    row: dict[str, Any] = {"chosen_on": len(choosing), "n": len(judging), "best": None, "value": None, "tests": []}
    row["reason"] = f"{len(judging)} prompts are left to judge a choice by, and {LEAST} are the least"
    if len(judging) < LEAST or len(means) < 2:
        return row
    best = max(means, key=means.get)
    ours = _of_items(known[best], judging)
    row |= {"n": len(ours), "best": best, "reason": None, "value": float(np.mean(list(ours.values())))}
    for name, column in known.items():
        if name != best:
            found = paired_difference(ours, _of_items(column, judging))
            p = found.p
            if p is None and found.mean:  # the same difference with every item: a sign test
                p = 2.0 ** (1 - found.n)
            if found.n < LEAST:  # too few items have both
                p = None
            row["tests"].append(
                {"name": name, "n": found.n, "difference": found.mean, "low": found.low, "high": found.high, "p": p}
            )
    return row


def judge(rows: Sequence[dict[str, Any]]) -> None:
    """Correct the tests of all rows together (Holm 1979), and say of each row what is shown.

    Adds `p_holm` to every test, and to every row `worse`, the names that are shown to be worse than its best, and
    `not_worse`, the others. Where nothing differs, in at most 5 % of all studies any name in any row is in `worse`.

    Args:
        rows: of `choose`, everything that is claimed side by side; changed in place.
    """
    tests = [test for row in rows for test in row["tests"]]
    for test, p in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = p
    for row in rows:
        shown = [t["name"] for t in row["tests"] if t["p_holm"] is not None and t["p_holm"] < 1 - LEVEL]
        worse = {t["name"] for t in row["tests"] if t["name"] in shown and t["difference"] > 0}
        row["worse"] = [t["name"] for t in row["tests"] if t["name"] in worse]
        row["not_worse"] = [t["name"] for t in row["tests"] if t["name"] not in worse]


def _of_items(column: np.ndarray, places: Sequence[int]) -> dict[int, float]:
    return {int(place): float(column[place]) for place in places if np.isfinite(column[place])}
