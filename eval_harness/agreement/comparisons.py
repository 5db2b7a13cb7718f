"""From verdicts to comparisons: orders and repeats of the same two answers taken together."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from .verdicts import TIE, Key, ScoreTable, Verdict


def of_method(verdicts: Iterable[Verdict], method: str) -> list[Verdict]:
    """Return one method's verdicts, missing ones too.

    Raises:
        ValueError: there is none; or the same comparison is there twice in the same order and repeat.
    """
    every = list(verdicts)
    found = [verdict for verdict in every if verdict.method == method]
    if not found:
        known = sorted({verdict.method for verdict in every})
        raise ValueError(f"There is no verdict of {method!r}; name one of the methods {known}.")
    places = [(v.item, v.model_1, v.model_2, v.repeat) for v in found]
    if len(set(places)) < len(places):
        twice = Counter(places).most_common(1)[0][0]
        raise ValueError(
            f"{method!r} judged {twice} (item, model 1, model 2, repeat) more than once; "
            "number repeated judgements 0, 1, 2 ... in `repeat`."
        )
    return found


def gains(verdicts: Iterable[Verdict], method: str) -> dict[Key, float]:
    """Return per comparison what the first model by name gains: the mean of its orders, of which each is the mean of
    its repeats, so that a comparison with more repeats one way round is not pulled to that side."""
    by_order: dict[Key, dict[str, list[float]]] = {}
    for verdict in of_method(verdicts, method):
        gained = verdict.gain(verdict.key[1])
        if gained is not None:
            by_order.setdefault(verdict.key, {}).setdefault(verdict.model_1, []).append(gained)
    return {
        key: math.fsum(math.fsum(order) / len(order) for order in orders.values()) / len(orders)
        for key, orders in by_order.items()
    }


def category(gain: float) -> int:
    """Return 1 where the first model by name is better, -1 where the second is, 0 for a tie."""
    away = gain - 0.5
    return 0 if abs(away) < 1e-9 else (1 if away > 0 else -1)


def labels(verdicts: Iterable[Verdict], method: str) -> dict[Key, int]:
    """Return per comparison 1, 0 or -1 (see `category`), from all orders and repeats together."""
    return {key: category(gain) for key, gain in gains(verdicts, method).items()}


def majority(verdicts: Iterable[Verdict], methods: Sequence[str], name: str) -> list[Verdict]:
    """Return, as verdicts of a method `name`, what most of several methods (annotators) say of each comparison.

    Every method has one vote a comparison. Without a single most frequent answer it is a tie.
    """
    every = list(verdicts)
    votes: dict[Key, list[int]] = {}
    for method in methods:
        for key, label in labels(every, method).items():
            votes.setdefault(key, []).append(label)
    found = []
    for (item, first, second), given in votes.items():
        counts = sorted(((given.count(label), label) for label in set(given)), reverse=True)
        alone = len(counts) == 1 or counts[0][0] > counts[1][0]
        preference = {1: 1, -1: 2, 0: TIE}[counts[0][1] if alone else 0]
        found.append(Verdict(item, name, first, second, preference))
    return found


def gain_table(verdicts: Iterable[Verdict], method: str, *, against: str | None = None) -> ScoreTable:
    """Return verdicts as scores: per item and model, what it gains (0 to 1, tie 1/2) on average of its opponents.

    Args:
        verdicts: of any methods.
        method: whose verdicts are used; orders and repeats of a comparison count as one.
        against: the baseline where every model was compared with it only; its own score is then 1/2. Left out, every
            model must have been compared with every other; the scores of an item where one is missing are not
            comparable, and are left out with the reason.
    """
    own = of_method(verdicts, method)
    found = gains(own, method)
    models = sorted({model for v in own for model in (v.model_1, v.model_2)})
    if against is not None and against not in models:
        raise ValueError(f"{method!r} compared nothing with {against!r}; name one of the models {models}.")
    scores: dict[str, dict[str, float]] = {}
    missing: dict[tuple[str, str], str] = {}
    for item in dict.fromkeys(verdict.item for verdict in own):
        cells = {m: _mean_gain(found, item, m, [against] if against else models) for m in models if m != against}
        gaps = [model for model, gain in cells.items() if gain is None]
        if against is None and gaps:
            missing |= {(item, model): "not every pair of models has a verdict" for model in models}
            continue
        missing |= {(item, model): f"no verdict against {against}" for model in gaps}
        scores[item] = {model: gain for model, gain in cells.items() if gain is not None}
        if against is not None:
            scores[item][against] = 0.5
    return ScoreTable(method, scores, missing=missing)


def _mean_gain(found: Mapping[Key, float], item: str, model: str, opponents: Sequence[str]) -> float | None:
    total = []
    for other in opponents:
        if other == model:
            continue
        first, second = sorted((model, other))
        gain = found.get((item, first, second))
        if gain is None:
            return None
        total.append(gain if model == first else 1 - gain)
    return math.fsum(total) / len(total)
