"""How many prompts until a method's ranking of models is stable."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .figures import Figure
from .ranking import SAME
from .verdicts import ScoreTable

SUBSETS = 1_000
STABLE = 0.95
POINTS = 25  # of the curve
CHUNK = 2_000_000  # numbers held at a time


@dataclass(frozen=True)
class Point:
    """The curve at `n` prompts."""

    n: int
    tau: Figure  # mean Kendall tau-b with the full ranking; its interval holds 95 % of the subsets
    same: float  # share of subsets with the full ranking


@dataclass(frozen=True)
class Stability:
    """A method's ranking under fewer prompts; `enough` is the smallest sufficient number of prompts."""

    method: str
    prompts: int
    models: tuple[str, ...]
    enough: Figure
    curve: tuple[Point, ...]


def stability(
    table: ScoreTable,
    models: Sequence[str] | None = None,
    *,
    subsets: int = SUBSETS,
    share: float = STABLE,
    seed: int = 0,
) -> Stability:
    """Return from how many prompts on the ranking by mean score equals that of all prompts, and the curve of tau.

    Subsets are drawn without replacement; `enough` is the smallest n such that for it and every larger number the
    ranking is the full one in at least `share` of the subsets. Two rankings are equal if every two models stand the
    same way, ties included. Near all N prompts subsets are nearly the whole, so that an `enough` close to N says that
    N prompts are too few, and not that N are enough.

    Args:
        table: scores of one method; for verdicts `comparisons.gain_table`.
        models: those that are ranked; left out: all.
        subsets: number of random orders of the prompts; the first n of each are a subset of n.
        share: of the subsets that must give the full ranking.
        seed: of the draws.

    Raises:
        ValueError: fewer than one subset, or a share that is not in (0, 1].
    """
    if subsets < 1 or not 0 < share <= 1:
        raise ValueError(f"Stability with {subsets} subsets and share {share}: give 1 or more, and a share in (0, 1].")
    models = tuple(models or table.models)
    items = table.complete_items(models)
    n = len(items)
    why = f"{len(models)} models have no ranking" if len(models) < 2 else None
    why = why or (f"{n} complete items are too few" if n < 2 else None)
    if why:
        return Stability(table.method, n, models, Figure(n, None, why=why), ())
    values = table.better(items, models)
    full = _signs(values.mean(axis=0)[None])[0]
    same, tau, grid = _subsets(values, full, subsets, seed)
    first = n
    while first > 1 and same[first - 2] >= share:
        first -= 1
    if first == n:
        why = f"no smaller number of prompts gives the ranking of all {n} in {share:.0%} of the subsets"
        enough = Figure(n, None, why=why)
    else:
        enough = Figure(n, float(first))
    curve = tuple(Point(size, _tau(tau[:, place], subsets), float(same[size - 1])) for place, size in enumerate(grid))
    return Stability(table.method, n, models, enough, curve)


def _subsets(values: np.ndarray, full: np.ndarray, subsets: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Return the share of full rankings for every size [N], and tau [subsets, sizes of the curve] with those sizes."""
    n, count = values.shape
    grid = sorted({round(size) for size in np.geomspace(1, n, POINTS)})
    generator = np.random.default_rng(seed)
    same, taus = np.zeros(n), []
    step = max(1, CHUNK // (n * count * max(1, count // 2)))
    for start in range(0, subsets, step):
        size = min(step, subsets - start)
        orders = generator.permuted(np.tile(np.arange(n), (size, 1)), axis=1)
        means = values[orders].cumsum(axis=1) / np.arange(1, n + 1)[:, None]
        means[:, -1] = values.mean(axis=0)  # summed in another order it could differ by rounding
        signs = _signs(means.reshape(size * n, count)).reshape(size, n, -1)
        same += (signs == full).all(axis=2).sum(axis=0)
        taus.append(_tau_b(signs[:, [place - 1 for place in grid]], full))
    return same / subsets, np.concatenate(taus), grid


def _signs(means: np.ndarray) -> np.ndarray:
    """Return for means [R, M] how every two models stand [R, pairs]: 1, 0 or -1."""
    left, right = np.triu_indices(means.shape[1], 1)
    apart = means[:, left] - means[:, right]
    least = SAME * np.abs(means).max(axis=1, keepdims=True)
    return (np.sign(apart) * (np.abs(apart) > least)).astype(np.int8)


def _tau_b(signs: np.ndarray, full: np.ndarray) -> np.ndarray:
    """Return Kendall's tau-b of rankings by the signs of their pairs; NaN where one ranking is a single tie."""
    agree = (signs * full.astype(int)).sum(axis=-1).astype(float)
    sizes = (signs != 0).sum(axis=-1) * float((full != 0).sum())
    return np.divide(agree, np.sqrt(sizes), out=np.full(agree.shape, math.nan), where=sizes > 0)


def _tau(values: np.ndarray, subsets: int) -> Figure:
    defined = values[np.isfinite(values)]
    undefined = subsets - len(defined)
    if not len(defined):
        return Figure(0, None, why="all models tie in every subset or in the full ranking")
    low, high = np.quantile(defined, [0.025, 0.975])
    why = f"{undefined} of {subsets} subsets, in which all models tie, are left out" if undefined else None
    return Figure(len(defined), float(defined.mean()), float(low), float(high), why)
