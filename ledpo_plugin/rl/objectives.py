"""What PPO minimises, token by token, how tokens become one number, and what is watched meanwhile."""

from typing import NamedTuple

import torch
from torch import Tensor

from ledpo_plugin.rl._common import Total, bounded_exp, check_shapes, masked, moments, one_rank


class SurrogateOutput(NamedTuple):
    """The policy's loss per token and what it came from, all `[R, T]`; `losses` alone carries gradient."""

    losses: Tensor  # 0 outside the mask
    clipped: Tensor  # bool: the clipped term is the larger one, so that the token gives no gradient
    ratio: Tensor  # new to old probability; 1 outside the mask


class ValueOutput(NamedTuple):
    """The value head's loss per token, `[R, T]`, 0 outside the mask, and where its clipped term is the larger one."""

    losses: Tensor
    clipped: Tensor


def clipped_surrogate(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor, clip: float
) -> SurrogateOutput:
    """PPO's clipped surrogate: -min(r A, clip(r, 1 - c, 1 + c) A), r = exp(logps - old_logps).

    Schulman et al. 2017, arXiv:1707.06347 eq. 7, negated. `advantages` is `[R, T]`, or `[R]` where all tokens of an
    answer share one (RLOO, GRPO); the rest is `[R, T]`. Gradient reaches `logps` alone. Beyond a log-ratio of 20
    the exponential goes on along its tangent, so that a negative advantage gives a finite loss that still pulls back.

    Raises:
        ValueError: a shape is wrong.
    """
    check_shapes(mask.shape, logps=logps, old_logps=old_logps)
    if advantages.dim() == 1:
        check_shapes(mask.shape[:1], advantages=advantages)
        advantages = advantages[:, None].expand(mask.shape)
    check_shapes(mask.shape, advantages=advantages)
    advantages = masked(advantages.detach(), mask)
    ratio = bounded_exp(masked(logps - old_logps.detach(), mask))
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip, 1 + clip)
    return SurrogateOutput(torch.maximum(unclipped, clipped), clipped > unclipped, ratio.detach())


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float) -> ValueOutput:
    """PPO's value loss: max((V - G)^2, (clip(V, V_old - c, V_old + c) - G)^2) / 2, G the return.

    As in TRL 0.24's PPOTrainer and OpenAI's baselines (Schulman et al. 2017 leave the clip out). All tensors are
    `[R, T]`. Gradient reaches `values` alone.

    Raises:
        ValueError: the shapes differ.
    """
    check_shapes(mask.shape, values=values, old_values=old_values, returns=returns)
    values = masked(values, mask)
    old_values = masked(old_values.detach(), mask)
    returns = masked(returns.detach(), mask)
    unclipped = (values - returns).square()
    clipped = (values.clamp(old_values - clip, old_values + clip) - returns).square()
    return ValueOutput(torch.maximum(unclipped, clipped) / 2, clipped > unclipped)


def token_mean(values: Tensor, mask: Tensor, *, count: Tensor | float | None = None) -> Tensor:
    """Return the mean over all response tokens, a scalar; 0 where there are none.

    `count` replaces the number of tokens of this call by that of the whole optimizer step (micro-batches, ranks), so
    that the parts add up to the step's mean; where parts are averaged instead, by a part's share of it, which may be a
    fraction. Both tensors are `[R, T]`.

    Raises:
        ValueError: the shapes differ.
    """
    check_shapes(mask.shape, values=values)
    return masked(values, mask).sum() / _or_one(mask.sum() if count is None else count)


def _or_one(count: Tensor | float) -> Tensor | float:
    # Not clamp(min=1): a step's tokens per micro-batch may well be less than one.
    return torch.where(count > 0, count, 1) if isinstance(count, Tensor) else count or 1


@torch.no_grad()
def approx_kl(logps: Tensor, old_logps: Tensor, mask: Tensor) -> Tensor:
    """Return how far the policy has moved since the rollout: (logps - old_logps)^2 / 2 per token, a scalar in nats.

    The estimator k2 of KL(old || new), as TRL's `policy/approxkl_avg`, but over response tokens alone.

    Raises:
        ValueError: the shapes differ.
    """
    check_shapes(mask.shape, logps=logps, old_logps=old_logps)
    return token_mean((logps - old_logps).square() / 2, mask)


@torch.no_grad()
def explained_variance(values: Tensor, returns: Tensor, mask: Tensor, *, total: Total = one_rank) -> Tensor:
    """Return 1 - Var(returns - values) / Var(returns) over response tokens, a scalar: 1 is a perfect value head.

    0 says that it is no better than a constant; below 0, worse. 0 also where the returns do not vary, and there is
    nothing to explain. `total` sums a small tensor over all ranks and is called four times.

    Raises:
        ValueError: the shapes differ.
    """
    check_shapes(mask.shape, values=values, returns=returns)
    spread = moments(returns, mask, total).squares
    rest = moments(returns - values, mask, total).squares
    return torch.where(spread > 0, 1 - rest / torch.where(spread > 0, spread, torch.ones_like(spread)), 0.0)
