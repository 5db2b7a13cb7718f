"""Losses on single answers, each labelled desirable or not."""

import torch
from torch import Tensor

from ledpo_plugin.losses._common import check_shapes, with_rewards
from ledpo_plugin.losses._types import LossOutput, UnpairedLogps


def kto(
    logps: UnpairedLogps, beta: Tensor, *, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> LossOutput:
    """KTO: each answer's log-ratio r against the reference point z0.

    desirable: w_D (1 - s(beta (r - z0))); undesirable: w_U (1 - s(beta (z0 - r))): arXiv:2402.01306 eq. 7.
    z0 = max(0, kl), without gradient, beta-free: beta multiplies the whole bracket, as in TRL 0.24's
    trl/trainer/kto_trainer.py. Over several ranks `kl` is the mean of the ranks' means, as there; HALOs takes the mean
    of all rows. Gradient reaches `policy` and beta. Losses and rewards (in `chosen_rewards`)
    are `[B]`.

    Raises:
        ValueError: a tensor is not `[B]`, or `kl` is not a scalar.
    """
    check_shapes(logps, beta)
    ratio = logps.policy - logps.reference
    surplus = beta * (ratio - logps.kl.detach().clamp(min=0))
    desirable = desirable_weight * torch.sigmoid(-surplus)
    undesirable = undesirable_weight * torch.sigmoid(surplus)
    return with_rewards(torch.where(logps.desirable, desirable, undesirable), beta, ratio, None)
