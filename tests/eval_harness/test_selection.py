"""A best-of is chosen on one half of the items and judged on the other: no findings where there is nothing to find."""

import math

import numpy as np
import pytest
from scipy import stats

from eval_harness.agreement.alignment import align
from eval_harness.agreement.ranking import choices
from eval_harness.agreement.selection import LEAST, choose, halves, judge
from eval_harness.agreement.verdicts import ScoreTable
from ledpo_plugin.experiments.studies.decoding_report import _best, _best_words

SETTINGS, PROMPTS, STUDIES = 13, 80, 200


def equal_settings(rng):
    """Values of settings that are all the same on average: prompts differ, and every answer is drawn anew."""
    prompts = rng.normal(size=PROMPTS)
    return {f"s{i}": prompts + rng.normal(size=PROMPTS) for i in range(SETTINGS)}


def test_with_all_settings_equal_at_most_5_percent_of_studies_find_one_worse():
    rng = np.random.default_rng(0)
    ours = naive = 0
    for _ in range(STUDIES):
        columns = equal_settings(rng)
        row = choose(columns)
        judge([row])
        ours += bool(row["worse"])
        # What this replaces: the best of all prompts, tested on the same prompts, one by one.
        best = max(columns.values(), key=np.mean)
        tests = [stats.ttest_rel(best, column).pvalue for column in columns.values() if column is not best]
        naive += min(tests) < 0.05
    assert ours <= 0.05 * STUDIES
    assert naive > 0.6 * STUDIES  # so the simulation can find what it looks for


def test_several_rows_are_one_family():
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(50):
        rows = [choose(equal_settings(rng)) for _ in range(6)]
        judge(rows)
        found += any(row["worse"] for row in rows)
    assert found <= 0.1 * 50  # 5 % and two standard errors of 50 studies


def test_a_setting_that_is_worse_is_found_and_the_value_is_not_flattered():
    rng = np.random.default_rng(2)
    columns = equal_settings(rng) | {"bad": rng.normal(size=PROMPTS) - 3}
    row = choose(columns)
    judge([row])
    assert row["worse"] == ["bad"]
    assert len(row["not_worse"]) == SETTINGS - 1
    values = [choose(equal_settings(rng) | {"zero": np.zeros(PROMPTS)})["value"] for _ in range(STUDIES)]
    error = np.std(values, ddof=1) / math.sqrt(STUDIES)
    assert abs(np.mean(values)) < 3 * error  # every setting's true mean is 0; the highest of 14 means is about +0.3


def test_by_hand():
    choosing, judging = halves(2 * LEAST)
    better, worse = np.zeros(2 * LEAST), np.zeros(2 * LEAST)
    better[choosing] = 1  # best where it is chosen, the worse one where it is judged
    better[judging] = -1
    row = choose({"a": better, "b": worse, "nothing": np.full(2 * LEAST, math.nan)})
    judge([row])
    assert (row["chosen_on"], row["n"], row["best"], row["value"]) == (LEAST, LEAST, "a", -1)
    assert (row["tests"][0]["difference"], row["worse"], row["not_worse"]) == (-1, [], ["b"])
    row = choose({"a": np.abs(better), "b": worse})
    judge([row])
    assert row["tests"][0]["p"] == pytest.approx(2 * 0.5**LEAST)  # better by the same on every item: a sign test
    assert row["worse"] == ["b"]
    assert choose({"only": better}) is None
    # A baseline that has a value everywhere does not make the items of the others more.
    some = np.where(np.arange(200) < 2 * LEAST - 2, 1.0, math.nan)
    row = choose({"baseline": np.full(200, 0.5), "other": some})
    assert (row["n"], row["best"]) == (LEAST - 1, None)
    assert sorted([*choosing, *judging]) == list(range(2 * LEAST))
    assert [len(half) for half in halves(7)] == [3, 4]


@pytest.mark.parametrize(("items", "said"), [(2 * LEAST - 2, False), (2 * LEAST, True)])
def test_nothing_is_recommended_by_fewer_than_30_prompts(items, said):
    rng = np.random.default_rng(3)
    noise = rng.normal(size=items)
    row = choose({"good": noise + 9 + rng.normal(size=items), "bad": noise})
    judge([row])
    assert (row["best"] is not None) == said
    assert bool(row["worse"]) == said
    row |= {"model": "m", "group": "all prompts", "metric": "accuracy"}
    shown = _best({"best": [row]}, {"m": "M"}).blocks
    assert [getattr(block, "title", None) == "Recommended settings" for block in shown] == [said]
    assert ("can be recommended: 29 prompts are left" in _best_words(row)) != said


def test_the_regret_of_a_choice_is_not_made_by_the_choice():
    """All models are equally good: what a method's choice loses against the reference's is 0 on average."""
    rng = np.random.default_rng(4)
    items, models = [f"q{i}" for i in range(20)], [f"m{i}" for i in range(8)]
    regrets, same = [], []
    for _ in range(STUDIES):
        values = [rng.normal(size=(len(items), len(models))) for _ in range(2)]
        scores = [
            {item: dict(zip(models, row, strict=True)) for item, row in zip(items, own, strict=True)} for own in values
        ]
        aligned = align([ScoreTable(name, own) for name, own in zip(("people", "length"), scores, strict=True)])
        found = {choice.method: choice for choice in choices(aligned, "people")}["length"]
        assert (found.chosen_on, found.regret.n) == (10, 10)
        regrets.append(found.regret.value)
        means = [own.mean(axis=0) for own in values]
        same.append(means[0].max() - means[0][means[1].argmax()])
    error = np.std(regrets, ddof=1) / math.sqrt(STUDIES)
    assert abs(np.mean(regrets)) < 3 * error
    assert np.mean(same) > 10 * error  # on the same items every choice but the reference's own seems to lose
