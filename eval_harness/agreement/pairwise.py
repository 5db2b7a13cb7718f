"""Wins, ties and losses of one model against another, and what the order of the answers does to a judge."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from scipy.special import ndtri

from ledpo_plugin.common.stats import LEVEL

from .alignment import counted
from .comparisons import category, gains, of_method
from .figures import Figure, of_mean, of_ratio
from .verdicts import Key, Verdict

RELIABLE = 0.9  # least share of verdicts that must be parsed
# graded -> what a verdict counts as that turns with the order of the answers.
TURNED = MappingProxyType(
    {
        False: "a verdict that turns with the order is a tie: it adds one half to the win rate",
        True: "of a graded verdict that turns with the order the mean of both strengths is added to the win rate, and "
        "counts as a win, tie or loss by the side of one half that it is on",
    }
)


@dataclass(frozen=True)
class Parsed:
    """How many verdicts were asked for and understood."""

    asked: int
    parsed: int
    reasons: Mapping[str, int] = field(default_factory=dict)  # of those that are missing

    @property
    def share(self) -> float:
        """parsed / asked."""
        return self.parsed / self.asked

    @property
    def reliable(self) -> bool:
        """Whether at least 90 % were parsed: what is missing is rarely missing at random."""
        return self.parsed >= RELIABLE * self.asked


@dataclass(frozen=True)
class WinRate:
    """`model` against `against`; counts are of items, a tie counts one half in the rate."""

    method: str
    model: str
    against: str
    wins: int
    ties: int
    losses: int
    rate: Figure  # with the Wilson interval
    bootstrap: Figure  # the same rate with the bootstrap interval over items
    standard_error: Figure  # of the mean, as alpaca_eval's
    parsed: Parsed
    turned: int = 0  # items on which a verdict turned with the order; they are among wins, ties and losses (`TURNED`)


@dataclass(frozen=True)
class PositionBias:
    """What the order of two answers does; over comparisons judged in both orders.

    `same_text`, `same_verdict` and `turned` are shares of all of them and add up to 1. Two answers with the same text
    have nothing to tell apart: they are no sign of a steady judge, and are in none of the other figures.
    """

    method: str
    both: int  # comparisons judged in both orders
    one: int  # comparisons judged in one order only: not used
    unknown: int  # of `both`, those whose texts are not known: taken for different ones
    graded: bool  # whether verdicts have strengths; their sign decides here
    same_text: Figure  # share of comparisons of a text with itself
    same_verdict: Figure  # share of comparisons of different texts with the same verdict in both orders
    turned: Figure  # share of comparisons of different texts with another verdict in the other order
    first_position: Figure  # different texts: share of verdicts for the one shown first (ties 1/2); 1/2 without bias
    consistency: Figure  # different texts: share with the same verdict in both orders
    parsed: Parsed


def parsed(verdicts: Sequence[Verdict]) -> Parsed:
    """Return how many of the verdicts have a preference.

    Raises:
        ValueError: there is no verdict.
    """
    if not verdicts:
        raise ValueError("There is no verdict to count; pass the verdicts of one method, missing ones too.")
    reasons = [verdict.reason for verdict in verdicts if verdict.preference is None]
    return Parsed(len(verdicts), len(verdicts) - len(reasons), counted(reasons))


def wilson(mean: float, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Return the score interval of a share (Wilson 1927): ends p with |mean - p| = z sqrt(p (1 - p) / n).

    With ties as one half, or graded preferences, the values vary less than wins and losses with the same mean, so
    that the interval is wider than needed, never narrower.

    Raises:
        ValueError: n is not positive, or the mean is no share.
    """
    if n < 1 or not 0 <= mean <= 1:
        raise ValueError(f"A share {mean} of {n} has no Wilson interval; give a share from 0 to 1 of 1 or more.")
    z = float(ndtri(0.5 + level / 2))
    middle = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return (0.0 if mean == 0 else max(0.0, middle - half)), (1.0 if mean == 1 else min(1.0, middle + half))


def win_rate(
    verdicts: Iterable[Verdict], method: str, model: str, against: str, *, seed: int = 0, level: float = LEVEL
) -> WinRate:
    """Return the win rate of `model` as alpaca_eval computes it: mean and SEM (ddof 1) of preference - 1.

    The unit is the item: its orders and repeats are averaged first (see `comparisons.gains`), for they are no
    independent evidence. With one verdict an item this is alpaca_eval's figure, up to its factor of 100.

    Raises:
        ValueError: the method did not compare these two models.
    """
    return _rate(_between(verdicts, method, model, against), method, model, against, seed, level)


def debiased_win_rate(
    verdicts: Iterable[Verdict], method: str, model: str, against: str, *, seed: int = 0, level: float = LEVEL
) -> WinRate:
    """Return the win rate over the items judged in both orders, each order with half the weight.

    A constant preference for a position cancels. `parsed` is of all verdicts that were asked for. What a verdict that
    turns with the order counts as is in `TURNED`.

    Raises:
        ValueError: the method did not compare these two models.
    """
    own = _between(verdicts, method, model, against)
    both, _ = both_orders(own)
    used = [verdict for pair in both.values() for verdict in pair]
    return _rate(used, method, model, against, seed, level, parsed(own), "no item was judged in both orders")


def position_bias(
    verdicts: Iterable[Verdict], method: str, models: tuple[str, str] | None = None, *, seed: int = 0
) -> PositionBias:
    """Return what the order of the answers does to a method, over all its comparisons or those of two models.

    Only comparisons judged in both orders count: there every model is first as often as second, so that which model
    is better does not show in the share of the first position. Of graded verdicts the side of one half decides, not
    how far from it they are. Intervals are of a bootstrap over items.

    Raises:
        ValueError: there are no such verdicts.
    """
    own = _between(verdicts, method, *models) if models else of_method(verdicts, method)
    both, one = both_orders(own)
    first: dict[str, list[float]] = {}  # of different texts
    steady: dict[str, list[float]] = {}  # of different texts
    shares: dict[str, dict[str, list[float]]] = {"same_text": {}, "same_verdict": {}, "turned": {}}
    for (item, *_), pair in both.items():
        kind = "same_text" if _same_text(pair) else "turned" if _turned(pair) else "same_verdict"
        for name, values in shares.items():
            values.setdefault(item, []).append(float(name == kind))
        if kind != "same_text":
            first.setdefault(item, []).append(math.fsum((1 - category(v.second_gain)) / 2 for v in pair) / 2)
            steady.setdefault(item, []).append(float(kind == "same_verdict"))
    none = "no comparison was judged in both orders"
    alike = "every comparison is of a text with itself" if both else none
    return PositionBias(
        method,
        len(both),
        one,
        sum(all(verdict.same_text is None for verdict in pair) for pair in both.values()),
        any(verdict.strength is not None for verdict in own),
        **{name: _by_item(values, seed, none) for name, values in shares.items()},
        first_position=_by_item(first, seed, alike),
        consistency=_by_item(steady, seed, alike),
        parsed=parsed(own),
    )


def _same_text(pair: Sequence[Verdict]) -> bool:
    return any(verdict.same_text for verdict in pair)


def _turned(pair: Sequence[Verdict]) -> bool:
    """Whether two verdicts on the same answers, one in each order, differ: other winners, or a tie once."""
    named = pair[0].key[1]
    return category(pair[0].gain(named)) != category(pair[1].gain(named))


def _by_item(values: Mapping[str, Sequence[float]], seed: int, none: str) -> Figure:
    if not values:
        return Figure(0, None, why=none)
    return of_ratio([math.fsum(own) for own in values.values()], [len(own) for own in values.values()], seed=seed)


def _between(verdicts: Iterable[Verdict], method: str, model: str, against: str) -> list[Verdict]:
    own = of_method(verdicts, method)
    found = [verdict for verdict in own if {verdict.model_1, verdict.model_2} == {model, against}]
    if not found:
        pairs = sorted({verdict.key[1:] for verdict in own})
        raise ValueError(f"{method!r} did not compare {model!r} with {against!r}; its pairs of models are {pairs}.")
    return found


def both_orders(verdicts: Iterable[Verdict]) -> tuple[dict[tuple, tuple[Verdict, Verdict]], int]:
    """Return (item, models, repeat) -> its verdicts in both orders, and how many have a verdict in one order only."""
    found: dict[tuple[Key, int], list[Verdict]] = {}
    for verdict in verdicts:
        if verdict.preference is not None:
            found.setdefault((verdict.key, verdict.repeat), []).append(verdict)
    both = {(*key, repeat): tuple(pair) for (key, repeat), pair in found.items() if len(pair) == 2}
    return both, len(found) - len(both)


def _rate(
    verdicts: Sequence[Verdict], method: str, model: str, against: str, seed: int, level: float,
    counts: Parsed | None = None, empty: str = "no verdict was parsed",
) -> WinRate:  # fmt: skip
    counts = parsed(verdicts) if counts is None else counts
    found = gains(verdicts, method) if verdicts else {}
    values = np.asarray([gain if key[1] == model else 1 - gain for key, gain in found.items()])
    n = len(values)
    if n == 0:
        nothing = Figure(0, None, why=empty)
        return WinRate(method, model, against, 0, 0, 0, nothing, nothing, nothing, counts)
    sides = [category(value) for value in values]
    rate = min(1.0, max(0.0, float(values.mean())))
    error = Figure(n, float(values.std(ddof=1)) / math.sqrt(n)) if n > 1 else Figure(1, None, why="one item")
    return WinRate(
        method,
        model,
        against,
        sides.count(1),
        sides.count(0),
        sides.count(-1),
        Figure(n, rate, *wilson(rate, n, level)),
        of_mean(values, seed=seed, level=level),
        error,
        counts,
        len({key[0] for key, pair in both_orders(verdicts)[0].items() if _turned(pair)}),
    )
