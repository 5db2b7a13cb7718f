"""Whether a judge likes long answers: shares, correlation, and a regression that knows the models and the order."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog, minimize
from scipy.special import expit, ndtri

from ledpo_plugin.common.stats import LEVEL

from .comparisons import category, gains, of_method
from .correlation import correlate
from .figures import DRAWS, Figure, Undefined, bootstrapped, of_mean, of_ratio
from .pairwise import both_orders
from .verdicts import ScoreTable, Verdict


@dataclass(frozen=True)
class LengthBias:
    """What the length of answers does to a method; figures are over verdicts on different texts, drawn by item."""

    method: str
    verdicts: int  # parsed, on different texts, with both lengths known
    no_length: int  # parsed, left out because a length is not known
    same_text: int  # parsed, left out because both answers are the same text
    equal: int  # with answers of equal length: not in `longer`
    longer: Figure  # share of verdicts for the longer answer (ties one half, graded ones by their side of it)
    correlation: Figure  # Spearman, of the second answer's gain with how much longer it is
    effect: Figure  # log-odds for an answer that is `spread` longer, the models and the order held fixed
    first: Figure  # log-odds for the first of two answers of equal models and length
    spread: float | None  # standard deviation of the length differences, in the unit of the lengths


def length_bias(
    verdicts: Iterable[Verdict],
    method: str,
    lengths: ScoreTable,
    *,
    seed: int = 0,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> LengthBias:
    """Return whether a method prefers longer answers, and how much of that its models do not explain.

    `longer` and `correlation` say what is there; a longer answer may be the better one. `effect` compares answers of
    the same two models: P(second) = logistic(o + a[model 2] - a[model 1] + b (length 2 - length 1) / spread), by
    maximum likelihood, a tie as half a verdict each way; the idea of AlpacaEval's length control (Dubois et al. 2024,
    section 3) without its item difficulty. Its Wald interval uses the sandwich covariance by items (Liang and Zeger
    1986), since verdicts on the same answers are not independent. It still cannot tell length from quality that
    comes with length within a model.

    Args:
        verdicts: of any methods; missing ones are left out.
        method: whose verdicts are used.
        lengths: item -> model -> length of the answer, in tokens or characters.
        seed, draws, level: of the intervals.

    Raises:
        ValueError: there is no verdict of the method.
    """
    every = [v for v in of_method(verdicts, method) if v.preference is not None]
    parsed = [v for v in every if not v.same_text]
    alike = len(every) - len(parsed)
    used = [v for v in parsed if all(m in lengths.scores.get(v.item, {}) for m in (v.model_1, v.model_2))]
    left_out = len(parsed) - len(used)
    if not used:
        why = "every verdict is on a text and itself" if alike and not parsed else "no verdict with both lengths known"
        nothing = Figure(0, None, why=why)
        return LengthBias(method, 0, left_out, alike, 0, nothing, nothing, nothing, nothing, None)
    gain = np.asarray([v.second_gain for v in used])
    longer_by = np.asarray([lengths.scores[v.item][v.model_2] - lengths.scores[v.item][v.model_1] for v in used])
    groups = _groups([v.item for v in used])
    effect, first, spread = _regression(used, gain, longer_by, groups, level)
    return LengthBias(
        method,
        len(used),
        left_out,
        alike,
        int((longer_by == 0).sum()),
        _longer(gain, longer_by, groups, seed),
        _correlation(gain, longer_by, groups, seed, draws),
        effect,
        first,
        spread,
    )


@dataclass(frozen=True)
class LengthEffect:
    """How one model's win rate against another goes with the length of its answers; over items of different texts
    judged in both orders."""

    method: str
    model: str
    against: str
    longer_by: Figure  # mean of how much longer the model's answers are, in the unit of the lengths
    where_longer: Figure  # the model's win rate over the items on which its answer is the longer one
    where_shorter: Figure  # the same where it is the shorter one


def length_effect(
    verdicts: Iterable[Verdict], method: str, model: str, against: str, lengths: ScoreTable, *, seed: int = 0
) -> LengthEffect:
    """Return what a reader needs beside a win rate to see what length may have to do with it.

    It takes nothing off the win rate: that longer answers win more often may be the judge's taste or their worth, and
    verdicts on two models cannot tell which.

    Args:
        verdicts: of any methods.
        method: whose verdicts are used.
        model, against: whose win rate it is, and its opponent.
        lengths: item -> model -> length of the answer.
        seed: of the bootstrap intervals over items.
    """
    own = [v for v in of_method(verdicts, method) if {v.model_1, v.model_2} == {model, against} and not v.same_text]
    pairs, _ = both_orders(own)
    found = gains([verdict for pair in pairs.values() for verdict in pair], method) if pairs else {}
    apart, gained = [], []
    for (item, first, _), gain in found.items():
        of_item = lengths.scores.get(item, {})
        if model in of_item and against in of_item:
            apart.append(of_item[model] - of_item[against])
            gained.append(gain if first == model else 1 - gain)

    def over(values: Sequence[float], what: str) -> Figure:
        return of_mean(values, seed=seed) if len(values) else Figure(0, None, why=f"no item on which {what}")

    return LengthEffect(
        method,
        model,
        against,
        over(apart, "both orders were judged and both lengths are known"),
        over([gain for gain, by in zip(gained, apart, strict=True) if by > 0], "its answer is the longer one"),
        over([gain for gain, by in zip(gained, apart, strict=True) if by < 0], "its answer is the shorter one"),
    )


def _groups(items: Sequence[str]) -> list[np.ndarray]:
    """Return the rows of every item."""
    rows: dict[str, list[int]] = {}
    for row, item in enumerate(items):
        rows.setdefault(item, []).append(row)
    return [np.asarray(own) for own in rows.values()]


def _longer(gain: np.ndarray, longer_by: np.ndarray, groups: Sequence[np.ndarray], seed: int) -> Figure:
    second = (1 + np.asarray([category(value) for value in gain])) / 2
    share = np.where(longer_by > 0, second, 1 - second)
    kept = [rows[longer_by[rows] != 0] for rows in groups]
    kept = [rows for rows in kept if len(rows)]
    if not kept:
        return Figure(0, None, why="all answers that were compared are equally long")
    return of_ratio([share[rows].sum() for rows in kept], [len(rows) for rows in kept], seed=seed)


def _correlation(
    gain: np.ndarray, longer_by: np.ndarray, groups: Sequence[np.ndarray], seed: int, draws: int
) -> Figure:
    def statistic(drawn: np.ndarray) -> float | Undefined:
        rows = np.concatenate([groups[index] for index in drawn])
        return correlate(gain[rows], longer_by[rows], "spearman", ("verdicts", "length differences"))

    found = bootstrapped(statistic, len(groups), seed=seed, draws=draws)
    return Figure(len(gain), found.value, found.low, found.high, found.why)


def _regression(
    verdicts: Sequence[Verdict], gain: np.ndarray, longer_by: np.ndarray, groups: Sequence[np.ndarray], level: float
) -> tuple[Figure, Figure, float | None]:
    """Return the effect of length, of being first, and the spread in whose units the former is."""
    n, spread = len(gain), float(longer_by.std())
    if spread <= 1e-12 * float(np.abs(longer_by).max(initial=1.0)):
        nothing = Figure(n, None, why="the length differences are all the same")
        return nothing, nothing, None
    models = sorted({model for v in verdicts for model in (v.model_1, v.model_2)})
    # One model's ability is the zero of all.
    ability = [[float(v.model_2 == m) - float(v.model_1 == m) for m in models[1:]] for v in verdicts]
    design = np.column_stack([longer_by / spread, np.ones(n), np.asarray(ability)])
    varied = _independent(design)
    found = _fit(design, gain, groups) if varied is None else Undefined(varied)
    if isinstance(found, Undefined):
        nothing = Figure(n, None, why=found.why)
        return nothing, nothing, spread
    coefficients, errors = found
    half = float(ndtri(0.5 + level / 2)) * errors
    if not np.isfinite(half).all() or len(groups) <= design.shape[1]:
        why = f"no interval: {len(groups)} items are too few for {design.shape[1]} coefficients"
        figures = [Figure(n, float(c), why=why) for c in coefficients[:2]]
    else:
        figures = [
            Figure(n, float(c), float(c - h), float(c + h)) for c, h in zip(coefficients[:2], half[:2], strict=True)
        ]
    first = figures[1]  # the model's intercept favours the second answer
    turned = [None if number is None else -number for number in (first.value, first.high, first.low)]
    return figures[0], Figure(n, *turned, first.why), spread


def _independent(design: np.ndarray) -> str | None:
    """Return why the columns cannot be told apart, or None."""
    if np.linalg.matrix_rank(design) == design.shape[1]:
        return None
    others = design[:, 1:]
    if np.linalg.matrix_rank(others) == others.shape[1]:
        return "every pair of models has one length difference: length cannot be told from the models"
    return "every model was always shown in the same place: judge both orders to tell the models from the place"


def _fit(
    design: np.ndarray, gain: np.ndarray, groups: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray] | Undefined:
    """Return coefficients and standard errors of the logistic regression of `gain` (0 to 1) on `design`."""
    if _separated(design, gain):
        return Undefined(
            "length, models and order predict every verdict: the log-odds are infinite; see the shares instead"
        )

    def loss(b: np.ndarray) -> float:
        z = design @ b
        return float((np.logaddexp(0, z) - gain * z).sum())

    def slope(b: np.ndarray) -> np.ndarray:
        return design.T @ (expit(design @ b) - gain)

    def curvature(b: np.ndarray) -> np.ndarray:
        p = expit(design @ b)
        return (design * (p * (1 - p))[:, None]).T @ design

    found = minimize(loss, np.zeros(design.shape[1]), jac=slope, hess=curvature, method="trust-exact")
    b = found.x
    if not np.isfinite(b).all() or np.abs(slope(b)).max() > 1e-3 * math.sqrt(len(gain)):
        return Undefined(f"the regression did not converge ({found.message})")
    inverse = np.linalg.inv(curvature(b))
    residual = gain - expit(design @ b)
    scores = np.asarray([design[rows].T @ residual[rows] for rows in groups])
    correction = len(groups) / max(len(groups) - 1, 1)
    covariance = inverse @ (scores.T @ scores) @ inverse * correction
    return b, np.sqrt(np.diag(covariance))


def _separated(design: np.ndarray, gain: np.ndarray) -> bool:
    """Whether some direction explains verdicts without error, so that the likelihood has no maximum.

    Albert and Anderson (1984); found by the linear programme of Konis (2007, section 4.2). A tie or graded verdict
    is one each way: it allows no movement along its row.
    """
    decided = (gain == 0) | (gain == 1)
    signed = design[decided] * np.where(gain[decided] == 1, 1.0, -1.0)[:, None]
    free = np.unique(design[~decided], axis=0)
    signed, counts = np.unique(signed, axis=0, return_counts=True)
    if len(signed) == 0:
        return False
    found = linprog(
        -(signed * counts[:, None]).sum(axis=0) / counts.sum(),
        A_ub=-signed,
        b_ub=np.zeros(len(signed)),
        A_eq=free if len(free) else None,
        b_eq=np.zeros(len(free)) if len(free) else None,
        bounds=[(-1, 1)] * design.shape[1],
        method="highs",
    )
    return bool(found.success and -found.fun > 1e-7)
