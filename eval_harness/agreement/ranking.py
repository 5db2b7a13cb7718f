"""Which model is best by each method: mean scores, Bradley-Terry, and what the choice of a method costs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse.csgraph import connected_components

from .alignment import Aligned
from .comparisons import category, gains
from .figures import Figure, Undefined, bootstrapped_all, of_mean
from .libraries import library
from .selection import halves
from .verdicts import ScoreTable, Verdict

FITS = 500  # draws of Bradley-Terry, which is fitted anew in each
SAME = 1e-9  # means whose difference is below this share of the largest are a tie


@dataclass(frozen=True)
class Ranked:
    """A model's place (1 is best, equal models share the better place) and the figure it comes from."""

    model: str
    rank: int | None
    figure: Figure


@dataclass(frozen=True)
class Ranking:
    """Models by one method, best first."""

    method: str
    by: str  # "mean" or "bradley_terry"
    rows: tuple[Ranked, ...]


@dataclass(frozen=True)
class Choice:
    """What a method would have chosen, and what that loses by the reference method."""

    method: str
    reference: str
    chosen: tuple[str, ...]  # more than one where they tie
    best: tuple[str, ...]  # by the reference
    regret: Figure  # the reference's score of its best model minus that of the chosen; ties count on average
    chosen_on: int = 0  # items that chose both; the regret is over the others


def rank_by_mean(table: ScoreTable, models: Sequence[str] | None = None, *, seed: int = 0) -> Ranking:
    """Return models by their mean score over the items with a score of all of them.

    For verdicts pass `comparisons.gain_table`: the mean is then the win rate. Means are in the method's own unit.

    Args:
        table: scores of one method.
        models: those that are ranked; left out: all.
        seed: of the bootstrap intervals over items.
    """
    models = tuple(models or table.models)
    items = table.complete_items(models)
    if not items:
        nothing = Figure(0, None, why="no item has a score of every model")
        return Ranking(table.method, "mean", tuple(Ranked(model, None, nothing) for model in models))
    better = table.better(items, models)
    ranks = places(better.mean(axis=0))
    sign = 1.0 if table.higher_is_better else -1.0
    figures = [of_mean(sign * better[:, index], seed=seed) for index in range(len(models))]
    return Ranking(table.method, "mean", _sorted(models, ranks, figures))


def places(means: Sequence[float]) -> list[int]:
    """Return the place of each mean, 1 for the largest; equal means (to 9 digits) share the better place."""
    means = np.asarray(means, dtype=float)
    least = SAME * float(np.abs(means).max(initial=0.0))
    return [1 + int((means > mean + least).sum()) for mean in means]


def bradley_terry(verdicts: Iterable[Verdict], method: str, *, seed: int = 0, draws: int = FITS) -> Ranking:
    """Return models by their Bradley-Terry strength in log-odds, with mean 0: P(i beats j) = logistic(s_i - s_j).

    Bradley and Terry (1952), fitted by the library evalica; a tie is half a win each way. One comparison counts once,
    its orders and repeats taken together. Unlike mean scores it needs no comparison of every model with every other;
    but every model must win (or tie) against some and lose against some, directly or through others, or the largest
    likelihood is at infinity (Ford 1957), and no strength is given.

    Args:
        verdicts: of any methods.
        method: whose verdicts are used.
        seed, draws: of the bootstrap intervals over items.

    Raises:
        ValueError: the method has no verdict.
        ImportError: the library evalica is not installed.
    """
    found = gains(verdicts, method)
    models = sorted({model for _, *pair in found for model in pair})
    place = {model: index for index, model in enumerate(models)}
    rows: dict[str, np.ndarray] = {}
    for (item, first, second), gain in found.items():
        won = (category(gain) + 1) / 2  # a graded win is a win
        wins = rows.setdefault(item, np.zeros((len(models), len(models))))
        wins[place[first], place[second]] += won
        wins[place[second], place[first]] += 1 - won
    if not rows:
        return Ranking(method, "bradley_terry", ())
    wins = np.asarray(list(rows.values()))
    figures = bootstrapped_all(
        lambda drawn: strengths(wins[drawn].sum(axis=0)), len(wins), len(models), seed=seed, draws=draws
    )
    if any(figure.value is None for figure in figures):
        return Ranking(method, "bradley_terry", tuple(Ranked(m, None, f) for m, f in zip(models, figures, strict=True)))
    ranks = places(np.round([figure.value for figure in figures], 6))  # the fit is not more exact
    return Ranking(method, "bradley_terry", _sorted(models, ranks, figures))


def strengths(wins: np.ndarray) -> np.ndarray | Undefined:
    """Return Bradley-Terry strengths [M] in log-odds with mean 0 of wins [M, M] (row beats column, ties one half).

    Raises:
        ImportError: the library evalica is not installed.
    """
    wins = np.asarray(wins, dtype=float)
    groups, _ = connected_components(wins > 0, directed=True, connection="strong")
    if groups > 1:
        return Undefined("some models never lose to (or never meet) the others: their strength has no finite value")
    evalica = library("evalica", "The Bradley-Terry ranking")
    winners, losers = np.nonzero(wins)
    limit = 100_000
    found = evalica.bradley_terry(
        winners.tolist(),
        losers.tolist(),
        [evalica.Winner.X] * len(winners),
        weights=wins[winners, losers].tolist(),
        tolerance=1e-12,
        limit=limit,
    )
    if found.iterations >= limit:
        return Undefined(f"the fit did not converge in {limit} iterations")
    logs = np.log([float(found.scores[index]) for index in range(len(wins))])
    return logs - logs.mean()


def choices(aligned: Aligned, reference: str, *, seed: int = 0) -> tuple[Choice, ...]:
    """Return what every method would have chosen on half of the common items, and its regret on the other half.

    Methods and reference choose on one half (see `selection.halves`); the regret, by the reference, is over the other,
    so that it is not made by the choice: where all models are equally good it is 0 on average, and it is negative
    where the method's choice turns out better than the reference's. Its interval is a bootstrap over the items that
    judge, not corrected for the number of methods.

    Raises:
        ValueError: the reference is none of the methods.
    """
    if reference not in aligned.values:
        raise ValueError(f"The reference {reference!r} is none of the methods {sorted(aligned.values)}; name one.")
    judged = np.asarray(aligned.values[reference])
    if not len(aligned.items) or not aligned.models:
        nothing = Figure(0, None, why="no item that every method scored for every model")
        return tuple(Choice(method, reference, (), (), nothing) for method in aligned.values)
    if len(aligned.items) < 2:
        nothing = Figure(0, None, why="one item cannot both choose and judge")
        return tuple(Choice(method, reference, (), (), nothing) for method in aligned.values)
    choosing, judging = halves(len(aligned.items))
    best = _best(judged[choosing])
    found = []
    for method, values in aligned.values.items():
        chosen = _best(np.asarray(values)[choosing])
        lost = judged[judging][:, best].mean(axis=1) - judged[judging][:, chosen].mean(axis=1)
        regret = of_mean(lost, seed=seed)
        if chosen == best:
            regret = Figure(len(lost), 0.0, why="no interval: the choice is the reference's own")
        names = [tuple(aligned.models[index] for index in indices) for indices in (chosen, best)]
        found.append(Choice(method, reference, *names, regret, len(choosing)))
    return tuple(found)


def _best(values: np.ndarray) -> list[int]:
    return [index for index, place in enumerate(places(values.mean(axis=0))) if place == 1]


def _sorted(models: Sequence[str], ranks: Sequence[int], figures: Sequence[Figure]) -> tuple[Ranked, ...]:
    rows = [Ranked(*row) for row in zip(models, ranks, figures, strict=True)]
    return tuple(sorted(rows, key=lambda row: (row.rank, row.model)))
