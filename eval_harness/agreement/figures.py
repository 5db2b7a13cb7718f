"""A reported number: value, interval, and a reason for whatever is not there; and the bootstrap that fills it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ledpo_plugin.common.stats import LEVEL, RESAMPLES, Estimate, bootstrap_difference

DRAWS = 2_000  # of statistics that are computed anew for every draw; means have RESAMPLES
UNDEFINED = 0.01  # share of draws in which a statistic may be undefined before its interval is given up


@dataclass(frozen=True)
class Figure:
    """A number over `n` units with its interval; what is None has its reason in `why`."""

    n: int
    value: float | None
    low: float | None = None
    high: float | None = None
    why: str | None = None

    def __post_init__(self) -> None:
        numbers = [number for number in (self.value, self.low, self.high) if number is not None]
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError(f"A figure has the number {numbers}. Give None and the reason in `why` instead.")
        if self.value is None and not self.why:
            raise ValueError("A figure without a value has no reason. Say in `why` why it is not defined.")


@dataclass(frozen=True)
class Undefined:
    """What a statistic returns in place of a number: the reason why there is none."""

    why: str


def of_estimate(found: Estimate) -> Figure:
    """Return an estimate of a report's statistics as a figure: its mean, interval and reason."""
    return Figure(found.n, found.mean, found.low, found.high, found.why)


def of_mean(values: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL) -> Figure:
    """Return the mean of one finite value per item with its percentile bootstrap interval over items."""
    return of_estimate(bootstrap_difference(np.asarray(values, float), seed=seed, resamples=resamples, level=level))


def of_ratio(
    totals: Sequence[float], counts: Sequence[int], *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> Figure:
    """Return sum(totals) / sum(counts) with its percentile cluster-bootstrap interval; n is sum(counts).

    Args:
        totals: [N], per item, the sum of its values.
        counts: [N], per item, how many values it has; every item has one at least.
        seed, resamples, level: of the interval; an item is drawn with all of its values.
    """
    weights = np.asarray(counts, float)
    found = bootstrap_difference(
        np.asarray(totals, float) / weights if len(weights) else np.zeros(0),
        weights if len(weights) else None,
        seed=seed, resamples=resamples, level=level,
    )  # fmt: skip
    return Figure(int(weights.sum()), found.mean, found.low, found.high, found.why)


def bootstrapped(
    statistic: Callable[[np.ndarray], float | Undefined],
    n: int,
    *,
    unit: str = "items",
    seed: int = 0,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> Figure:
    """Return a statistic over `n` units with its percentile bootstrap interval (Efron 1979).

    Args:
        statistic: from indices of units [n] (with repeats in a draw) to a number, or to why there is none.
        n: number of units that are drawn, with replacement.
        unit: what a unit is called in a reason.
        seed: of the draws.
        draws: number of draws; 0 for no interval.
        level: of the interval.

    Draws in which the statistic is undefined are left out up to 1 % of them; beyond that there is no interval,
    because what is left would be a biased selection.
    """

    def as_array(drawn: np.ndarray) -> np.ndarray | Undefined:
        found = statistic(drawn)
        return found if isinstance(found, Undefined) else np.asarray([found], dtype=float)

    return bootstrapped_all(as_array, n, 1, unit=unit, seed=seed, draws=draws, level=level)[0]


def bootstrapped_all(
    statistic: Callable[[np.ndarray], np.ndarray | Undefined],
    n: int,
    size: int,
    *,
    unit: str = "items",
    seed: int = 0,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> list[Figure]:
    """Return several numbers [size] that are computed together, each as `bootstrapped` does."""
    value = statistic(np.arange(n)) if n else Undefined(f"no {unit}")
    if isinstance(value, Undefined):
        return [Figure(n, None, why=value.why)] * size
    if draws == 0:
        return [Figure(n, float(number), why="no interval was asked for") for number in value]
    generator = np.random.default_rng(seed)
    found = [statistic(generator.integers(0, n, n)) for _ in range(draws)]
    defined = [numbers for numbers in found if not isinstance(numbers, Undefined)]
    if len(defined) < (1 - UNDEFINED) * draws:
        why = f"no interval: not defined in {draws - len(defined)} of {draws} draws of the {unit}"
        return [Figure(n, float(number), why=why) for number in value]
    lows, highs = np.quantile(defined, [0.5 - level / 2, 0.5 + level / 2], axis=0)
    return [_with_interval(n, *numbers, unit) for numbers in zip(value, lows, highs, strict=True)]


def _with_interval(n: int, value: float, low: float, high: float, unit: str) -> Figure:
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        return Figure(n, float(value), why=f"no interval: the same in every draw of the {unit}")
    return Figure(n, float(value), float(low), float(high))
