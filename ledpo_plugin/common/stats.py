"""Statistics of a report: intervals over seeds, paired tests, their correction, resampling of held-out items. Pure.

Where something cannot be tested (one seed, no variance) there is no p value and no interval, and `why` says so.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats as distributions
from scipy.optimize import brentq

LEVEL = 0.95
POWER = 0.8
RESAMPLES = 10_000
SPIKE_WINDOW = 10
SPIKE_MADS = 5.0
SPIKE_LEAST = 0.01  # a MAD below this share of the median counts as this share
NODES = 4_000  # quantiles that a power is a mean over
CHUNK = 4_000_000  # drawn indices held at a time


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` values with its t-interval; None where `n` is too small, or nothing varies, to say."""

    n: int
    mean: float | None
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    why: str | None = None  # why there is no interval


@dataclass(frozen=True)
class Difference(Estimate):
    """A mean paired difference with its t-interval and two-sided paired t-test."""

    seeds: tuple[int, ...] = ()
    t: float | None = None
    p: float | None = None


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided tests of a mean paired difference against a margin (Schuirmann 1987)."""

    margin: float  # declared beforehand, in units of the metric
    p: float | None  # the larger of both tests' p values; None where nothing can be tested
    low: float | None = None  # interval of level 1 - 2 alpha: inside the margin exactly where p < alpha
    high: float | None = None
    why: str | None = None  # why nothing was tested


def mean_interval(values: Sequence[float], level: float = LEVEL) -> Estimate:
    """Return the mean of finite `values` with its t-interval; values that are not finite are left out of `n`.

    One value, or values that are all equal, have no interval: their spread says nothing about other seeds.
    """
    finite = np.asarray([value for value in values if math.isfinite(value)], dtype=float)
    n = len(finite)
    if n == 0:
        return Estimate(0, None, why="no value")
    mean = float(finite.mean())
    if n == 1:
        return Estimate(1, mean, why="one seed")
    if _all_equal(finite):
        return Estimate(n, float(finite[0]), 0.0, why="the same with every seed")
    sd = float(finite.std(ddof=1))
    half = float(distributions.t.ppf(0.5 + level / 2, n - 1)) * sd / math.sqrt(n)
    return Estimate(n, mean, sd, mean - half, mean + half)


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float], level: float = LEVEL) -> Difference:
    """Return ours minus theirs over the seeds that both have, with the two-sided paired t-test.

    Args:
        ours: seed -> value of one variant.
        theirs: seed -> value of the variant it is compared to.
        level: of the interval.
    """
    seeds = tuple(s for s in sorted(ours.keys() & theirs.keys()) if math.isfinite(ours[s]) and math.isfinite(theirs[s]))
    if not seeds:
        return Difference(0, None, why="no seed finished in both")
    pairs = np.asarray([(ours[seed], theirs[seed]) for seed in seeds], dtype=float)
    differences = pairs[:, 0] - pairs[:, 1]
    scale = float(np.abs(pairs).max())
    if len(seeds) > 1 and _all_equal(differences, scale):  # rounding of a - b is no variance
        same = float(differences.mean()) if abs(differences.mean()) > 1e-12 * scale else 0.0
        return Difference(len(seeds), same, 0.0, why="the same difference with every seed", seeds=seeds)
    found = mean_interval(differences, level)
    if found.sd is None or found.mean is None:
        return Difference(found.n, found.mean, why=found.why, seeds=seeds)
    t = found.mean / (found.sd / math.sqrt(found.n))
    p = 2 * float(distributions.t.sf(abs(t), found.n - 1))
    return Difference(found.n, found.mean, found.sd, found.low, found.high, None, seeds, t, p)


def detectable_difference(sd: float | None, n: int, *, level: float = LEVEL, power: float = POWER) -> float | None:
    """Return the mean difference that a two-sided paired t-test finds with this power; None where nothing varies.

    d = ncp sd / sqrt(n), where the noncentral t with n - 1 degrees of freedom and noncentrality ncp lies beyond
    the critical values with probability `power` (Cohen 1988, chapter 2). It is as uncertain as `sd` is: of few seeds,
    very much so.

    Args:
        sd: standard deviation of the paired differences, in units of the metric.
        n: number of pairs.
        level: of the interval, 1 less the two-sided error of the test.
        power: probability to show a difference of this size.
    """
    if n < 2 or not sd:
        return None
    critical = float(distributions.t.ppf(0.5 + level / 2, n - 1))
    # t = (z + ncp) / spread: its tail is a mean over the spreads sqrt(chi2 / (n - 1)), here at their midpoint
    # quantiles. scipy's own noncentral t is not a number in parts of this range.
    chi2 = distributions.chi2.ppf((np.arange(NODES) + 0.5) / NODES, n - 1)
    limits = critical * np.sqrt(chi2 / (n - 1))

    def lacking(ncp: float) -> float:
        return float((distributions.norm.sf(limits - ncp) + distributions.norm.cdf(-limits - ncp)).mean()) - power

    return float(brentq(lacking, 0.0, 2 * critical + 10)) * sd / math.sqrt(n)


def detectable_by_interval(
    low: float | None, high: float | None, *, level: float = LEVEL, power: float = POWER
) -> float | None:
    """Return the difference whose bootstrap interval [low, high] would leave out 0 with this power; None without one.

    The interval is read as that of a normal mean: (z(level) + z(power)) standard errors.
    """
    if low is None or high is None:
        return None
    z = float(distributions.norm.ppf(0.5 + level / 2))
    return (z + float(distributions.norm.ppf(power))) * (high - low) / (2 * z)


def equivalence(found: Difference, margin: float, *, level: float = LEVEL) -> Equivalence:
    """Return whether a mean paired difference lies within -margin to margin, by two one-sided t-tests.

    Args:
        found: of `paired_difference`.
        margin: above 0, declared before the runs.
        level: 1 less the error of each of both tests.

    Raises:
        ValueError: the margin is not above 0.
    """
    if not margin > 0:
        raise ValueError(f"A margin of equivalence is {margin}. Declare how large a difference may be, above 0.")
    if found.t is None or found.sd is None or found.mean is None:
        return Equivalence(margin, None, why=found.why)
    error, rest = found.sd / math.sqrt(found.n), found.n - 1
    above = float(distributions.t.sf((found.mean + margin) / error, rest))  # of: not above -margin
    below = float(distributions.t.sf((margin - found.mean) / error, rest))  # of: not below margin
    half = float(distributions.t.ppf(level, rest)) * error
    return Equivalence(margin, max(above, below), found.mean - half, found.mean + half)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p values corrected for their number (Holm 1979); None, which was not tested, stays and does not count."""
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        corrected[i] = largest
    return corrected


def bootstrap_difference(
    differences: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Estimate:
    """Return the mean difference with the percentile interval of a cluster bootstrap over items.

    Every item is drawn with all of its seeds, so what the seeds share is kept together.

    Args:
        differences: [S, N], per seed and item.
        weights: [N], of the items in the mean, as tokens; all alike where None.
        seed: of the draws.
        resamples: number of draws.
        level: of the interval.
    """
    per_item = np.asarray(differences, dtype=float)
    per_item = np.atleast_2d(per_item).mean(axis=0)
    n = len(per_item)
    if n == 0 or not np.isfinite(per_item).all():
        return Estimate(n, None, why="no item" if n == 0 else "a value that is not finite")
    weight = np.ones(n) if weights is None else np.asarray(weights, dtype=float)
    mean = float((per_item * weight).sum() / weight.sum())
    if n == 1:
        return Estimate(1, mean, why="one item")
    if _all_equal(per_item):
        return Estimate(n, mean, 0.0, why="the same with every item")
    generator = np.random.default_rng(seed)
    means = []
    for start in range(0, resamples, max(1, CHUNK // n)):
        drawn = generator.integers(0, n, (min(max(1, CHUNK // n), resamples - start), n))
        means.append((per_item[drawn] * weight[drawn]).sum(axis=1) / weight[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [0.5 - level / 2, 0.5 + level / 2])
    return Estimate(n, mean, float(per_item.std(ddof=1)), float(low), float(high))


def spikes(losses: Sequence[float]) -> tuple[list[int], int]:
    """Return the indices of spikes of a loss, and how many steps could be judged.

    A spike lies above the median of the 10 finite losses before it by more than 5 of their median absolute
    deviations; the deviation is taken as 1 % of the median at least. A loss that is not finite is no spike: it is
    counted apart.
    """
    found: list[int] = []
    before: list[float] = []
    judged = 0
    for index, loss in enumerate(losses):
        if not math.isfinite(loss):
            continue
        if len(before) >= SPIKE_WINDOW:
            window = np.asarray(before[-SPIKE_WINDOW:])
            median = float(np.median(window))
            deviation = max(float(np.median(np.abs(window - median))), SPIKE_LEAST * abs(median))
            judged += 1
            if loss > median + SPIKE_MADS * deviation:
                found.append(index)
        before.append(loss)
    return found, judged


def variation(values: Sequence[float]) -> float | None:
    """Return sd / mean of the second half of finite `values`; None for fewer than two or a mean of zero."""
    finite = [value for value in values if math.isfinite(value)]
    half = np.asarray(finite[len(finite) // 2 :], dtype=float)
    if len(half) < 2 or half.mean() == 0:
        return None
    return float(half.std(ddof=1) / abs(half.mean()))


def first_reached(points: Sequence[tuple[float, float]], *, at_least: float | None, at_most: float | None = None):
    """Return the x of the first point (x, y) whose y is good enough; None if there is none."""
    for x, y in points:
        if (at_least is None or y >= at_least) and (at_most is None or y <= at_most) and math.isfinite(y):
            return x
    return None


def censored_median(values: Sequence[float | None]) -> float | None:
    """Return the median where None is later than everything; None if the median itself is not reached."""
    if not values:
        return None
    ordered = sorted(math.inf if value is None else value for value in values)
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    return median if math.isfinite(median) else None


def plain(value: Any) -> Any:
    """Return the value in JSON types; a number that is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Estimate | Equivalence):
        return plain(asdict(value))
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(item) for item in value]
    if isinstance(value, bool | str | int | None):
        return value
    if isinstance(value, float | np.floating | np.integer):
        return float(value) if math.isfinite(value) else None
    return str(value)


def _all_equal(values: np.ndarray, scale: float | None = None) -> bool:
    scale = float(np.abs(values).max()) if scale is None else scale
    return float(values.max() - values.min()) <= 1e-12 * scale


def to_digits(value: float, digits: int) -> float | None:
    """Return a value with so many significant digits; None for what is not finite."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None
