"""The losses of an update: of the policy, of the value head, and of the beta head by the rollout's own pairs."""

from typing import Any

import torch
from torch import Tensor

from ledpo_plugin.betas import BetaFeatures, BetaStrategy, Progress
from ledpo_plugin.losses import PairLogps, function_of
from ledpo_plugin.training.side_optimizer import mean_over_ranks

from .kl import kl_per_token
from .objectives import approx_kl, clipped_surrogate, clipped_value_loss, explained_variance, token_mean
from .rollout import Rollout
from .scores import TokenScores
from .value_head import ValueHead

Report = dict[str, Tensor]


def policy_losses(scores: TokenScores, part: dict[str, Tensor], args: Any) -> tuple[Tensor, Report]:
    """Return the policy's loss of each token `[R, T]`, and what is reported of it.

    Args:
        scores: of the policy as it is now.
        part: the rollout's mask, old_logps, reference_logps, advantages and coefficient of the same answers.
        args: of the recipe.
    """
    mask = part["mask"]
    surrogate = clipped_surrogate(scores.logps, part["old_logps"], part["advantages"], mask, args.ppo_clip)
    losses = surrogate.losses
    if args.advantage_estimator == "grpo":
        kl = kl_per_token(scores.logps, part["reference_logps"], args.kl_estimator, mask=mask)
        losses = losses + part["coefficient"].unsqueeze(1) * kl
    return losses, {
        "policy/clip_fraction": token_mean(surrogate.clipped.float(), mask),
        "policy/approx_kl": approx_kl(scores.logps, part["old_logps"], mask),
    }


def value_losses(
    value_head: ValueHead, scores: TokenScores, part: dict[str, Tensor], args: Any
) -> tuple[Tensor, Report]:
    """Return the value head's loss of each token `[R, T]`, and what is reported of it.

    Args:
        value_head: reads the states that `scores` has.
        scores: of the policy as it is now.
        part: the rollout's mask, values and returns of the same answers.
        args: of the recipe.
    """
    mask, old, returns = part["mask"], part["values"], part["returns"]
    values = value_head(scores.states, through=args.ppo_value_coef)
    output = clipped_value_loss(values, old, returns, mask, args.ppo_value_clip)
    return output.losses, {
        "value/loss": token_mean(output.losses.detach(), mask),
        "value/clip_fraction": token_mean(output.clipped.float(), mask),
        "value/explained_variance": explained_variance(old, returns, mask),
    }


def head_loss(
    rollout: Rollout, strategy: BetaStrategy, args: Any, device: torch.device, progress: Progress
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """Return LEDPO's loss of the rollout's own pairs, in beta alone: their margins are those of the rollout.

    All processes call it together.

    Returns:
        The loss, a scalar: over processes the mean is that over all pairs; and beta and margin of this process's
        pairs, both `[N]`, or None where it has none.
    """
    size = len(rollout.pair_margin)
    pairs = mean_over_ranks(torch.tensor(float(size), device=device)).clamp(min=1)
    if size == 0:
        return torch.zeros((), device=device), None
    features = BetaFeatures(
        size=size,
        hidden=None if rollout.pair_hidden is None else rollout.pair_hidden.to(device),
        prompt_nll=None if rollout.pair_nll is None else rollout.pair_nll.to(device),
        progress=progress,
        training=False,  # running statistics are over all processes, which differ in their number of pairs
    )
    output = strategy(features)
    margin = rollout.pair_margin.to(device)
    zeros, ones = torch.zeros(size, device=device), torch.ones(size, device=device)
    logps = PairLogps(margin, zeros, zeros, zeros, ones, ones)
    losses = function_of("sigmoid")(logps, output.beta, label_smoothing=args.dpo_label_smoothing).losses
    if output.log_ratio is not None:
        losses = losses + args.beta_penalty * output.log_ratio.square()
    return losses.sum() / pairs, (output.beta, margin)
