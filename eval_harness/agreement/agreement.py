"""Agreement beyond chance: percent, Cohen's kappa, Krippendorff's alpha; and a judge's agreement with itself.

Ratings are a mapping from a unit, a tuple whose first entry is the item, to a category: `comparisons.labels` gives
-1, 0 (tie) and 1 per comparison, `cells` the scores of a table. An item is drawn with all of its units.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from types import MappingProxyType

import numpy as np

from ledpo_plugin.common.lookup import lookup

from .comparisons import category, of_method
from .figures import DRAWS, Figure, Undefined, bootstrapped, of_ratio
from .verdicts import ScoreTable, Verdict

Unit = tuple[str, ...]
Ratings = Mapping[Unit, float]
# Disagreement of two categories by how many places they are apart.
WEIGHTS = MappingProxyType(
    {
        "none": lambda apart: (apart > 0).astype(float),
        "linear": lambda apart: apart,
        "quadratic": lambda apart: apart**2,
    }
)


@dataclass(frozen=True)
class PairAgreement:
    """Two methods on the units that both rated; n of the figures is the number of units."""

    first: str
    second: str
    only_first: int  # units that the other did not rate
    only_second: int
    percent: Figure  # share of equal ratings
    kappa: Figure
    weighted: Figure  # kappa with the weights that were asked for


def cells(table: ScoreTable) -> dict[Unit, float]:
    """Return the scores of a table as ratings: (item, model) -> value."""
    return {(item, model): value for item, row in table.scores.items() for model, value in row.items()}


def kappa(counts: np.ndarray, weights: str = "none") -> float | Undefined:
    """Return Cohen's kappa of a table of counts [C, C], first rater by second, categories in their order.

    1 - sum(w o) / sum(w e) with o the observed and e the expected counts, w = 0 on the diagonal: unweighted w = 1
    elsewhere (Cohen 1960), linear w = |i - j|, quadratic w = (i - j)^2 (Cohen 1968). Undefined without counts, and
    where both raters gave everything the same category.

    Raises:
        KeyError: the weights are unknown.
    """
    counts = np.asarray(counts, dtype=float)
    apart = np.abs(np.subtract.outer(np.arange(len(counts)), np.arange(len(counts)))).astype(float)
    weight = lookup(WEIGHTS, "weights of kappa", weights)(apart)
    total = counts.sum()
    if total == 0:
        return Undefined("no unit that both rated")
    expected = float((weight * np.outer(counts.sum(axis=1), counts.sum(axis=0))).sum()) / total
    if expected == 0:
        return Undefined("both gave every unit the same category")
    return 1 - float((weight * counts).sum()) / expected


def pair_agreement(
    first: tuple[str, Ratings],
    second: tuple[str, Ratings],
    *,
    weights: str = "linear",
    seed: int = 0,
    draws: int = DRAWS,
) -> PairAgreement:
    """Return how two methods agree on the units that both rated, a tie being a category of its own.

    Over comparisons of several pairs of models, -1 and 1 depend on the models' names, and with them the categories'
    frequencies and (little) kappa; for a figure without that, pass the comparisons of one pair.

    Args:
        first, second: name and ratings of each method.
        weights: of the weighted kappa, "linear" or "quadratic"; categories are in order of their values.
        seed, draws: of the intervals (bootstrap over items).

    Raises:
        KeyError: the weights are unknown.
    """
    (name, ours), (other, theirs) = first, second
    units = sorted(unit for unit in ours if unit in theirs)
    categories = {value: place for place, value in enumerate(sorted({*ours.values(), *theirs.values()}))}
    rows = _rows_by_item(units)
    counts = np.zeros((len(rows), len(categories), len(categories)))
    for index, own in enumerate(rows):
        for row in own:
            counts[index, categories[ours[units[row]]], categories[theirs[units[row]]]] += 1

    def of(weighting: str) -> Figure:
        found = bootstrapped(
            lambda drawn: kappa(counts[drawn].sum(axis=0), weighting), len(rows), seed=seed, draws=draws
        )
        return Figure(len(units), found.value, found.low, found.high, found.why)

    equal = [float(np.trace(table)) for table in counts]
    none = "no unit that both rated"
    return PairAgreement(
        name,
        other,
        len(ours) - len(units),
        len(theirs) - len(units),
        of_ratio(equal, [len(own) for own in rows], seed=seed) if units else Figure(0, None, why=none),
        of("none") if units else Figure(0, None, why=none),
        of(weights) if units else Figure(0, None, why=none),
    )


def alpha(ratings: Mapping[str, Ratings], level: str = "nominal", *, seed: int = 0, draws: int = DRAWS) -> Figure:
    """Return Krippendorff's alpha of two methods or more, each of which may have rated any part of the units.

    See `alpha_of_counts` for the formula. n is the number of units with two ratings or more, the others do not count.
    The interval is a bootstrap over items (as Zapf et al. 2016).

    Args:
        ratings: method -> its ratings.
        level: of measurement: "nominal", "ordinal" (-1, 0, 1 with the tie between) or "interval".
        seed, draws: of the interval.

    Raises:
        KeyError: the level is unknown.
    """
    lookup(DISTANCES, "level of measurement", level)
    given: dict[Unit, list[float]] = {}
    for own in ratings.values():
        for unit, value in own.items():
            given.setdefault(unit, []).append(value)
    units = sorted(unit for unit, values in given.items() if len(values) > 1)
    if not units:
        return Figure(0, None, why="no unit has two ratings")
    domain = sorted({value for unit in units for value in given[unit]})
    place = {value: index for index, value in enumerate(domain)}
    counts = np.zeros((len(units), len(domain)))
    for row, unit in enumerate(units):
        for value in given[unit]:
            counts[row, place[value]] += 1
    rows = _rows_by_item(units)

    def statistic(drawn: np.ndarray) -> float | Undefined:
        return alpha_of_counts(counts[np.concatenate([rows[index] for index in drawn])], domain, level)

    found = bootstrapped(statistic, len(rows), seed=seed, draws=draws)
    return Figure(len(units), found.value, found.low, found.high, found.why)


def alpha_of_counts(counts: np.ndarray, values: Sequence[float], level: str) -> float | Undefined:
    """Return Krippendorff's alpha of counts [units, V]: how many raters gave a unit each value.

    1 - (n - 1) sum(o d) / sum(n_c n_k d) with coincidences o_ck = sum over units of n_uc (n_uk - [c = k]) / (m_u - 1),
    their margins n_c, their total n, and squared distances d (Krippendorff 2011, "Computing Krippendorff's
    alpha-reliability", sections C and D). Written out here because the library krippendorff is under the GPL.

    Args:
        counts: of ratings; units with fewer than two do not count.
        values: [V], ascending.
        level: of measurement.

    Raises:
        KeyError: the level is unknown.
    """
    distance = lookup(DISTANCES, "level of measurement", level)
    counts = np.asarray(counts, dtype=float)
    counts = counts[counts.sum(axis=1) > 1]
    if not len(counts):
        return Undefined("no unit has two ratings")
    shares = counts / (counts.sum(axis=1, keepdims=True) - 1)
    coincidences = counts.T @ shares - np.diag(shares.sum(axis=0))
    margins = coincidences.sum(axis=1)
    if (margins > 0).sum() < 2:
        return Undefined("all ratings are the same")
    apart = distance(np.asarray(values, dtype=float), margins)
    expected = float((np.outer(margins, margins) * apart).sum()) / (margins.sum() - 1)
    return 1 - float((coincidences * apart).sum()) / expected


def _nominal(values: np.ndarray, margins: np.ndarray) -> np.ndarray:
    return 1 - np.eye(len(values))


def _interval(values: np.ndarray, margins: np.ndarray) -> np.ndarray:
    return np.subtract.outer(values, values) ** 2


def _ordinal(values: np.ndarray, margins: np.ndarray) -> np.ndarray:
    # The ratings between the middles of two values: the sum of n_g from c to k, less half of n_c and of n_k.
    middles = np.cumsum(margins) - margins / 2
    return np.subtract.outer(middles, middles) ** 2


# Squared distances [V, V] of values, from them and how often each was given.
DISTANCES = MappingProxyType({"nominal": _nominal, "ordinal": _ordinal, "interval": _interval})


def repeat_consistency(verdicts: Iterable[Verdict], method: str, *, seed: int = 0) -> Figure:
    """Return the share of equal answers when a method judges the same answers in the same order again.

    Every two repeats of a comparison are compared, and a comparison counts once; n is the number of comparisons with
    two parsed repeats or more. What the order of the answers does is in `pairwise.position_bias`.

    Raises:
        ValueError: the method has no verdict.
    """
    answers: dict[Unit, list[int]] = {}
    for verdict in of_method(verdicts, method):
        if verdict.preference is not None:
            answer = category(verdict.gain(verdict.model_1))
            answers.setdefault((verdict.item, verdict.model_1, verdict.model_2), []).append(answer)
    shares: dict[str, list[float]] = {}
    for (item, *_), given in answers.items():
        pairs = list(combinations(given, 2))
        if pairs:
            shares.setdefault(item, []).append(sum(a == b for a, b in pairs) / len(pairs))
    if not shares:
        return Figure(0, None, why="no comparison was judged twice in the same order")
    return of_ratio([sum(own) for own in shares.values()], [len(own) for own in shares.values()], seed=seed)


def _rows_by_item(units: Sequence[Unit]) -> list[np.ndarray]:
    rows: dict[str, list[int]] = {}
    for row, unit in enumerate(units):
        rows.setdefault(unit[0], []).append(row)
    return [np.asarray(own) for own in rows.values()]
