"""From columns of answers to the numbers that are logged. Pure; a column is `[N]`, all answers since the last log."""

from collections.abc import Mapping

import torch
from torch import Tensor

PART = "part "  # before the name of a single source of rewards


def answer_metrics(columns: Mapping[str, Tensor]) -> dict[str, float]:
    """Summarise answers.

    Columns: reward (0 where there is none), valid (1 or 0), kl (nats an answer), length, ended (1 or 0), surprise (mean
    of -log p of its tokens, which over many answers is the policy's entropy); optional: coefficient (of the KL),
    advantage (mean over its tokens), beta, and `part NAME` for every source of rewards.
    """
    rewards = columns["reward"][columns["valid"] > 0.5]
    found = {"rewards/failed": 1 - columns["valid"].mean().item()}
    if rewards.numel():
        found |= {"rewards/mean": rewards.mean().item(), "rewards/std": _std(rewards)}
    found |= {
        "kl/sequence": columns["kl"].mean().item(),
        "policy/entropy": columns["surprise"].mean().item(),
        "responses/length": columns["length"].mean().item(),
        "responses/ended": columns["ended"].mean().item(),
    }
    for name, values in columns.items():
        known = values[torch.isfinite(values)]
        if name.startswith(PART) and known.numel():
            found[f"rewards/{name.removeprefix(PART)}"] = known.mean().item()
    if "coefficient" in columns:
        found["kl/coefficient"] = columns["coefficient"].mean().item()
        found["kl/coefficient_std"] = _std(columns["coefficient"])
        found["objective/advantage_std"] = _std(columns["advantage"])
    if "beta" in columns:
        beta = columns["beta"]
        found |= {"beta/mean": beta.mean().item(), "beta/std": _std(beta)}
        found |= {"beta/min": beta.min().item(), "beta/max": beta.max().item()}
    return found


def _std(values: Tensor) -> float:
    return values.double().std(correction=0).item()
