"""All methods side by side: what each says of the models, how they correlate, which model each would have chosen."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from .agreement import Ratings, alpha, pair_agreement
from .alignment import align
from .correlation import KINDS, per_example, per_model
from .figures import Figure, of_ratio
from .ranking import choices, rank_by_mean
from .stability import stability
from .tables import Row, agreement_rows, choice_rows, figure_row, lost_rows, ranking_rows, stability_rows
from .verdicts import ScoreTable

DRAWS = 300  # of each correlation's interval: there are as many as pairs of methods, times four
SUBSETS = 500


def compare(
    tables: Sequence[ScoreTable],
    *,
    reference: str,
    models: Sequence[str] | None = None,
    seed: int = 0,
    draws: int = DRAWS,
) -> dict[str, Any]:
    """Return how methods that score the same models on the same items compare, as rows of plain values.

    Args:
        tables: one per method; two at least.
        reference: the method by which the others' choices are judged.
        models: those that are compared; left out: those that every method has.
        seed, draws: of the bootstrap intervals over items.

    Returns:
        items and models in common; `kept` (what the alignment lost), `rankings`, `per_example` and `per_model`
        (correlations of every two methods, with `kind` and the names), `choices`, `stability`.

    Raises:
        ValueError: fewer than two methods, two of one name, or the reference is none of them.
    """
    if len(tables) < 2:
        raise ValueError(f"There are scores of {len(tables)} method; how far methods agree takes two or more.")
    aligned = align(tables, models)
    names = list(aligned.values)
    found: dict[str, Any] = {
        "items": list(aligned.items),
        "models": list(aligned.models),
        "methods": names,
        "higher_is_better": {table.method: table.higher_is_better for table in tables},
        "reference": reference,
        "kept": lost_rows(aligned.lost),
        "choices": choice_rows(choices(aligned, reference, seed=seed)),
        "rankings": {},
        "stability": {},
        "per_example": [],
        "per_model": [],
    }
    for table in tables:
        common = _restricted(table, aligned.items, aligned.models)
        found["rankings"][table.method] = ranking_rows(rank_by_mean(common, aligned.models, seed=seed))
        found["stability"][table.method] = stability_rows(stability(common, aligned.models, subsets=SUBSETS, seed=seed))
    for first, second in combinations(names, 2):
        named = {"first": first, "second": second}
        for kind in KINDS:
            own = {"kind": kind, "seed": seed, "draws": draws}
            found["per_example"].append(figure_row(kind, per_example(aligned, first, second, **own), **named))
            found["per_model"].append(figure_row(kind, per_model(aligned, first, second, **own), **named))
    return found


def _restricted(table: ScoreTable, items: Sequence[str], models: Sequence[str]) -> ScoreTable:
    scores = {item: {model: table.scores[item][model] for model in models} for item in items}
    return ScoreTable(table.method, scores, table.higher_is_better)


def against_labels(ratings: Mapping[str, Ratings], labels: str, *, seed: int = 0, draws: int = DRAWS) -> dict[str, Any]:
    """Return how far methods agree with one that is taken as right, and with each other, on pairs of answers.

    Args:
        ratings: method -> unit -> category, the labels among them.
        labels: the method that the others are held against.
        seed, draws: of the bootstrap intervals over items.

    Returns:
        `with_labels`: rows of percent agreement, kappas, and accuracy (see `accuracy`); `between`: kappas of every
        other two methods; `alpha`: Krippendorff's, nominal, of all methods but the labels, and of all with them.

    Raises:
        ValueError: the labels are none of the methods.
    """
    if labels not in ratings:
        raise ValueError(f"The labels {labels!r} are none of the methods {sorted(ratings)}; name one of them.")
    rows: list[Row] = []
    for name in ratings:
        if name != labels:
            pair = ((name, ratings[name]), (labels, ratings[labels]))
            rows += agreement_rows(pair_agreement(*pair, seed=seed, draws=draws))
            rows.append(figure_row("accuracy", accuracy(ratings[name], ratings[labels], seed=seed), first=name,
                                   second=labels))  # fmt: skip
    others = {name: own for name, own in ratings.items() if name != labels}
    between = []
    for first, second in combinations(others, 2):
        pair = ((first, others[first]), (second, others[second]))
        between += [row for row in agreement_rows(pair_agreement(*pair, seed=seed, draws=draws))
                    if row["name"] == "cohen_kappa"]  # fmt: skip
    overall = {
        "without_labels": alpha(others, seed=seed, draws=draws)
        if len(others) > 1
        else Figure(0, None, why="one method"),
        "with_labels": alpha(ratings, seed=seed, draws=draws),
    }
    return {
        "with_labels": rows,
        "between": between,
        "alpha": [figure_row(name, figure) for name, figure in overall.items()],
    }


def accuracy(ratings: Ratings, labels: Ratings, *, seed: int = 0) -> Figure:
    """Return how often ratings are right: 1 where they equal the label, 1/2 for a tie that the label does not share.

    With verdicts in letters from both orders this is the mean of both orders' accuracies (LLMBar, arXiv:2310.07641:
    "average accuracy"): a verdict that turns is right once and wrong once. The interval is a bootstrap over items.

    Args:
        ratings: unit -> -1, 0 (tie) or 1 (see `comparisons.labels`).
        labels: unit -> what is right; units without a rating do not count.
        seed: of the interval.
    """
    by_item: dict[str, list[float]] = {}
    for unit, rated in ratings.items():
        if unit in labels:
            right = 1.0 if rated == labels[unit] else 0.5 if rated == 0 else 0.0
            by_item.setdefault(unit[0], []).append(right)
    if not by_item:
        return Figure(0, None, why="no unit that both rated")
    return of_ratio([sum(own) for own in by_item.values()], [len(own) for own in by_item.values()], seed=seed)
