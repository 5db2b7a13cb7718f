"""Per-example tensors to the numbers that are logged. Pure; every column is `[N]`, all examples since the last log."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def _mean(values: Tensor) -> float:
    return values.mean().item() if values.numel() else math.nan


def _win_rate(better: Tensor, worse: Tensor) -> float:
    """Return the share of examples with better > worse; a tie counts one half."""
    return _mean((better > worse).float() + 0.5 * (better == worse).float())


def _correlation(x: Tensor, y: Tensor) -> float:
    x, y = x - x.mean(), y - y.mean()
    norm = (x.norm() * y.norm()).item()
    return (x @ y).item() / norm if norm > 0 else math.nan


def beta_metrics(beta: Tensor, margin: Tensor, at_bounds: Tensor) -> dict[str, float]:
    """Describe beta `[N]`, alone and against the beta-free margin `[N]`; nan where there is nothing to describe."""
    quantiles = torch.quantile(beta.double(), torch.tensor([0.1, 0.9], dtype=torch.double, device=beta.device))
    return {
        "beta/mean": _mean(beta),
        "beta/std": beta.std(correction=0).item(),
        "beta/min": beta.min().item(),
        "beta/max": beta.max().item(),
        "beta/q10": quantiles[0].item(),
        "beta/q90": quantiles[1].item(),
        "beta/mean_positive_margin": _mean(beta[margin > 0]),
        "beta/mean_negative_margin": _mean(beta[margin < 0]),
        "beta/margin_corr": _correlation(beta.double(), margin.double()),
        "beta/at_bounds": _mean(at_bounds),
    }


def pair_metrics(columns: Mapping[str, Tensor]) -> dict[str, float]:
    """Summarise pairs.

    Columns: chosen_rewards, rejected_rewards (of beta(x)), margin (beta-free), beta, at_bounds, chosen_logps,
    rejected_logps (sums, nats), chosen_length, rejected_length; optional: nll.
    """
    chosen, rejected = columns["chosen_rewards"], columns["rejected_rewards"]
    result = {
        "rewards/chosen": _mean(chosen),
        "rewards/rejected": _mean(rejected),
        "rewards/accuracies": _win_rate(columns["margin"], torch.zeros_like(columns["margin"])),
        "rewards/margins": _mean(chosen - rejected),
        "margins/beta_free": _mean(columns["margin"]),
        "logps/chosen": _mean(columns["chosen_logps"]),
        "logps/rejected": _mean(columns["rejected_logps"]),
        "logps/accuracies": _win_rate(
            columns["chosen_logps"] / columns["chosen_length"],
            columns["rejected_logps"] / columns["rejected_length"],
        ),
    }
    if "nll" in columns:
        result["sft_loss"] = _mean(columns["nll"])
    return result | beta_metrics(columns["beta"], columns["margin"], columns["at_bounds"])


def unpaired_metrics(columns: Mapping[str, Tensor]) -> dict[str, float]:
    """Summarise single answers.

    Columns: rewards, margin (beta-free log-ratio, sign turned for undesirable answers), beta, at_bounds, logps,
    desirable (1 or 0), kl; optional: nll.
    """
    good = columns["desirable"] > 0.5
    result = {
        "rewards/chosen": _mean(columns["rewards"][good]),
        "rewards/rejected": _mean(columns["rewards"][~good]),
        "rewards/accuracies": _win_rate(columns["margin"], torch.zeros_like(columns["margin"])),
        "logps/chosen": _mean(columns["logps"][good]),
        "logps/rejected": _mean(columns["logps"][~good]),
        "margins/beta_free": _mean(columns["margin"]),
        "kl": _mean(columns["kl"]),
    }
    result["rewards/margins"] = result["rewards/chosen"] - result["rewards/rejected"]
    if "nll" in columns:
        result["sft_loss"] = _mean(columns["nll"][good])
    return result | beta_metrics(columns["beta"], columns["margin"], columns["at_bounds"])
