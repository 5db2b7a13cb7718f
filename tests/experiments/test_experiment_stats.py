"""Statistics of reports, against scipy and against numbers worked out by hand."""

import math
import random

import numpy as np
import pytest
from scipy import stats as reference

from ledpo_plugin.common.stats import (
    bootstrap_difference,
    censored_median,
    first_reached,
    holm,
    mean_interval,
    paired_difference,
    spikes,
    variation,
)


def test_interval_is_students_t():
    values = [0.61, 0.66, 0.58, 0.70]
    found = mean_interval(values)
    low, high = reference.t.interval(0.95, 3, np.mean(values), reference.sem(values))
    assert (found.n, found.why) == (4, None)
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(values), low, high))
    assert found.sd == pytest.approx(np.std(values, ddof=1))


def test_interval_by_hand():
    # 1, 2, 3: mean 2, sd 1, t(0.975, 2) = 4.3027, so 2 +- 4.3027 / sqrt(3)
    found = mean_interval([1.0, 2.0, 3.0])
    assert (found.low, found.high) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-4)


@pytest.mark.parametrize(
    ("values", "n", "mean", "why"),
    [
        ([], 0, None, "no value"),
        ([0.5], 1, 0.5, "one seed"),
        ([0.5, 0.5, 0.5], 3, 0.5, "the same with every seed"),
        ([0.1 + 0.2, 0.3], 2, 0.3, "the same with every seed"),  # equal but for rounding
        ([0.5, math.nan], 1, 0.5, "one seed"),
        ([math.inf], 0, None, "no value"),
    ],
)
def test_no_interval_where_there_is_no_ground_for_one(values, n, mean, why):
    found = mean_interval(values)
    assert (found.n, found.low, found.high, found.why) == (n, None, None, why)
    assert found.mean == pytest.approx(mean)


def test_paired_difference_is_the_paired_t_test_over_common_seeds():
    ours = {1: 0.70, 2: 0.74, 3: 0.69, 4: 0.9}
    theirs = {3: 0.61, 1: 0.66, 2: 0.68, 5: 0.1}
    found = paired_difference(ours, theirs)
    expected = reference.ttest_rel([0.70, 0.74, 0.69], [0.66, 0.68, 0.61])
    interval = expected.confidence_interval(0.95)
    assert found.seeds == (1, 2, 3)
    assert (found.t, found.p) == pytest.approx((expected.statistic, expected.pvalue))
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.mean == pytest.approx(0.06)


@pytest.mark.parametrize(
    ("ours", "theirs", "n", "mean", "why"),
    [
        ({1: 0.5}, {2: 0.5}, 0, None, "no seed finished in both"),
        ({1: 0.7, 2: 0.8}, {1: 0.6}, 1, 0.1, "one seed"),
        ({1: 0.7, 2: 0.8}, {1: 0.7, 2: 0.8}, 2, 0.0, "the same difference with every seed"),
        ({1: 0.3, 2: 0.4, 3: 0.8}, {1: 0.2, 2: 0.3, 3: 0.7}, 3, 0.1, "the same difference with every seed"),
        ({1: math.nan, 2: 0.8}, {1: 0.7, 2: 0.7}, 1, 0.1, "one seed"),
    ],
)
def test_nothing_is_tested_without_variance(ours, theirs, n, mean, why):
    found = paired_difference(ours, theirs)
    assert (found.n, found.p, found.t, found.low, found.why) == (n, None, None, None, why)
    assert found.mean == pytest.approx(mean)


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.04 times 3, 2, 1, never falling.
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_holm_does_not_count_what_was_not_tested():
    assert holm([None, 0.02, None, 0.03]) == [None, pytest.approx(0.04), None, pytest.approx(0.04)]


def test_bootstrap_agrees_with_drawing_one_by_one():
    rng = random.Random(0)
    per_item = [rng.choice((-1.0, 0.0, 0.0, 1.0, 1.0)) for _ in range(24)]
    means = sorted(sum(rng.choices(per_item, k=24)) / 24 for _ in range(10_000))
    found = bootstrap_difference(np.asarray([per_item]), seed=1)
    assert found.mean == pytest.approx(sum(per_item) / 24)
    assert found.low == pytest.approx(means[250], abs=0.045)  # a step of the mean is 1/24
    assert found.high == pytest.approx(means[9750], abs=0.045)


def test_bootstrap_keeps_the_seeds_of_an_item_together():
    rng = np.random.default_rng(3)
    once = rng.normal(size=(1, 40))
    alone, thrice = bootstrap_difference(once), bootstrap_difference(np.repeat(once, 3, axis=0))
    assert (alone.low, alone.high) == pytest.approx((thrice.low, thrice.high))  # three copies are no more items


def test_bootstrap_repeats_and_takes_parts(monkeypatch):
    differences = np.random.default_rng(4).normal(size=(2, 30))
    whole = bootstrap_difference(differences, seed=7)
    assert bootstrap_difference(differences, seed=7) == whole
    assert bootstrap_difference(differences, seed=8) != whole
    monkeypatch.setattr("ledpo_plugin.common.stats.CHUNK", 700 * 30)
    parts = bootstrap_difference(differences, seed=7)
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high), abs=0.02)


def test_bootstrap_with_weights_is_a_ratio_of_sums():
    found = bootstrap_difference(np.asarray([[1.0, 0.0, 2.0]]), np.asarray([1.0, 8.0, 1.0]))
    assert found.mean == pytest.approx(3 / 10)


@pytest.mark.parametrize(
    ("differences", "why"),
    [
        (np.zeros((1, 0)), "no item"),
        (np.ones((3, 1)), "one item"),
        (np.zeros((3, 9)), "the same with every item"),
        (np.asarray([[1.0, math.nan]]), "a value that is not finite"),
    ],
)
def test_bootstrap_without_ground(differences, why):
    found = bootstrap_difference(differences)
    assert (found.low, found.high, found.why) == (None, None, why)


def test_spikes_by_hand():
    calm = [1.0, 1.1] * 5  # median 1.05, median absolute deviation 0.05: a spike lies above 1.30
    assert spikes([*calm, 1.29]) == ([], 1)
    assert spikes([*calm, 1.31]) == ([10], 1)
    assert spikes([9.0, *calm[:9]]) == ([], 0)  # nothing to judge by
    assert spikes([*calm, math.nan, 1.31]) == ([11], 1)


def test_a_flat_loss_has_no_spike_from_rounding():
    assert spikes([0.5] * 10 + [0.5 + 1e-9, 0.51, 0.53]) == ([12], 3)


def test_variation_is_of_the_second_half():
    assert variation([100.0, 100.0, 1.0, 3.0]) == pytest.approx(math.sqrt(2) / 2)
    assert variation([1.0, math.nan]) is None
    assert variation([]) is None


def test_first_reached_and_its_median():
    points = [(0, 0.5), (8, 0.7), (16, 0.55), (24, 0.8)]
    assert first_reached(points, at_least=0.6) == 8
    assert first_reached(points, at_least=0.9) is None
    assert first_reached(points, at_least=None, at_most=0.5) == 0
    assert first_reached([(8, math.nan), (9, 0.6)], at_least=0.6) == 9
    assert censored_median([8, None, 16]) == 16
    assert censored_median([8, None, None]) is None
    assert censored_median([8, 16]) == 12
    assert censored_median([8, None]) is None
    assert censored_median([]) is None
