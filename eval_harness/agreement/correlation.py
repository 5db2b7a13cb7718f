"""Rank correlation between methods: example by example, and model by model."""

from collections.abc import Callable, Sequence
from itertools import permutations
from types import MappingProxyType
from typing import Any

import numpy as np
from scipy import stats

from ledpo_plugin.common.lookup import lookup

from .alignment import Aligned
from .figures import DRAWS, Figure, Undefined, bootstrapped

LEAST = 3  # values; two always correlate fully
KINDS = MappingProxyType(
    {
        "spearman": lambda x, y: stats.spearmanr(x, y).statistic,
        "kendall": lambda x, y: stats.kendalltau(x, y, variant="b").statistic,
    }
)


def correlate(
    x: Sequence[float], y: Sequence[float], kind: str, names: tuple[str, str] = ("first", "second")
) -> float | Undefined:
    """Return a rank correlation of x [n] and y [n], or why there is none: under 3 values, or one side constant.

    Args:
        x, y: finite numbers.
        kind: "spearman" (Pearson's of mid-ranks) or "kendall" (tau-b, which corrects for ties; Kendall 1945).
        names: of x and y in a reason.

    Raises:
        KeyError: the kind is unknown.
    """
    compute: Callable[..., Any] = lookup(KINDS, "correlation", kind)
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(x) < LEAST:
        return Undefined(f"{len(x)} values are too few for a correlation")
    constant = [name for name, values in zip(names, (x, y), strict=True) if np.ptp(values) == 0]
    if constant:
        return Undefined(f"{' and '.join(constant)} {'do' if len(constant) > 1 else 'does'} not vary")
    return float(compute(x, y))


def per_example(
    aligned: Aligned,
    first: str,
    second: str,
    *,
    kind: str = "spearman",
    model: str | None = None,
    seed: int = 0,
    draws: int = DRAWS,
) -> Figure:
    """Return how two methods correlate over items, with a bootstrap interval over items; n is the number of items.

    Args:
        aligned: the methods' scores.
        first, second: names of methods.
        kind: see `correlate`.
        model: whose scores are correlated. Left out: differences between every two models on an item, counted both
            ways round, so that the figure does not depend on which model is named first.
        seed, draws: of the interval.

    Raises:
        KeyError: a method, model or kind is unknown.
    """
    x, y = (_columns(aligned, method, model) for method in (first, second))

    def statistic(drawn: np.ndarray) -> float | Undefined:
        return correlate(x[drawn].ravel(), y[drawn].ravel(), kind, (first, second))

    if len(aligned.items) < LEAST:
        return Figure(len(aligned.items), None, why=f"{len(aligned.items)} items are too few for a correlation")
    return bootstrapped(statistic, len(x), seed=seed, draws=draws)


def per_model(
    aligned: Aligned,
    first: str,
    second: str,
    *,
    kind: str = "spearman",
    over: str = "items",
    seed: int = 0,
    draws: int = DRAWS,
) -> Figure:
    """Return how two methods' mean scores of models correlate; n is the number of models.

    Args:
        aligned: the methods' scores.
        first, second: names of methods.
        kind: see `correlate`.
        over: what is drawn for the interval: "items" (these models, other prompts) or "models" (other models; with
            few models many draws have no correlation, and then there is no interval).
        seed, draws: of the interval.

    Raises:
        KeyError: a method, kind or `over` is unknown.
    """
    lookup({"items": 0, "models": 1}, "unit to draw", over)
    x, y = (np.asarray(lookup(aligned.values, "method", method)) for method in (first, second))
    n = len(aligned.models)
    if n < LEAST:
        return Figure(n, None, why=f"{n} models are too few for a correlation")

    def of_items(drawn: np.ndarray) -> float | Undefined:
        return correlate(_level(x[drawn].mean(axis=0)), _level(y[drawn].mean(axis=0)), kind, (first, second))

    def of_models(drawn: np.ndarray) -> float | Undefined:
        return correlate(_level(x.mean(axis=0)[drawn]), _level(y.mean(axis=0)[drawn]), kind, (first, second))

    if not len(aligned.items):
        return Figure(n, None, why="no items")
    drawn, size = (of_items, len(aligned.items)) if over == "items" else (of_models, n)
    found = bootstrapped(drawn, size, unit=over, seed=seed, draws=draws)
    return Figure(n, found.value, found.low, found.high, found.why)


def _level(means: np.ndarray) -> np.ndarray:
    """Return means whose differences are rounding set equal: 0.1 + 0.2 and 0.3 are a tie."""
    scale = float(np.abs(means).max())
    return np.round(means / scale, 12) if scale else means


def _columns(aligned: Aligned, method: str, model: str | None) -> np.ndarray:
    """Return the numbers of an item that are correlated: [items, columns]."""
    values = np.asarray(lookup(aligned.values, "method", method))
    if model is not None:
        return values[:, [lookup({name: i for i, name in enumerate(aligned.models)}, "model", model)]]
    pairs = list(permutations(range(len(aligned.models)), 2))
    if not pairs:
        return np.zeros((len(values), 0))
    left, right = (list(side) for side in zip(*pairs, strict=True))
    return values[:, left] - values[:, right]
