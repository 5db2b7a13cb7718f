"""From rewards to advantages: GAE, RLOO, GRPO; and the two normalisations of PPO. Nothing here has a gradient."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ledpo_plugin.rl._common import Total, check_shapes, masked, moments, one_rank


class Advantages(NamedTuple):
    """Advantage and return of each token, `[R, T]`, 0 outside the mask, without gradient."""

    advantages: Tensor
    returns: Tensor


@torch.no_grad()
def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> Advantages:
    """Return the generalised advantage estimate of each token and the return that its value should have been.

    d_t = r_t + gamma V_(t+1) - V_t, A_t = d_t + gamma lam A_(t+1), return_t = A_t + V_t: Schulman et al. 2016,
    arXiv:1506.02438 eq. 11-16. The value after the last token is 0: nothing is bootstrapped, an answer that was
    cut off by its length included, as in TRL. All tensors are `[R, T]`; `mask` has no gaps.

    Raises:
        ValueError: the shapes differ.
    """
    check_shapes(mask.shape, rewards=rewards, values=values)
    values = masked(values, mask)
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    deltas = masked(rewards, mask) + gamma * following - values
    advantages = torch.zeros_like(deltas)
    running = torch.zeros_like(deltas[:, 0]) if deltas.shape[1] else None
    for token in reversed(range(deltas.shape[1])):
        running = torch.add(deltas[:, token], running, alpha=gamma * lam)
        advantages[:, token] = running
    return Advantages(advantages, advantages + values)


@torch.no_grad()
def leave_one_out(scores: Tensor, valid: Tensor, group: int) -> Tensor:
    """Return each score less the mean of the other valid scores of its prompt, `[R]`.

    RLOO: Kool et al. 2019; Ahmadian et al. 2024, arXiv:2402.14740 eq. 8. The answers of a prompt are `group`
    neighbouring rows. 0 where a row is not `valid` (bool) or is the only valid one. Computed as
    n / (n - 1) times the distance from the mean of all n, which is the same.

    Raises:
        ValueError: `group` does not divide R, or the shapes differ.
    """
    centred, count = _centred(scores, valid, group)
    return (centred * count / (count - 1).clamp(min=1)).flatten()


@torch.no_grad()
def group_normalised(scores: Tensor, valid: Tensor, group: int, *, eps: float = 1e-4) -> Tensor:
    """Return (score - mean) / (std + eps) over the valid scores of each prompt, `[R]`.

    GRPO: arXiv:2402.03300 section 4.1.2. The standard deviation has n - 1 in its denominator and `eps` is added
    to it, as in TRL 0.24. The answers of a prompt are `group` neighbouring rows. 0 where a row is not `valid`
    (bool) or is the only valid one.

    Raises:
        ValueError: `group` does not divide R, or the shapes differ.
    """
    centred, count = _centred(scores, valid, group)
    deviation = (centred.square().sum(dim=1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return (centred / (deviation + eps)).flatten()


def _centred(scores: Tensor, valid: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Return the scores less the mean of their group, 0 where invalid, `[R / group, group]`, and the counts."""
    check_shapes(scores.shape[:1], scores=scores, valid=valid)
    if group < 1 or len(scores) % group:
        raise ValueError(f"{len(scores)} answers cannot be split into groups of {group} answers per prompt")
    valid = valid.reshape(-1, group)
    scores = masked(scores.reshape(-1, group), valid)
    count = valid.sum(dim=1, keepdim=True).to(scores.dtype)
    mean = scores.sum(dim=1, keepdim=True) / count.clamp(min=1)
    return masked(scores - mean, valid), count


@torch.no_grad()
def masked_whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True, total: Total = one_rank) -> Tensor:
    """Return the values under the mask scaled to variance 1 over all ranks, and to mean 0 with `shift_mean`; else 0.

    (x - mean) / sqrt(variance + 1e-8), unbiased variance: `masked_whiten` of TRL 0.24's trl/core.py on one rank.
    A single value has variance 0. `total` sums a small tensor over all ranks and is called twice.

    Raises:
        ValueError: the shapes differ.
    """
    check_shapes(mask.shape, values=values)
    found = moments(values, mask, total)
    whitened = (masked(values, mask) - found.mean) * torch.rsqrt(found.variance + 1e-8)
    if not shift_mean:
        whitened = whitened + found.mean
    return masked(whitened, mask).to(values.dtype)


class RunningMoments(nn.Module):
    """Mean and variance of all scores seen so far over all ranks, for `ppo_score_norm`; saved with the module.

    Buffers: `mean`, `var` (biased, as TRL's) and `count`. Batches are merged as in Chan et al. 1979; this is the
    class of the same name of TRL up to 0.9, whose PPO divided by its `std`.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros((), dtype=torch.float32))
        self.register_buffer("var", torch.ones((), dtype=torch.float32))
        self.register_buffer("count", torch.zeros((), dtype=torch.float32))

    @torch.no_grad()
    def update(self, scores: Tensor, valid: Tensor, total: Total = one_rank) -> None:
        """Take in the valid (bool) ones of the scores, both `[R]`, of all ranks.

        Raises:
            ValueError: the shapes differ.
        """
        check_shapes(scores.shape[:1], scores=scores, valid=valid)
        batch = moments(scores.to(self.mean.dtype), valid, total)
        count = self.count + batch.count
        share = batch.count / count.clamp(min=1)
        distance = batch.mean - self.mean
        squares = self.var * self.count + batch.squares + distance.square() * self.count * share
        # A batch without valid scores changes nothing, not even by rounding.
        self.var.copy_(torch.where(batch.count > 0, squares / count.clamp(min=1), self.var))
        self.mean.add_(distance * share)
        self.count.copy_(count)

    @property
    def std(self) -> Tensor:
        """The standard deviation with n - 1 in its denominator, a scalar; 1 until two scores were seen."""
        unbiased = (self.var * self.count / (self.count - 1).clamp(min=1)).sqrt()
        return torch.where(self.count > 1, unbiased, torch.ones_like(unbiased))

    def normalised(self, scores: Tensor) -> Tensor:
        """Return (scores - mean) / (std + the dtype's epsilon), as TRL 0.9's PPO with score scaling and norm."""
        deviation = self.std.to(scores.dtype) + torch.finfo(scores.dtype).eps
        return (scores - self.mean.to(scores.dtype)) / deviation
