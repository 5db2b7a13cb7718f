"""What is logged, by hand."""

import math

import pytest
import torch

from ledpo_plugin.training.metrics import beta_metrics, pair_metrics, unpaired_metrics

PAIRS = {
    "margin": torch.tensor([2.0, -1.0, 0.0, 3.0]),
    "beta": torch.tensor([0.1, 0.2, 0.3, 0.4]),
    "chosen_rewards": torch.tensor([0.3, 0.0, 0.1, 1.0]),
    "rejected_rewards": torch.tensor([0.1, 0.2, 0.1, -0.2]),
    "chosen_logps": torch.tensor([-10.0, -20.0, -30.0, -40.0]),
    "rejected_logps": torch.tensor([-12.0, -8.0, -30.0, -50.0]),
    "chosen_length": torch.tensor([5.0, 5.0, 10.0, 10.0]),
    "rejected_length": torch.tensor([4.0, 4.0, 10.0, 10.0]),
    "at_bounds": torch.tensor([0.0, 0.0, 0.0, 1.0]),
}


def test_pairs():
    found = pair_metrics(PAIRS)
    assert found["rewards/accuracies"] == (1 + 0 + 0.5 + 1) / 4  # a tie counts one half
    assert found["rewards/margins"] == pytest.approx((0.2 - 0.2 + 0 + 1.2) / 4)
    assert found["margins/beta_free"] == 1.0
    assert found["logps/accuracies"] == (1 + 0 + 0.5 + 1) / 4  # per token: -2 > -3, -4 < -2, tie, -4 > -5
    assert found["beta/mean"] == pytest.approx(0.25)
    assert found["beta/std"] == pytest.approx(math.sqrt(0.0125))
    assert found["beta/q10"] == pytest.approx(0.13)
    assert found["beta/q90"] == pytest.approx(0.37)
    assert found["beta/mean_positive_margin"] == pytest.approx(0.25)
    assert found["beta/mean_negative_margin"] == pytest.approx(0.2)
    assert found["beta/at_bounds"] == 0.25
    assert "sft_loss" not in found
    assert pair_metrics({**PAIRS, "nll": torch.tensor([1.0, 2.0, 3.0, 4.0])})["sft_loss"] == 2.5


def test_correlation_by_hand_and_undefined_numbers_are_nan():
    """x = (1, 2, 3) against y = (1, 3, 2): covariance 1, both norms sqrt(2): correlation 1/2."""
    found = beta_metrics(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0]), torch.zeros(3))
    assert found["beta/margin_corr"] == pytest.approx(0.5)
    assert math.isnan(found["beta/mean_negative_margin"])
    assert math.isnan(beta_metrics(torch.ones(2), torch.tensor([1.0, 2.0]), torch.zeros(2))["beta/margin_corr"])


def test_single_answers():
    found = unpaired_metrics(
        {
            "rewards": torch.tensor([0.4, 0.2, -0.3]),
            "margin": torch.tensor([4.0, 0.0, 3.0]),
            "beta": torch.full((3,), 0.1),
            "at_bounds": torch.zeros(3),
            "logps": torch.tensor([-1.0, -3.0, -5.0]),
            "desirable": torch.tensor([1.0, 1.0, 0.0]),
            "kl": torch.full((3,), 0.5),
            "nll": torch.tensor([1.0, 3.0, 100.0]),
        }
    )
    assert found["rewards/chosen"] == pytest.approx(0.3)
    assert found["rewards/rejected"] == pytest.approx(-0.3)
    assert found["rewards/margins"] == pytest.approx(0.6)
    assert found["rewards/accuracies"] == pytest.approx(2.5 / 3)
    assert found["logps/chosen"] == -2.0
    assert found["sft_loss"] == 2.0
    assert found["kl"] == 0.5
