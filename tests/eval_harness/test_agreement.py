"""Statistics of agreement: against arithmetic by hand, other libraries, and judges with known faults."""

import json
import math
import random
import warnings

import numpy as np
import pytest
from scipy import stats as reference

from eval_harness.agreement import tables
from eval_harness.agreement.agreement import alpha, cells, kappa, pair_agreement, repeat_consistency
from eval_harness.agreement.alignment import align
from eval_harness.agreement.comparisons import gain_table, gains, labels, majority, of_method
from eval_harness.agreement.correlation import correlate, per_example, per_model
from eval_harness.agreement.figures import Figure, Undefined, bootstrapped
from eval_harness.agreement.length_bias import length_bias
from eval_harness.agreement.libraries import library
from eval_harness.agreement.pairwise import debiased_win_rate, position_bias, wilson, win_rate
from eval_harness.agreement.problems import DataError
from eval_harness.agreement.ranking import bradley_terry, choices, places, rank_by_mean, strengths
from eval_harness.agreement.reading import ALPACA_EVAL, ANNOTATION, read_scores, read_verdicts
from eval_harness.agreement.selection import halves
from eval_harness.agreement.stability import stability
from eval_harness.agreement.verdicts import TIE, ScoreTable, Verdict

NEEDS = "comes with the extra `eval`"


def verdict(item, preference, models="ab", method="judge", repeat=0, strength=None):
    reason = "no answer" if preference is None else None
    return Verdict(f"q{item}", method, models[0], models[1], preference, reason, repeat, strength)


def simulated(n, *, ability=0.0, first=0.0, length=0.0, ties=0.0, seed=0, method="judge", models=("a", "b")):
    """Return verdicts in both orders of a judge with known log-odds, and the lengths it saw.

    P(second) = logistic(ability of the second model over the first + length * (length 2 - length 1) / 100 - first).
    """
    rng = np.random.default_rng(seed)
    lengths = {f"q{i}": {m: float(rng.integers(50, 400)) for m in models} for i in range(n)}
    found = []
    for item, of_item in lengths.items():
        for one, two in (models, models[::-1]):
            odds = ability * (1 if two == models[1] else -1) - first + length * (of_item[two] - of_item[one]) / 100
            preference = TIE if rng.random() < ties else 1 + int(rng.random() < 1 / (1 + math.exp(-odds)))
            found.append(Verdict(item, method, one, two, preference))
    return found, ScoreTable("length", lengths)


def table(method, rows, **more):
    return ScoreTable(method, {f"q{i}": dict(zip("abcdefgh", row, strict=False)) for i, row in enumerate(rows)}, **more)


# Win rates


def test_win_rate_by_hand():
    # b against a: win, win, tie, loss = 1, 1, 1/2, 0: mean 2.5 / 4 = 0.625.
    # Squares of deviations: 2 * 0.375^2 + 0.125^2 + 0.625^2 = 0.6875; sd = sqrt(0.6875 / 3) = 0.478714;
    # standard error 0.478714 / 2 = 0.239357.
    found = win_rate([verdict(i, p) for i, p in enumerate([2, 2, TIE, 1])], "judge", "b", "a")
    assert (found.wins, found.ties, found.losses) == (2, 1, 1)
    assert found.rate.value == found.bootstrap.value == 0.625
    assert found.standard_error.value == pytest.approx(0.239357, abs=1e-6)
    # Wilson, z = 1.959964: middle (0.625 + 3.841459 / 8) / (1 + 3.841459 / 4) = 1.105182 / 1.960365 = 0.563764;
    # half 1.959964 / 1.960365 * sqrt(0.625 * 0.375 / 4 + 3.841459 / 64) = 0.999796 * 0.344407 = 0.344337
    assert (found.rate.low, found.rate.high) == pytest.approx((0.219427, 0.908101), abs=1e-5)


def test_win_rate_is_alpaca_evals_with_weighed_preferences():
    # alpaca_eval: mean and SEM of preference - 1, here by scipy
    rng = np.random.default_rng(3)
    preferences = rng.uniform(1, 2, 50)
    given = [verdict(i, 1 + int(p > 1.5), strength=float(p)) for i, p in enumerate(preferences)]
    found = win_rate(given, "judge", "b", "a")
    assert found.rate.value == pytest.approx(float(preferences.mean() - 1), abs=1e-12)
    assert found.standard_error.value == pytest.approx(float(reference.sem(preferences)), abs=1e-12)
    assert found.wins == int((preferences > 1.5).sum())


@pytest.mark.parametrize(("wins", "n"), [(0, 5), (3, 7), (50, 80), (9, 9)])
def test_wilson_is_scipys(wins, n):
    expected = reference.binomtest(wins, n).proportion_ci(method="wilson")
    assert wilson(wins / n, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_and_bootstrap_cover():
    # The share of intervals that hold the truth, 0.6, in 300 studies of 60 items with a tenth of ties. With 300
    # studies its standard error is 0.013: an interval of 95 % must not fall far below it.
    rng = np.random.default_rng(11)
    held = np.zeros(2)
    for study in range(300):
        ties = rng.random(60) < 0.1
        values = np.where(ties, 0.5, (rng.random(60) < (0.6 - 0.05) / 0.9).astype(float))
        low, high = wilson(values.mean(), 60)
        boot = bootstrapped(lambda drawn, v=values: v[drawn].mean(), 60, seed=study, draws=200)
        held += [low <= 0.6 <= high, boot.low <= 0.6 <= boot.high]
    assert held[0] / 300 >= 0.92
    assert 0.90 <= held[1] / 300 <= 0.99


def test_relabelling_models_mirrors_the_win_rate():
    given, _ = simulated(60, ability=0.4, first=0.6, ties=0.1, seed=5)
    there, back = (win_rate(given, "judge", *pair) for pair in ("ab", "ba"))
    assert there.rate.value + back.rate.value == pytest.approx(1, abs=1e-12)
    assert (there.wins, there.ties, there.losses) == (back.losses, back.ties, back.wins)
    assert there.rate.low == pytest.approx(1 - back.rate.high, abs=1e-12)
    assert there.standard_error.value == pytest.approx(back.standard_error.value, abs=1e-12)


def test_missing_verdicts_are_counted_and_flagged():
    given = [verdict(i, 2) for i in range(8)] + [verdict(8, None), verdict(9, None)]
    found = win_rate(given, "judge", "b", "a")
    assert (found.rate.n, found.parsed.asked, found.parsed.parsed, found.parsed.reasons) == (8, 10, 8, {"no answer": 2})
    assert not found.parsed.reliable
    assert tables.parsed_row("judge", found.parsed)["reason"] == "unreliable: under 90% of the verdicts were parsed"
    assert win_rate(given[:-1] + [verdict(9, 1)], "judge", "b", "a").parsed.reliable  # 9 of 10
    none = win_rate([verdict(0, None)], "judge", "b", "a")
    assert (none.rate.value, none.rate.why) == (None, "no verdict was parsed")
    one = win_rate([verdict(0, 2)], "judge", "b", "a")
    assert (one.rate.value, one.standard_error.value, one.standard_error.why) == (1.0, None, "one item")


# Order


def test_orders_by_hand():
    # q0: b both times (consistent); q1: the first both times (turns); q2: tie, then b (turns); q3: one order only.
    given = [
        verdict(0, 2), verdict(0, 1, "ba"),
        verdict(1, 1), verdict(1, 1, "ba"),
        verdict(2, TIE), verdict(2, 1, "ba"),
        verdict(3, 2), verdict(3, None, "ba"),
    ]  # fmt: skip
    found = position_bias(given, "judge")
    # First position: (0 + 1) + (1 + 1) + (1/2 + 1) = 4.5 of 6 verdicts; consistent: 1 of 3 comparisons.
    assert (found.both, found.one) == (3, 1)
    assert found.first_position.value == pytest.approx(4.5 / 6)
    assert found.consistency.value == pytest.approx(1 / 3)
    assert (found.parsed.asked, found.parsed.parsed, found.parsed.reliable) == (8, 7, False)
    # Debiased, b: 1, 1/2, (1/2 + 1) / 2 = 3/4: mean 0.75 over three items; q3 counts only in the plain rate.
    fair = debiased_win_rate(given, "judge", "b", "a")
    assert (fair.rate.n, fair.rate.value, fair.wins, fair.ties) == (3, 0.75, 2, 1)
    assert win_rate(given, "judge", "b", "a").rate.value == pytest.approx((1 + 0.5 + 0.75 + 1) / 4)


def test_planted_position_bias_is_exposed():
    biased, _ = simulated(300, ability=0.5, first=2.0, seed=1)
    found = position_bias(biased, "judge")
    assert found.first_position.low > 0.7
    assert found.consistency.high < 0.5
    one_order = [v for v in biased if v.model_1 == "b"]  # b always first
    naive, fair = win_rate(one_order, "judge", "b", "a"), debiased_win_rate(biased, "judge", "b", "a")
    assert naive.rate.value > 0.85
    assert fair.rate.value < 0.65
    honest, lengths = simulated(300, ability=0.5, seed=2)
    clean = position_bias(honest, "judge")
    assert clean.first_position.low < 0.5 < clean.first_position.high
    assert length_bias(biased, "judge", lengths, draws=50).first.low > 1.5


def test_a_judge_that_says_always_first():
    given = [verdict(i, 1, models) for i in range(20) for models in ("ab", "ba")]
    found = position_bias(given, "judge")
    assert (found.first_position.value, found.consistency.value) == (1.0, 0.0)
    assert debiased_win_rate(given, "judge", "b", "a").rate.value == 0.5


# Length


def test_planted_length_bias_is_exposed_and_measured():
    given, lengths = simulated(400, ability=0.3, first=0.4, length=0.8, seed=4)
    found = length_bias(given, "judge", lengths, draws=50)
    assert found.longer.low > 0.6
    assert found.correlation.low > 0.3
    # Within three standard errors of what was planted, and not near 0.
    for figure, planted in ((found.effect, 0.8 * found.spread / 100), (found.first, 0.4)):
        error = (figure.high - figure.low) / (2 * 1.96)
        assert abs(figure.value - planted) < 3 * error
        assert figure.low > 0
    honest, lengths = simulated(400, ability=0.3, first=0.4, seed=6)
    clean = length_bias(honest, "judge", lengths, draws=50)
    for figure, fair in ((clean.longer, 0.5), (clean.correlation, 0), (clean.effect, 0)):
        assert abs(figure.value - fair) < 3 * (figure.high - figure.low) / (2 * 1.96)
        assert figure.low < fair + 0.05


def test_length_is_told_from_the_better_model():
    # c is better and longer; the judge does not look at length. Shares call it length bias, the regression does not.
    rng = np.random.default_rng(8)
    lengths = {f"q{i}": {"a": rng.normal(100, 40), "c": rng.normal(180, 40)} for i in range(400)}
    given = []
    for item in lengths:
        for one, two in ("ac", "ca"):
            given.append(Verdict(item, "judge", one, two, 1 + int(rng.random() < (0.8 if two == "c" else 0.2))))
    found = length_bias(given, "judge", ScoreTable("length", lengths), draws=100)
    assert found.longer.low > 0.6
    assert found.correlation.low > 0.2
    assert found.effect.low < 0 < found.effect.high


def test_regression_is_sklearns():
    linear = pytest.importorskip("sklearn.linear_model", reason=NEEDS)
    given, lengths = simulated(300, ability=0.3, first=0.4, length=0.5, seed=9)
    found = length_bias(given, "judge", lengths, draws=0)
    longer = np.asarray([lengths.scores[v.item][v.model_2] - lengths.scores[v.item][v.model_1] for v in given])
    design = np.column_stack([longer / found.spread, [1.0 if v.model_2 == "b" else -1.0 for v in given]])
    fit = linear.LogisticRegression(C=1e9, tol=1e-10, max_iter=1000).fit(design, [v.preference for v in given])
    assert found.effect.value == pytest.approx(fit.coef_[0, 0], abs=1e-3)
    assert found.first.value == pytest.approx(-fit.intercept_[0], abs=1e-3)


def test_interval_of_the_length_effect_covers():
    held = 0
    for seed in range(60):
        given, lengths = simulated(80, ability=0.5, length=0.5, seed=seed)
        found = length_bias(given, "judge", lengths, draws=0)
        held += found.effect.low <= 0.5 * found.spread / 100 <= found.effect.high
    assert held >= 51  # 57 expected, standard error 1.7


@pytest.mark.parametrize(
    ("preference", "lengths", "words"),
    [
        (lambda one, two: 1 + int(two > one), None, "predict every verdict"),
        (lambda one, two: 1, lambda i: (50.0, 60.0), "one length difference"),
        (lambda one, two: 1, lambda i: (50.0, 50.0), "one length difference|all the same"),
    ],
)
def test_length_effects_that_have_no_value_say_why(preference, lengths, words):
    rng = random.Random(0)
    sizes = {f"q{i}": lengths(i) if lengths else (rng.random(), rng.random()) for i in range(30)}
    given = []
    for item, (a, b) in sizes.items():
        given.append(Verdict(item, "judge", "a", "b", preference(a, b)))
        given.append(Verdict(item, "judge", "b", "a", preference(b, a)))
    known = ScoreTable("length", {item: dict(zip("ab", size, strict=True)) for item, size in sizes.items()})
    found = length_bias(given, "judge", known, draws=20)
    assert found.effect.value is None
    assert any(word in found.effect.why for word in words.split("|"))


def test_models_always_in_one_place_cannot_be_told_from_it():
    given, lengths = simulated(40, length=0.3, seed=1)
    found = length_bias([v for v in given if v.model_1 == "a"], "judge", lengths, draws=20)
    assert "same place" in found.effect.why
    nothing = length_bias(given, "judge", ScoreTable("length", {}))
    assert (nothing.verdicts, nothing.no_length, nothing.effect.why) == (0, 80, "no verdict with both lengths known")


# Agreement


def test_kappa_by_hand():
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: observed (20 + 15) / 50 = 0.7;
    # expected 25/50 * 30/50 + 25/50 * 20/50 = 0.5; (0.7 - 0.5) / (1 - 0.5) = 0.4
    assert kappa(np.array([[20, 5], [10, 15]])) == pytest.approx(0.4)
    # Three categories, linear: [[2, 1, 0], [0, 1, 1], [0, 0, 1]], rows 3 2 1, columns 2 2 2, n = 6.
    # Observed disagreement 1 + 1 = 2; expected 3 (0 + 2 + 4) / 6 + 2 (2 + 0 + 2) / 6 + 1 (4 + 2 + 0) / 6 = 32 / 6;
    # 1 - 12 / 32 = 0.625. Quadratic: expected 3 (2 + 8) + 2 (2 + 2) + (8 + 2) = 48, 1 - 2 * 6 / 48 = 0.75.
    counts = np.array([[2, 1, 0], [0, 1, 1], [0, 0, 1]])
    assert kappa(counts, "linear") == pytest.approx(0.625)
    assert kappa(counts, "quadratic") == pytest.approx(0.75)
    # Unweighted: observed 4/6, expected (6 + 4 + 2) / 36 = 1/3: 1/2
    assert kappa(counts) == pytest.approx(0.5)


def test_kappa_without_a_value_says_why():
    assert kappa(np.zeros((3, 3))) == Undefined("no unit that both rated")
    assert kappa(np.diag([5, 0, 0])) == Undefined("both gave every unit the same category")
    assert kappa(np.array([[3, 2], [0, 0]])) == 0  # one rater constant: no better than chance, and defined
    with pytest.raises(KeyError, match="Did you mean 'linear'"):
        kappa(np.eye(2), "lineer")


@pytest.mark.parametrize("weights", ["none", "linear", "quadratic"])
def test_kappa_is_sklearns(weights):
    metrics = pytest.importorskip("sklearn.metrics", reason=NEEDS)
    rng = np.random.default_rng(1)
    ours = rng.integers(-1, 2, 200)
    theirs = np.where(rng.random(200) < 0.5, ours, rng.integers(-1, 2, 200))
    first = {(f"q{i}", "a", "b"): int(v) for i, v in enumerate(ours)}
    second = {(f"q{i}", "a", "b"): int(v) for i, v in enumerate(theirs)}
    weighting = "linear" if weights == "none" else weights
    found = pair_agreement(("x", first), ("y", second), weights=weighting, draws=100)
    figure = found.kappa if weights == "none" else found.weighted
    expected = metrics.cohen_kappa_score(ours, theirs, weights=None if weights == "none" else weights)
    assert figure.value == pytest.approx(expected, abs=1e-12)
    assert figure.low < figure.value < figure.high


def test_swapping_methods_is_symmetric():
    given, _ = simulated(80, ability=0.5, ties=0.2, seed=1, method="x")
    more, _ = simulated(90, ability=0.5, ties=0.2, seed=2, method="y")
    x, y = (("x", labels(given, "x")), ("y", labels(more, "y")))
    there, back = pair_agreement(x, y, draws=100), pair_agreement(y, x, draws=100)
    assert (there.only_first, there.only_second) == (0, 10) == (back.only_second, back.only_first)
    for name in ("percent", "kappa", "weighted"):
        a, b = getattr(there, name), getattr(back, name)
        assert (a.n, a.value, a.low, a.high) == pytest.approx((b.n, b.value, b.low, b.high), abs=1e-12)


def test_agreement_with_nothing_in_common():
    found = pair_agreement(("x", {("q1", "a", "b"): 1}), ("y", {("q2", "a", "b"): 1}))
    assert (found.only_first, found.only_second) == (1, 1)
    assert {found.percent.why, found.kappa.why, found.weighted.why} == {"no unit that both rated"}


# Krippendorff (2011), "Computing Krippendorff's alpha-reliability", section C: four observers, twelve units,
# missing ratings; nominal alpha 0.743, ordinal 0.815, interval 0.849.
PUBLISHED = (
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
)


def published():
    return {
        f"observer {row}": {(f"u{unit}",): int(value) for unit, value in enumerate(line.split()) if value != "."}
        for row, line in enumerate(PUBLISHED)
    }


@pytest.mark.parametrize(("level", "value"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_is_krippendorffs_published_example(level, value):
    found = alpha(published(), level, draws=100)
    assert found.n == 11  # the last unit has one rating
    assert found.value == pytest.approx(value, abs=5e-4)
    assert found.low < found.value < found.high


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
def test_alpha_is_the_librarys(level):
    library_ = pytest.importorskip("krippendorff", reason="a check only: it is under the GPL")
    rng = np.random.default_rng(0)
    data = rng.choice([1, 2, 4, 5], (4, 40)).astype(float)
    data[rng.random(data.shape) < 0.4] = np.nan
    ratings = {
        f"r{r}": {(f"u{u}",): float(v) for u, v in enumerate(row) if not np.isnan(v)} for r, row in enumerate(data)
    }
    expected = library_.alpha(reliability_data=data, level_of_measurement=level)
    assert alpha(ratings, level, draws=0).value == pytest.approx(expected, abs=1e-12)


def test_alpha_by_hand():
    # Two raters, four units: (1 1) (1 -1) (-1 -1) (1 .). Three pairable units, six values: 1 three times, -1 three.
    # Observed disagreement: 2 of 6 ordered pairs = 1/3. Expected: 2 * 3 * 3 / (6 * 5) = 0.6. 1 - (1/3) / 0.6 = 4/9
    x = {("q0",): 1, ("q1",): 1, ("q2",): -1, ("q3",): 1}
    y = {("q0",): 1, ("q1",): -1, ("q2",): -1}
    found = alpha({"x": x, "y": y}, draws=0)
    assert (found.n, found.value) == (3, pytest.approx(4 / 9))


def test_alpha_without_a_value_says_why():
    assert alpha({"x": {("q0",): 1}, "y": {("q1",): 1}}).why == "no unit has two ratings"
    assert alpha({"x": {("q0",): 1}, "y": {("q0",): 1}}).why == "all ratings are the same"
    with pytest.raises(KeyError, match="Unknown level of measurement 'ratio'"):
        alpha({}, "ratio")


def test_repeats_by_hand():
    # q0: first, first, second: 1 of 3 pairs agree; q1: tie, tie: 1; q2 has one parsed verdict. Mean (1/3 + 1) / 2.
    given = [verdict(0, p, repeat=r) for r, p in enumerate([1, 1, 2])] + [verdict(1, TIE), verdict(1, TIE, repeat=1)]
    given += [verdict(2, 1), verdict(2, None, repeat=1)]
    found = repeat_consistency(given, "judge")
    assert (found.n, found.value) == (2, pytest.approx(2 / 3))
    assert repeat_consistency([verdict(0, 1)], "judge").why == "no comparison was judged twice in the same order"


def test_a_missing_library_is_named_with_its_remedy():
    with pytest.raises(
        ImportError, match=r"The ranking needs the library 'no_such_library'.*pip install 'ledpo-plugin"
    ):
        library("no_such_library", "The ranking")


# Correlation


def test_tau_b_with_ties_by_hand():
    # x = 1 2 2 3, y = 1 2 3 3. Six pairs: (1,2) + (1,3) + (1,4) + (2,3) tied in x, (2,4) +, (3,4) tied in y.
    # 4 concordant, 0 discordant; not tied in x: 5, in y: 5. tau-b = 4 / sqrt(5 * 5) = 0.8
    assert correlate([1, 2, 2, 3], [1, 2, 3, 3], "kendall") == pytest.approx(0.8)
    # Mid-ranks 1 2.5 2.5 4 and 1 2 3.5 3.5: products of deviations 2.25 + 0 + 0 + 1.5 = 3.75; both squares 4.5
    # and 2.25 + 0.25 + 1 + 1 = 4.5: 3.75 / 4.5 = 0.8333
    assert correlate([1, 2, 2, 3], [1, 2, 3, 3], "spearman") == pytest.approx(3.75 / 4.5)


def test_correlations_without_a_value_say_why():
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no NaN with a warning
        assert correlate([1, 1, 1], [1, 2, 3], "kendall", ("judge", "human")) == Undefined("judge does not vary")
        assert correlate([1, 1, 1], [2, 2, 2], "spearman", ("x", "y")) == Undefined("x and y do not vary")
        assert correlate([1, 2], [1, 2], "spearman") == Undefined("2 values are too few for a correlation")
    with pytest.raises(KeyError, match="Did you mean 'kendall'"):
        correlate([1, 2, 3], [1, 2, 3], "kendal")


def correlated(n=60, models=4, noise=0.5, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(n, models)) + np.arange(models) * 0.3
    return align([table("x", truth), table("y", truth + noise * rng.normal(size=truth.shape))])


@pytest.mark.parametrize("kind", ["spearman", "kendall"])
def test_correlation_over_examples_and_models(kind):
    aligned = correlated()
    x, y = aligned.values["x"], aligned.values["y"]
    compute = reference.spearmanr if kind == "spearman" else reference.kendalltau
    one = per_example(aligned, "x", "y", kind=kind, model="b", draws=100)
    assert one.value == pytest.approx(compute(x[:, 1], y[:, 1]).statistic)
    assert (one.n, one.low < one.value < one.high) == (60, True)
    assert per_example(aligned, "x", "y", kind=kind, draws=20).value > 0.5
    overall = per_model(aligned, "x", "y", kind=kind, draws=100)
    assert overall.value == pytest.approx(compute(x.mean(axis=0), y.mean(axis=0)).statistic)
    for call in (per_example, per_model):
        there, back = (call(aligned, *names, kind=kind, draws=50) for names in (("x", "y"), ("y", "x")))
        assert (there.value, there.low, there.high) == pytest.approx((back.value, back.low, back.high))


def test_differences_do_not_depend_on_the_models_names():
    aligned = correlated(models=3)
    turned = align([ScoreTable(m, {i: dict(zip("cba", r, strict=True)) for i, r in zip(aligned.items, v, strict=True)})
                    for m, v in aligned.values.items()], models=tuple("abc"))  # fmt: skip
    there, back = (per_example(found, "x", "y", draws=20).value for found in (aligned, turned))
    assert there == pytest.approx(back)


def test_correlation_over_few_models():
    aligned = correlated(models=3)
    found = per_model(aligned, "x", "y", over="models", draws=200)
    assert found.value is not None
    assert found.low is None
    assert "draws of the models" in found.why
    assert per_model(correlated(models=2), "x", "y").why == "2 models are too few for a correlation"
    assert per_model(correlated(models=9, n=5), "x", "y", over="models", draws=200).low is not None
    empty = align([table("x", [[1, 2, 3]]), ScoreTable("y", {"other": {"a": 1, "b": 2, "c": 3}})])
    assert per_model(empty, "x", "y").why == "no items"
    assert per_example(empty, "x", "y").why == "0 items are too few for a correlation"


def test_the_interval_of_a_correlation_covers():
    # Normal pairs with Pearson's 0.6: Kendall's tau is 2 / pi * arcsin(0.6) = 0.4097
    truth, held, rng = 2 / math.pi * math.asin(0.6), 0, np.random.default_rng(2)
    for study in range(60):
        x = rng.normal(size=50)
        rows = np.column_stack([x, 0.6 * x + 0.8 * rng.normal(size=50)])
        aligned = align([table("x", rows[:, :1]), table("y", rows[:, 1:])])
        found = per_example(aligned, "x", "y", kind="kendall", model="a", seed=study, draws=100)
        held += found.low <= truth <= found.high
    assert held >= 51  # 57 expected, standard error 1.7


# Ranking


def test_bradley_terry_by_hand():
    pytest.importorskip("evalica", reason=NEEDS)
    # Strengths 1, 2, 4 with twelve comparisons a pair: a-b 4:8, b-c 4:8; a-c is 1:4, so 15 comparisons, 3:12.
    # These counts are the expected ones, so the likelihood is greatest there: log 1, log 2, log 4 less their mean,
    # -log 2, 0, log 2.
    found = strengths(np.array([[0, 4, 3], [8, 0, 4], [12, 8, 0]]))
    assert found == pytest.approx([-math.log(2), 0, math.log(2)], abs=1e-5)


def test_two_models_by_hand():
    pytest.importorskip("evalica", reason=NEEDS)
    # b wins 5, ties 2, loses 1: 6 to 2, log-odds log 3, halved about the mean.
    given = [verdict(i, p) for i, p in enumerate([2] * 5 + [TIE] * 2 + [1])]
    found = bradley_terry(given, "judge", draws=0)
    assert [(row.model, row.rank) for row in found.rows] == [("b", 1), ("a", 2)]
    assert [row.figure.value for row in found.rows] == pytest.approx([math.log(3) / 2, -math.log(3) / 2], abs=1e-6)


def test_bradley_terry_is_the_greatest_likelihood():
    pytest.importorskip("evalica", reason=NEEDS)
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(0)
    wins = rng.integers(1, 30, (5, 5)).astype(float)
    np.fill_diagonal(wins, 0)
    fit = optimize.minimize(lambda s: (wins * np.logaddexp(0, s[None, :] - s[:, None])).sum(), np.zeros(5), tol=1e-10)
    assert strengths(wins) == pytest.approx(fit.x - fit.x.mean(), abs=1e-4)


def test_bradley_terry_without_a_maximum_says_why():
    given = [verdict(i, 2) for i in range(5)]  # b always wins
    found = bradley_terry(given, "judge")
    assert [(row.rank, row.figure.value) for row in found.rows] == [(None, None)] * 2
    assert "never lose" in found.rows[0].figure.why


def round_robin(n=40, seed=0, models="abc", method="judge"):
    rng = np.random.default_rng(seed)
    found = []
    for item in range(n):
        quality = rng.normal(size=len(models)) + np.arange(len(models)) * 0.8
        for i, one in enumerate(models):
            for j in range(i + 1, len(models)):
                found.append(Verdict(f"q{item}", method, one, models[j], 1 + int(quality[j] > quality[i])))
    return found


def test_rankings_of_a_round_robin():
    given = round_robin()
    by_mean = rank_by_mean(gain_table(given, "judge"))
    assert [(row.model, row.rank) for row in by_mean.rows] == [("c", 1), ("b", 2), ("a", 3)]
    assert sum(row.figure.value for row in by_mean.rows) == pytest.approx(1.5)  # every comparison gives 1 in all
    against = [v for v in given if "a" in (v.model_1, v.model_2)]
    baseline = rank_by_mean(gain_table(against, "judge", against="a"))
    assert baseline.rows[-1].figure.value == 0.5
    assert baseline.rows[0].figure.value == win_rate(given, "judge", "c", "a").rate.value
    pytest.importorskip("evalica", reason=NEEDS)
    strong = bradley_terry(given, "judge", draws=30)
    assert [row.model for row in strong.rows] == ["c", "b", "a"]
    assert strong.rows[0].figure.low < strong.rows[0].figure.value < strong.rows[0].figure.high


def test_incomplete_items_are_left_out_of_a_round_robin_with_the_reason():
    given = [v for v in round_robin(3) if (v.item, v.model_1, v.model_2) != ("q1", "a", "c")]
    found = gain_table(given, "judge")
    assert list(found.scores) == ["q0", "q2"]
    assert found.missing["q1", "b"] == "not every pair of models has a verdict"
    assert align([found]).lost[0].incomplete == 1


def test_places_share_the_better_rank():
    assert places([0.3, 0.1 + 0.2, 0.9]) == [2, 2, 1]


def test_lower_can_be_better():
    perplexity = table("perplexity", [[10.0, 12.0], [11.0, 14.0]], higher_is_better=False)
    found = rank_by_mean(perplexity)
    assert [(row.model, row.rank, row.figure.value) for row in found.rows] == [("a", 1, 10.5), ("b", 2, 13.0)]
    assert found.rows[0].figure.low == 10.0


def test_choice_and_regret_by_hand():
    choosing, judging = halves(4)
    # By people a is best where models are chosen, b where they are judged.
    first, second = [1.0, 0.0, 0.5], [0.0, 0.75, 0.25]
    rows = [first if place in choosing else second for place in range(4)]
    human, longest = table("human", rows), table("length", [[1, 5, 2]] * 4)  # b
    tied = table("tied", [[0, 1, 1]] * 4)  # b and c
    found = {choice.method: choice for choice in choices(align([human, longest, tied]), "human")}
    assert [len(judging), found["length"].chosen_on, found["length"].regret.n] == [2, 2, 2]
    assert (found["human"].chosen, found["human"].regret.value) == (("a",), 0)
    assert (found["length"].chosen, found["length"].regret.value) == (("b",), -0.75)  # 0 - 0.75: a better choice
    assert (found["tied"].chosen, found["tied"].regret.value) == (("b", "c"), -0.5)  # 0 - (0.75 + 0.25) / 2
    one = choices(align([table("human", [first]), table("length", [[1, 5, 2]])]), "human")
    assert {choice.regret.why for choice in one} == {"one item cannot both choose and judge"}
    with pytest.raises(ValueError, match="'people' is none of the methods"):
        choices(align([human]), "people")


def test_stability_of_models_that_are_far_apart_and_near():
    rng = np.random.default_rng(0)
    far = table("far", rng.normal(size=(100, 3)) * 0.1 + [0, 1, 2])
    near = table("near", rng.normal(size=(100, 3)) + [0, 0.01, 0.02])
    assert stability(far, subsets=200).enough == Figure(100, 1.0)
    found = stability(near, subsets=200)
    assert found.enough.value is None or found.enough.value > 80
    assert found.curve[-1].same == 1.0
    assert found.curve[-1].tau.value == pytest.approx(1)
    taus = [point.tau.value for point in found.curve]
    assert taus[0] < taus[-1]


def test_stability_by_hand():
    # Four prompts, b - a = 3, -1, 1, 1: over all b leads. One prompt: b leads in 3 of 4 subsets (75 %). Two prompts:
    # sums 2, 4, 4, 0, 0, 2: b leads in 4 of 6, ties in 2. Three: sums 3, 3, 5, 1: always.
    found = stability(table("x", [[0, 3], [0, -1], [0, 1], [0, 1]]), subsets=4000)
    assert {p.n: p.same for p in found.curve} == pytest.approx({1: 0.75, 2: 4 / 6, 3: 1, 4: 1}, abs=0.03)
    assert found.enough.value == 3
    by_n = {point.n: point.tau for point in found.curve}
    assert by_n[1].value == pytest.approx(0.5, abs=0.05)  # 3/4 - 1/4
    assert by_n[2].value == pytest.approx(1)  # of the subsets that rank at all ...
    assert "are left out" in by_n[2].why  # ... and the others are counted


def test_tau_of_the_curve_is_scipys():
    rng = np.random.default_rng(1)
    values = rng.integers(0, 3, (6, 5)).astype(float)
    found = stability(table("x", values), subsets=1, seed=7)
    order = np.random.default_rng(7).permuted(np.tile(np.arange(6), (1, 1)), axis=1)[0]
    for point in found.curve:
        expected = reference.kendalltau(values[order[: point.n]].mean(axis=0), values.mean(axis=0)).statistic
        assert point.tau.value == pytest.approx(expected)


def test_stability_needs_two_of_everything():
    assert stability(table("x", [[1.0], [2.0]])).enough.why == "1 models have no ranking"
    assert stability(table("x", [[1.0, 2.0]])).enough.why == "1 complete items are too few"
    with pytest.raises(ValueError, match="give 1 or more"):
        stability(table("x", [[1.0, 2.0]]), subsets=0)


# Data


def test_verdicts_hold_together():
    with pytest.raises(ValueError, match="none of 1, 2, 'tie'"):
        Verdict("q", "judge", "a", "b", 3)
    with pytest.raises(ValueError, match="give a reason where there is no"):
        Verdict("q", "judge", "a", "b", None)
    with pytest.raises(ValueError, match="compare two different models"):
        Verdict("q", "judge", "a", "a", 1)
    with pytest.raises(ValueError, match="give 1 to 2"):
        Verdict("q", "judge", "a", "b", 1, strength=0.5)
    with pytest.raises(ValueError, match="'c' is not in it"):
        verdict(0, 1).gain("c")
    with pytest.raises(ValueError, match="not finite in 1 cells"):
        ScoreTable("x", {"q": {"a": math.nan}})
    with pytest.raises(ValueError, match="more than once"):
        of_method([verdict(0, 1), verdict(0, 2)], "judge")
    with pytest.raises(ValueError, match=r"name one of the methods \['judge'\]"):
        of_method([verdict(0, 1)], "human")
    with pytest.raises(ValueError, match="Give None and the reason"):
        Figure(1, math.nan)
    with pytest.raises(ValueError, match="Say in `why`"):
        Figure(1, None)


def test_orders_weigh_alike_in_a_comparison():
    # b in the first order three times, a in the other once: 1/2 and no 3/4
    given = [verdict(0, 2, repeat=r) for r in range(3)] + [verdict(0, 2, "ba")]
    assert gains(given, "judge") == {("q0", "a", "b"): 0.5}


def test_majority_by_hand():
    # q0: b b a -> b; q1: a b -> tie; q2: tie tie a -> tie
    votes = {"q0": [2, 2, 1], "q1": [1, 2], "q2": [TIE, TIE, 1]}
    given = [Verdict(q, f"person {i}", "a", "b", p) for q, own in votes.items() for i, p in enumerate(own)]
    found = majority(given, ["person 0", "person 1", "person 2"], "people")
    assert [(v.item, v.preference) for v in found] == [("q0", 2), ("q1", TIE), ("q2", TIE)]


def test_alignment_counts_what_is_lost():
    x = table("x", [[1, 2], [3, 4], [5, 6], [7, 8]])
    y = ScoreTable(
        "y", {"q0": {"a": 1, "b": 1, "c": 1}, "q1": {"a": 1, "c": 1}, "q3": {"b": 2, "a": 1}},
        missing={("q1", "b"): "timed out"},
    )  # fmt: skip
    found = align([x, y])
    assert (found.items, found.models) == (("q0", "q3"), ("a", "b"))
    assert found.values["y"].tolist() == [[1, 1], [1, 2]]
    of_x, of_y = found.lost
    assert (of_x.items, of_x.kept, of_x.incomplete, of_x.elsewhere) == (4, 2, 0, 2)
    assert (of_y.items, of_y.kept, of_y.incomplete, of_y.elsewhere) == (3, 2, 1, 0)
    assert (of_y.models, of_y.reasons) == (("c",), {"timed out": 1})
    with pytest.raises(ValueError, match="'c' with 'x'"):
        align([x, y], models=("a", "c"))
    with pytest.raises(ValueError, match="another method"):
        align([x, x])


def test_verdicts_are_read_from_every_format(tmp_path):
    rows = [
        {"item": "q0", "method": "judge", "model_1": "a", "model_2": "b", "preference": 1},
        {"item": "q1", "method": "judge", "model_1": "a", "model_2": "b", "preference": "TIE"},
        {"item": "q2", "method": "judge", "model_1": "a", "model_2": "b", "preference": None, "reason": "timed out"},
        {"item": "q2", "method": "judge", "model_1": "a", "model_2": "b", "preference": 1.8, "repeat": 1},
    ]
    (tmp_path / "v.json").write_text(json.dumps(rows))
    (tmp_path / "v.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    (tmp_path / "v.csv").write_text(
        "item,method,model_1,model_2,preference,reason,repeat\n"
        "q0,judge,a,b,1,,\nq1,judge,a,b,tie,,0\nq2,judge,a,b,,timed out,\nq2,judge,a,b,1.8,,1\n"
    )
    expected = [
        verdict(0, 1), verdict(1, TIE), Verdict("q2", "judge", "a", "b", None, "timed out"),
        verdict(2, 2, repeat=1, strength=1.8),
    ]  # fmt: skip
    for name in ("v.json", "v.jsonl", "v.csv"):
        assert read_verdicts(tmp_path / name) == expected


def test_alpaca_evals_annotations_are_read(tmp_path):
    rows = [
        {"instruction": f"q{i}", "generator_1": "base", "generator_2": "new", "annotator": "gpt", "preference": p}
        for i, p in enumerate([1.2, 2.0, 1.5, 0, math.nan])
    ]
    (tmp_path / "annotations.json").write_text(json.dumps(rows))
    found = read_verdicts(tmp_path / "annotations.json", columns=ALPACA_EVAL)
    assert [v.second_gain for v in found] == pytest.approx([0.2, 1.0, 0.5, 0.5, None])
    assert found[-1].reason == "no reason given in the file"


def test_annotators_exports_are_read(tmp_path):
    rows = [
        {"item_id": f"q{i}", "generator_1": "a", "generator_2": "b", "annotator": "ann", "verdict": v, "left": left}
        for i, (v, left) in enumerate([("1", "1"), ("1", "2"), ("tie", "2"), ("2", None)])
    ]
    (tmp_path / "export.json").write_text(json.dumps(rows))
    found = read_verdicts(tmp_path / "export.json", columns=ANNOTATION)
    assert [(v.model_1, v.preference) for v in found] == [("a", 1), ("b", 2), ("b", TIE), ("a", 2)]
    assert [v.gain("a") for v in found] == [1, 1, 0.5, 0]
    (tmp_path / "export.json").write_text(json.dumps([rows[0] | {"left": "left"}]))
    with pytest.raises(DataError, match="1 or 2 is expected here"):
        read_verdicts(tmp_path / "export.json", columns=ANNOTATION)


def test_every_problem_of_a_file_is_said(tmp_path):
    rows = [
        {"item": "q0", "method": "judge", "model_1": "a", "model_2": "a", "preference": 3},
        {"item": "", "method": "jugde", "model_1": "a", "model_2": "b", "preference": True},
        {"item": "q1", "method": "judge", "model_1": "a", "model_2": "b", "preference": 1, "repeat": 0.5},
        {"item": "q1", "method": "judge", "model_1": "a", "model_2": "b", "preference": 1},
        {"item": "q2", "preference": 1},
        "text",
    ]
    (tmp_path / "v.json").write_text(json.dumps(rows))
    with pytest.raises(DataError) as caught:
        read_verdicts(tmp_path / "v.json", methods=["judge"])
    text = str(caught.value)
    assert len(caught.value.problems) == 9
    for words in (
        "9 problems; nothing of it was used",
        "record 1, model_2: 'a' -> it is model_1 too. Fix: compare two different models.",
        "record 1, preference: 3",
        "record 2, item: ''",
        "Did you mean 'judge'",
        "record 2, preference: True",
        "record 3, repeat: 0.5",
        "record 3 has the same item, method, models and repeat",
        "the fields method, model_1, model_2 are missing",
        "record 6: 'text'",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("v.json", "", "it has no record"),
        ("v.json", "[]", "it has no record"),
        ("v.json", "[{", "it is no JSON"),
        ("v.json", "{}", "a list of objects is expected"),
        ("v.jsonl", '{"item": 1\n', "line 1"),
        ("v.csv", "item,method\nq,judge\nq,judge\n", "has 1 problem;"),
        ("v.csv", "item,method,model_1,model_2,preference\nq,judge,a,b,1,2,3\n", "another number of fields"),
        ("v.csv", 'item,method,model_1,model_2,preference\n"q,judge,a,b,1\n', "it is no CSV"),
        ("v.xml", "<a/>", "this kind of file is not read"),
    ],
)
def test_bad_files(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=words):
        read_verdicts(tmp_path / name)


def test_files_that_cannot_be_opened(tmp_path):
    (tmp_path / "latin.csv").write_bytes("item\nGrüße".encode("latin-1"))
    for name in ("latin.csv", "absent.csv"):
        with pytest.raises(DataError, match="it cannot be read"):
            read_verdicts(tmp_path / name)


def test_a_file_that_is_wrong_everywhere_does_not_fill_the_screen(tmp_path):
    (tmp_path / "v.json").write_text(json.dumps([1] * 500))
    with pytest.raises(DataError, match="and 450 more") as caught:
        read_verdicts(tmp_path / "v.json")
    assert len(caught.value.problems) == 500


def test_scores_are_read(tmp_path):
    (tmp_path / "s.csv").write_text(
        "item,method,model,value,reason\nq0,ppl,a,3.5,\nq0,ppl,b,nan,out of memory\nq0,acc,a,1,\nq0,acc,b,0,\n"
    )
    ppl, acc = read_scores(tmp_path / "s.csv", lower_is_better=["ppl"])
    assert (ppl.scores, ppl.missing, ppl.higher_is_better) == (
        {"q0": {"a": 3.5}}, {("q0", "b"): "out of memory"}, False,
    )  # fmt: skip
    assert acc.higher_is_better
    assert cells(acc) == {("q0", "a"): 1.0, ("q0", "b"): 0.0}
    with pytest.raises(DataError, match="Did you mean 'ppl'"):
        read_scores(tmp_path / "s.csv", lower_is_better=["pppl"])
    (tmp_path / "bad.csv").write_text("item,method,model,value\nq0,ppl,a,inf\nq0,ppl,a,x\n")
    with pytest.raises(DataError, match="3 problems"):
        read_scores(tmp_path / "bad.csv")


# Rows


def test_rows_are_plain_json_with_a_value_or_a_reason():
    given, lengths = simulated(12, seed=1)
    again = [verdict(i, 1, method="other") for i in range(12)]
    aligned = align([gain_table(given, "judge"), gain_table(again, "other")])
    rows = [
        *tables.win_rate_rows(win_rate(given, "judge", "b", "a")),
        *tables.win_rate_rows(debiased_win_rate(again, "other", "b", "a"), "debiased_win_rate"),
        *tables.position_rows(position_bias(given, "judge")),
        *tables.position_rows(position_bias(again, "other")),
        *tables.length_rows(length_bias(given, "judge", lengths, draws=20)),
        *tables.length_rows(length_bias(again, "other", lengths, draws=20)),
        *tables.agreement_rows(
            pair_agreement(("judge", labels(given, "judge")), ("other", labels(again, "other")), draws=20)
        ),
        *tables.ranking_rows(rank_by_mean(gain_table(given, "judge"))),
        *tables.ranking_rows(bradley_terry(again, "other")),
        *tables.stability_rows(stability(gain_table(given, "judge"), subsets=20)),
        *tables.choice_rows(choices(aligned, "judge")),
        *tables.lost_rows(aligned.lost),
        tables.figure_row("spearman", per_example(aligned, "judge", "other", draws=20), first="judge", second="other"),
    ]
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    for row in rows:
        assert {"name", "n", "value", "low", "high", "reason"} <= row.keys()
        assert row["value"] is not None or row["reason"], row


def test_everything_is_seeded():
    given, _ = simulated(30, seed=3)
    ours, theirs = (("x", labels(given, "judge")), ("y", labels(round_robin(30, models="ab"), "judge")))
    assert pair_agreement(ours, theirs, draws=50) == pair_agreement(ours, theirs, draws=50)
    assert pair_agreement(ours, theirs, draws=50) != pair_agreement(ours, theirs, draws=50, seed=1)
