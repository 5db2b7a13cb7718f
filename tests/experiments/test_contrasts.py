"""One contrast, one verdict; what could be detected, and equivalence: against formulas by hand and by trials."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from experiment_results import DATASET, INSTRUCTIONS, make
from scipy import integrate, stats

from ledpo_plugin.cli import main
from ledpo_plugin.common.stats import detectable_by_interval, detectable_difference, equivalence, paired_difference
from ledpo_plugin.experiments.report.contrasts import contrasts
from ledpo_plugin.experiments.report.formatting import verdict_words
from ledpo_plugin.experiments.report.reuse import other_results, reused, same_run
from ledpo_plugin.experiments.report.summary import summarise
from ledpo_plugin.experiments.reporting import write_report
from ledpo_plugin.experiments.results.collected import collect

ACCURACY, MARGIN, NLL = f"{DATASET}/accuracy", f"{DATASET}/margin", f"{INSTRUCTIONS}/nll"


# ---- minimal detectable effect


def power_of(effect: float, sd: float, n: int) -> float:
    """Return the power of the two-sided 5 % paired t-test by integrating over the chi of the spread, term by term."""
    df, critical, ncp = n - 1, stats.t.ppf(0.975, n - 1), effect * math.sqrt(n) / sd

    def beyond(spread):
        density = stats.chi.pdf(spread * math.sqrt(df), df) * math.sqrt(df)
        return (stats.norm.sf(critical * spread - ncp) + stats.norm.cdf(-critical * spread - ncp)) * density

    return integrate.quad(beyond, 0, 8, points=[0.5, 1, 2])[0]


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8, 30])
def test_what_is_detectable_is_found_four_times_in_five(n):
    least = detectable_difference(0.07, n)
    assert power_of(least, 0.07, n) == pytest.approx(0.8, abs=1e-5)
    assert power_of(0.9 * least, 0.07, n) < 0.79
    if n > 2:  # scipy's own noncentral t is not a number for n = 2
        critical, ncp = stats.t.ppf(0.975, n - 1), least * math.sqrt(n) / 0.07
        own = stats.nct.sf(critical, n - 1, ncp) + stats.nct.cdf(-critical, n - 1, ncp)
        assert own == pytest.approx(0.8, abs=1e-5)


def test_detectable_by_published_tables():
    # Cohen (1988), two-sided 5 %, power .80: a paired d_z of .50 takes 34 pairs, one of .80 takes 15.
    assert detectable_difference(1.0, 34) == pytest.approx(0.50, abs=0.006)
    assert detectable_difference(1.0, 15) == pytest.approx(0.78, abs=0.006)
    assert 0.78 < 0.80 < detectable_difference(1.0, 14)


def test_detectable_differences_are_shown_in_four_of_five_simulated_experiments():
    least, rng = detectable_difference(1.0, 5), np.random.default_rng(0)
    drawn = rng.normal(least, 1.0, (4_000, 5))
    found = [paired_difference(dict(enumerate(row)), dict.fromkeys(range(5), 0.0)).p < 0.05 for row in drawn]
    assert np.mean(found) == pytest.approx(0.8, abs=0.02)


def test_nothing_is_detectable_where_nothing_varies():
    assert detectable_difference(0.0, 3) is None
    assert detectable_difference(None, 3) is None
    assert detectable_difference(1.0, 1) is None
    assert detectable_by_interval(None, None) is None


def test_detectable_over_items_by_hand():
    # A standard error of 1 has the interval -1.96 to 1.96; 1.96 + 0.8416 of them are found with 80 % power.
    assert detectable_by_interval(-1.959964, 1.959964) == pytest.approx(2.801585, abs=1e-5)


# ---- equivalence


def test_two_one_sided_tests_are_scipys():
    ours, theirs = {1: 0.61, 2: 0.66, 3: 0.58, 4: 0.70}, {1: 0.60, 2: 0.67, 3: 0.58, 4: 0.69}
    found = equivalence(paired_difference(ours, theirs), 0.03)
    apart = np.asarray(list(ours.values())) - np.asarray(list(theirs.values()))
    above = stats.ttest_1samp(apart, -0.03, alternative="greater").pvalue
    below = stats.ttest_1samp(apart, 0.03, alternative="less").pvalue
    low, high = stats.t.interval(0.90, 3, apart.mean(), stats.sem(apart))
    assert found.p == pytest.approx(max(above, below))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.p < 0.05
    assert -0.03 < low < high < 0.03


@pytest.mark.parametrize("margin", [0.004, 0.008, 0.012, 0.016, 0.03])
def test_equivalence_is_shown_where_the_ninety_percent_interval_lies_within(margin):
    found = equivalence(
        paired_difference({1: 0.01, 2: 0.0, 3: -0.002, 4: 0.006}, dict.fromkeys(range(1, 5), 0.0)), margin
    )
    assert (found.p < 0.05) == (-margin < found.low and found.high < margin)


def test_at_the_margin_itself_equivalence_is_rarely_shown():
    rng = np.random.default_rng(1)
    drawn = rng.normal(0.03, 0.01, (3_000, 6))
    zero = dict.fromkeys(range(6), 0.0)
    shown = [equivalence(paired_difference(dict(enumerate(row)), zero), 0.03).p < 0.05 for row in drawn]
    assert np.mean(shown) == pytest.approx(0.05, abs=0.012)


def test_what_cannot_be_tested_is_not_equivalent():
    found = equivalence(paired_difference({1: 0.5}, {1: 0.5}), 0.1)
    assert (found.p, found.why) == (None, "one seed")
    with pytest.raises(ValueError, match="above 0"):
        equivalence(paired_difference({1: 0.5}, {1: 0.5}), 0.0)


# ---- one contrast, one verdict


def runs_of(**variants: list[float]) -> list[dict]:
    return [
        {"variant": name, "seed": seed, "phase": "finished", "final": {ACCURACY: value, MARGIN: 7 * value}}
        for name, values in variants.items()
        for seed, value in enumerate(values, start=1)
    ]


def named(*variants: str) -> list[dict]:
    return [{"variant": name, "label": name, "against": "dpo", "against_label": "dpo"} for name in variants]


def rows_of(runs, *variants, margins=()):
    made = contrasts(runs, named(*variants), [ACCURACY], per_item=None, margins=dict(margins))
    return {row["variant"]: row for row in made}


DPO, ORPO = [0.667, 0.556, 0.528], [0.444, 0.306, 0.361]
OTHERS = {"a": [0.66, 0.57, 0.53], "b": [0.67, 0.54, 0.55], "c": [0.68, 0.50, 0.6], "d": [0.70, 0.52, 0.5]}


def test_the_same_runs_have_the_same_verdict_whatever_stands_beside_them():
    alone = rows_of(runs_of(dpo=DPO, orpo=ORPO), "orpo")["orpo"]
    crowd = rows_of(runs_of(dpo=DPO, orpo=ORPO, **OTHERS), "orpo", *OTHERS)["orpo"]
    assert alone["difference"].p < 0.05 < crowd["p_holm"]  # over the whole report it would be lost
    assert alone["verdict"] == crowd["verdict"] == "worse"
    assert alone["words"] == crowd["words"]


def test_no_difference_is_said_with_what_was_detectable():
    row = rows_of(runs_of(dpo=DPO, **OTHERS), "c")["c"]
    assert row["verdict"] == "none"
    least = detectable_difference(float(np.std(np.subtract(OTHERS["c"], DPO), ddof=1)), 3)
    assert row["detectable"]["value"] == pytest.approx(least)
    assert f"detectable with 80 % power: {least:.2f} (share of pairs)" in row["words"]


def test_equivalence_takes_a_declared_margin():
    close = [value + extra for value, extra in zip(DPO, (0.002, -0.001, 0.0), strict=True)]
    runs = runs_of(dpo=DPO, close=close)
    assert rows_of(runs, "close")["close"]["verdict"] == "none"
    row = rows_of(runs, "close", margins={ACCURACY: 0.03})["close"]
    assert row["verdict"] == "equivalent"
    assert row["words"].startswith("Equivalent to dpo within the margin of 0.030 (share of pairs) declared beforehand")
    wide = rows_of(runs, "close", margins={ACCURACY: 0.001})["close"]
    assert wide["verdict"] == "none"
    assert "Equivalence within the margin of 0.0010" in wide["words"]


def test_a_difference_within_the_margin_is_both():
    shifted = [value + extra for value, extra in zip(DPO, (0.010, 0.011, 0.009), strict=True)]
    row = rows_of(runs_of(dpo=DPO, ours=shifted), "ours", margins={ACCURACY: 0.05})["ours"]
    assert row["verdict"] == "better"
    assert "within the margin of 0.050 (share of pairs) declared beforehand all the same" in row["words"]


def test_verdicts_that_show_nothing_all_say_what_was_detectable():
    base = {"metric": ACCURACY, "against_label": "DPO", "difference": {"n": 3, "why": None, "mean": 0.1}}
    for found in ("none", "seeds_only", "equivalent"):
        row = base | {"verdict": found, "detectable": {"power": 0.8, "value": 0.137}}
        row |= {"equivalence": {"margin": 0.2, "shown": found == "equivalent"}}
        assert "detectable with 80 % power: 0.14 (share of pairs)" in verdict_words(row)


def test_a_report_says_it_beside_every_comparison(tmp_path):
    definition, states = make(tmp_path, ["dpo", "ledpo", "mix50"], [1, 2, 3])
    definition["profile"]["evaluation"]["equivalence"] = {ACCURACY: 0.9, MARGIN: 0.01}
    write_report(tmp_path, definition, states)
    numbers = json.loads((tmp_path / "results.json").read_text())
    assert all(row["detectable"]["seeds"] > 0 for row in numbers["comparisons"])
    first = numbers["comparisons"][0]
    assert first["detectable"]["value"] == max(first["detectable"]["seeds"], first["detectable"]["items"])
    assert first["equivalence"]["shown"]
    assert -0.9 < first["equivalence"]["items"]["low"] < first["equivalence"]["items"]["high"] < 0.9
    text = (tmp_path / "report.md").read_text()
    assert "| Detectable |" in text
    assert "Equivalent within 0.9" in text
    assert "not shown equivalent within 0.01" in text
    assert "is equivalent to DPO within the margin of 0.90 (share of pairs) declared beforehand" in numbers["answer"]
    del definition["profile"]["evaluation"]["equivalence"]
    numbers = summarise(collect(tmp_path, definition, states))
    assert "was detectable with 80 % power" in numbers["answer"]
    assert "Each of 2 contrasts was tested by itself at 5 %: by chance 0.10 would be shown" in numbers["answer"]


# ---- runs that stand in two reports


def two_reports(root: Path) -> tuple[Path, Path]:
    """Write the report of four variants, and one of three of them under another name."""
    (root / "loss_variants_impact").mkdir(parents=True)
    definition, states = make(root / "loss_variants_impact", ["dpo", "ledpo", "orpo", "mix50"], [1, 2, 3])
    other = root / "other_experiment"
    shutil.copytree(root / "loss_variants_impact", other)
    shutil.rmtree(other / "runs" / "mix50")
    few = {name: definition["variants"][name] for name in ("dpo", "ledpo", "orpo")}
    few = {**definition, "name": "other_experiment", "variants": few}
    kept = [state for state in states if state["variant"] != "mix50"]
    write_report(other, few, [{**state, "folder": ""} for state in kept])
    write_report(root / "loss_variants_impact", definition, states)
    return root / "loss_variants_impact", other


def test_runs_of_two_reports_are_marked_and_have_one_verdict(tmp_path):
    ours, theirs = two_reports(tmp_path)
    numbers = json.loads((ours / "results.json").read_text())
    (found,) = numbers["reused"]
    assert (found["experiment"], found["profile"]) == ("other_experiment", "cpu")
    assert {(run["variant"], run["seed"]) for run in found["runs"]} == {
        (name, seed) for name in ("dpo", "ledpo", "orpo") for seed in (1, 2, 3)
    }
    there = json.loads((theirs / "results.json").read_text())
    verdicts = [
        {row["variant"]: row["verdict"] for row in each["comparisons"] if "verdict" in row} for each in (numbers, there)
    ]
    assert {row["variant"]: row["verdict"] for row in found["contrasts"]} == verdicts[1]
    assert all(verdicts[0][name] == verdict for name, verdict in verdicts[1].items())
    for name in ("report.html", "report.md"):
        text = (ours / name).read_text()
        assert "Reused: the runs of DPO (seed 1, 2, 3), LEDPO (head) (seed 1, 2, 3) and ORPO (seed 1, 2, 3)" in text
        assert "one finding, not two" in text


def test_a_report_elsewhere_is_named(tmp_path):
    ours, theirs = two_reports(tmp_path)
    far = tmp_path / "far" / "away"
    shutil.copytree(theirs, far)
    shutil.rmtree(theirs)
    assert other_results(ours) == []
    assert [one["experiment"] for one in other_results(ours, [far])] == ["other_experiment"]
    with pytest.raises(ValueError, match=r"no results\.json of a report"):
        other_results(ours, [tmp_path / "nowhere"])


def test_an_older_verdict_of_the_same_runs_is_named(tmp_path):
    ours, theirs = two_reports(tmp_path)
    there = json.loads((theirs / "results.json").read_text())
    row = next(row for row in there["comparisons"] if row["variant"] == "ledpo")
    row["verdict"] = "lower"
    (theirs / "results.json").write_text(json.dumps(there))
    (ours / "experiment.json").unlink(missing_ok=True)
    assert main(["report", str(ours)]) == 0
    assert "that report says 'lower'" in (ours / "report.html").read_text().replace("&#39;", "'")


def test_what_makes_two_runs_the_same():
    run = {"seed": 1, "phase": "finished", "usage": {"policy_tokens": 9}, "final": {ACCURACY: 0.5, MARGIN: 0.123456789}}
    assert same_run(run, {**run, "variant": "by another name"})
    assert not same_run(run, {**run, "seed": 2})
    assert not same_run(run, {**run, "phase": "failed"})
    assert not same_run(run, {**run, "usage": {"policy_tokens": 8}})
    assert not same_run(run, {**run, "final": {ACCURACY: 0.5, MARGIN: 0.1234567}})
    only = {ACCURACY: 0.5}  # accuracies of a few pairs agree by chance
    assert not same_run({**run, "final": only}, {**run, "final": only})


def test_the_same_experiment_is_no_other_report(tmp_path):
    numbers = summarise(collect(tmp_path, *make(tmp_path, ["dpo", "ledpo"], [1, 2])))
    assert reused(numbers, [numbers]) == []
