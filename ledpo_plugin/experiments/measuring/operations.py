"""What of a run's operations went where: training, reference, generation, scoring, rewards. Pure."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from ledpo_plugin.training.usage import Cost, Counts

# Kind of operations -> the counts that it is made of; the formula is that of `ledpo_usage.json`.
KINDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "training": ("policy_tokens", "predictions"),
        "reference": ("reference_tokens", "reference_predictions"),
        "generation": ("rollout_prompt_tokens", "generated_tokens"),
        "scoring": ("scored_tokens", "scored_predictions"),
        "reward": ("reward_tokens",),
    }
)
NEAR = 0.02  # the parts may miss the whole by so much: a reward model's adapter counts as weights only while it trains


def by_kind(cost: Mapping[str, float] | None, usage: Mapping[str, Any], checkpointing: bool) -> dict[str, float] | None:
    """Return the operations of each kind, which add up to those the run says; None where they cannot be told.

    Args:
        cost: body, output and trained weights of the policy (see `usage.Cost`); None where not known.
        usage: the run's `ledpo_usage.json`.
        checkpointing: whether activations were computed anew.
    """
    whole = usage.get("flops")
    if cost is None or not whole:
        return None
    of = replace(Cost(**cost), passes=3 if checkpointing else 2)
    parts = {kind: of.flops(Counts(**{key: usage.get(key) or 0 for key in keys})) for kind, keys in KINDS.items()}
    total = sum(parts.values())
    if abs(total - whole) > NEAR * whole:
        return None
    return {kind: value * whole / total for kind, value in parts.items()}


def reward_model_flops(
    cost: Mapping[str, float] | None, tokens: float | None, recipe: Mapping[str, Any]
) -> float | None:
    """Return the operations of training a reward model by the host's stage rm; None where they cannot be told.

    The host runs the output layer at all positions, and takes no gradient through it.

    Args:
        cost: of the runs' policy, whose base and adapter the reward model has (see `usage.Cost`).
        tokens: that were trained on, padding included.
        recipe: of the reward model.
    """
    if cost is None or not tokens:
        return None
    passes = 2 if recipe.get("disable_gradient_checkpointing") else 3
    return 2 * tokens * (passes * cost["body"] + cost["output"] + cost["trained"])


def summed(parts: list[dict[str, float] | None]) -> dict[str, float] | None:
    """Return the sums of several trainings' operations by kind; None where one of them is not known."""
    if not parts or None in parts:
        return None
    return {kind: sum(part[kind] for part in parts) for kind in KINDS}
