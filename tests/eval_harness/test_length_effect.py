"""Length and win rates: what is reported beside them, and why nothing is taken off them without AlpacaEval's data."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from eval_harness.agreement.length_bias import length_bias, length_effect
from eval_harness.agreement.verdicts import TIE, ScoreTable, Verdict

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


def test_length_effect_by_hand():
    # ours is longer by 10, 30 and -5, and once the same text; a fourth item has one order only.
    lengths = {"q0": (10, 20), "q1": (10, 40), "q2": (20, 15), "q3": (7, 7), "q4": (1, 2)}
    table = ScoreTable("length", {item: {"base": float(a), "ours": float(b)} for item, (a, b) in lengths.items()})
    said = {"q0": (2, 1), "q1": (2, 2), "q2": (1, 1), "q3": (TIE, TIE), "q4": (2, None)}
    given = []
    for item, (one, two) in said.items():
        same = item == "q3"
        given.append(Verdict(item, "judge", "base", "ours", one, same_text=same))
        given.append(Verdict(item, "judge", "ours", "base", two, None if two else "no answer", same_text=same))
    found = length_effect(given, "judge", "ours", "base", table)
    assert (found.longer_by.n, found.longer_by.value) == (3, pytest.approx(35 / 3))
    assert (found.where_longer.n, found.where_longer.value) == (2, 0.75)  # 1 and, turned, 1/2
    assert (found.where_shorter.n, found.where_shorter.value) == (1, 0.5)  # turned
    turned = length_effect(given, "judge", "base", "ours", table)
    assert (turned.longer_by.value, turned.where_longer.value) == (pytest.approx(-35 / 3), 0.5)
    nothing = length_effect(given[6:8], "judge", "ours", "base", table)
    assert nothing.longer_by.why == "no item on which both orders were judged and both lengths are known"


def test_the_planted_effect_of_length_is_reported():
    """Log-odds of 0.8 a unit of length: the reported effect is within three standard errors, and far from none."""
    rng = np.random.default_rng(0)
    given, scores = [], {}
    for i in range(600):
        lead = rng.normal(0.5, 1)
        scores[f"q{i}"] = {"base": 0.0, "ours": lead}
        for one, two, sign in (("base", "ours", 1), ("ours", "base", -1)):
            second = rng.random() < expit(sign * (0.2 + 0.8 * lead))
            given.append(Verdict(f"q{i}", "judge", one, two, 2 if second else 1, same_text=False))
    table = ScoreTable("length", scores)
    bias = length_bias(given, "judge", table, draws=20)
    error = (bias.effect.high - bias.effect.low) / (2 * 1.96)
    assert abs(bias.effect.value - 0.8 * bias.spread) < 3 * error
    assert bias.effect.low > 0
    found = length_effect(given, "judge", "ours", "base", table)
    assert found.where_longer.low > found.where_shorter.high
    assert found.longer_by.value == pytest.approx(0.5, abs=0.15)


def test_the_withdrawn_regression_is_right_about_taste_and_wrong_about_worth():
    """The same verdicts, read two ways: what the regression takes off is taste in one world and worth in the other."""
    simulation = pytest.importorskip("length_control")
    rng = np.random.default_rng(1)
    apart = rng.normal(1, 1, 600)
    won = (rng.random(600) < expit(0.8 * apart)).astype(float)
    taste, worth = 0.5, expit(0.8 * apart).mean()  # the true win rate if length is taste, or if it is worth
    controlled, raw = simulation.fitted(apart, won), won.mean()
    assert abs(controlled - taste) < abs(raw - taste)
    assert abs(raw - worth) < 0.05
    assert abs(controlled - worth) > 0.1
