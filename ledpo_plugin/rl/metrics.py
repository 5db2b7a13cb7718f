"""From columns of answers to the numbers that are logged. Pure; a column is `[N]`, all answers since the last log."""

from collections.abc import Mapping

import torch
from torch import Tensor

PART = "part "  # before the name of a single source of rewards


def answer_metrics(columns: Mapping[str, Tensor]) -> dict[str, float]:
    """Summarise the answers of rollouts.

    Columns: reward (0 where there is none), valid (1 or 0), kl (nats an answer), coefficient (of the KL), length,
    ended (1 or 0), surprise (mean of -log p of its tokens, which over many answers is the policy's entropy), advantage
    (mean over its tokens); optional: beta, and `part NAME` for every source of rewards.
    """
    valid = columns["valid"] > 0.5
    found = {
        **_rewards(columns["reward"][valid]),
        "rewards/failed": 1 - columns["valid"].mean().item(),
        "kl/sequence": columns["kl"].mean().item(),
        "kl/coefficient": columns["coefficient"].mean().item(),
        "kl/coefficient_std": columns["coefficient"].std(correction=0).item(),
        "policy/entropy": columns["surprise"].mean().item(),
        "responses/length": columns["length"].mean().item(),
        "responses/ended": columns["ended"].mean().item(),
        "objective/advantage_std": columns["advantage"].std(correction=0).item(),
    }
    for name, values in columns.items():
        known = values[torch.isfinite(values)]
        if name.startswith(PART) and known.numel():
            found[f"rewards/{name.removeprefix(PART)}"] = known.mean().item()
    if "beta" in columns:
        found |= {
            "beta/mean": columns["beta"].mean().item(),
            "beta/std": columns["beta"].std(correction=0).item(),
            "beta/min": columns["beta"].min().item(),
            "beta/max": columns["beta"].max().item(),
        }
    return found


def held_out_metrics(columns: Mapping[str, Tensor]) -> dict[str, float]:
    """Summarise answers to held-out prompts; columns as above, but reward, valid, kl, length and ended alone."""
    valid = columns["valid"] > 0.5
    return {
        **_rewards(columns["reward"][valid]),
        "rewards/failed": 1 - columns["valid"].mean().item(),
        "kl/sequence": columns["kl"].mean().item(),
        "responses/length": columns["length"].mean().item(),
        "responses/ended": columns["ended"].mean().item(),
    }


def _rewards(rewards: Tensor) -> dict[str, float]:
    if not rewards.numel():
        return {}
    return {"rewards/mean": rewards.mean().item(), "rewards/std": rewards.std(correction=0).item()}
