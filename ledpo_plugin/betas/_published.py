"""The published adaptive betas: beta-DPO, epsilon-DPO and MallowsPO. None has parameters or gives beta a gradient."""

import math
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

from ledpo_plugin.betas._types import BetaFeatures, BetaOutput, BetaStrategy
from ledpo_plugin.hparams import LedpoArguments

_SMALLEST_BETA = 1e-3  # beta-DPO's floor
_SMALLEST_DEVIATION = 1e-8  # all margins equal, as at step 0: every pair then weighs the same
_ENTROPY_MARGIN = 1e-6  # keeps the normalised entropy inside (0, 1), hence beta finite and positive


class BetaDpo(BetaStrategy):
    """beta-DPO: one beta per batch, from the mean margin of the pairs that a filter keeps.

    With margins D of the global batch of N pairs, per training forward:
    M <- m M + (1 - m) mean(D), S <- m S + (1 - m) std(D), both 0 at the start and moved before use;
    keep n = floor(N (1 - filter)) pairs, drawn without replacement with weights exp(-((D - M) / S)^2 / 2);
    beta = max(beta0 (1 + alpha (mean(D kept) - M)), 0.001).
    arXiv:2407.08639; trainers.py of the authors' repository junkangwu/beta-DPO. There as here the statistics are those
    of one forward pass over all ranks: gradient accumulation does not make the batch larger.

    Departures from that code: `weights` makes the loss the mean over the kept pairs of the global batch, where it
    takes each rank's own mean first; in evaluation nothing is filtered or moved and beta is that of a batch at the
    running mean, beta0, where it treats evaluation as training; at least one pair is kept; weights are compared as
    logarithms, so that pairs far from M do not all underflow to 0; rewards use the same beta as the loss.
    """

    def __init__(
        self,
        *,
        beta0: float = 0.1,
        alpha: float = 0.6,
        filter_share: float = 0.2,
        momentum: float = 0.9,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.beta0 = beta0
        self.alpha = alpha
        self.filter_share = filter_share
        self.momentum = momentum
        self.seed = seed
        self.draws = 0
        self.register_buffer("mean", torch.zeros((), dtype=torch.float32))
        self.register_buffer("deviation", torch.zeros((), dtype=torch.float32))

    @classmethod
    def from_arguments(cls, args: LedpoArguments, *, beta0: float, hidden_size: int, seed: int = 0) -> Self:
        """Build the strategy from the `beta_dpo_*` keys; `seed` must be the same on all ranks."""
        return cls(
            beta0=beta0,
            alpha=args.beta_dpo_alpha,
            filter_share=args.beta_dpo_filter,
            momentum=args.beta_dpo_momentum,
            seed=seed,
        )

    def forward(self, features: BetaFeatures) -> BetaOutput:
        """Return beta `[B]`, one value, and in training the `weights` `[B]`: N / n for kept pairs, else 0.

        Raises:
            ValueError: one pair over all ranks, whose standard deviation is undefined.
        """
        local = features.need("margin")
        if not features.training:
            return BetaOutput(self._beta(self.mean).expand(features.size))
        margins = features.gather(local)
        total = margins.numel()
        if total < 2:
            raise ValueError("beta_dpo needs at least 2 pairs per step over all ranks, got 1")
        self.mean.lerp_(margins.mean(), 1 - self.momentum)
        self.deviation.lerp_(margins.std(), 1 - self.momentum)
        kept = self._keep(margins)
        number = kept.sum()
        weights = kept[features.rank * features.size :][: features.size] * (total / number)
        return BetaOutput(self._beta((margins * kept).sum() / number).expand(features.size), weights=weights)

    def _beta(self, margin: Tensor) -> Tensor:
        return (self.beta0 * (1 + self.alpha * (margin - self.mean))).clamp(min=_SMALLEST_BETA)

    def _keep(self, margins: Tensor) -> Tensor:
        """Return the filter's 0/1 mask over the global batch, the same on all ranks.

        The n largest of log weight + Gumbel noise are a draw without replacement with these weights. The noise comes
        from a CPU generator seeded anew for each draw, so it neither depends on the device nor on other random draws.
        """
        total = margins.numel()
        # 1e-9: 10 * (1 - 0.9) is a hair below 1.
        number = max(1, math.floor(total * (1 - self.filter_share) + 1e-9))
        # The CPU generator reads 32 bits of its seed; the odd factor spreads neighbouring seeds over them.
        generator = torch.Generator().manual_seed((self.seed * 2654435761 + self.draws) % 2**32)
        self.draws += 1
        noise = -torch.empty(total, dtype=torch.float32).exponential_(generator=generator).log()
        distance = (margins - self.mean) / self.deviation.clamp(min=_SMALLEST_DEVIATION)
        # non_blocking: the small copy is staged at once, the host does not wait for the device.
        scores = noise.to(margins.device, non_blocking=True) - 0.5 * distance.square()
        return torch.zeros_like(margins).index_fill_(0, scores.topk(number).indices, 1.0)

    # The number of draws lives on the host (reading it from a device would wait for it) and is saved beside the
    # buffers, so that a resumed run draws what the uninterrupted one would have drawn.

    def get_extra_state(self) -> Tensor:
        """Return the number of draws for `state_dict`, as a tensor on the CPU."""
        return torch.tensor(self.draws)

    def set_extra_state(self, state: Tensor) -> None:
        """Take the number of draws from a `state_dict`."""
        self.draws = int(state)


class EpsilonDpo(BetaStrategy):
    """epsilon-DPO: beta per pair, by whether a small step away from the reference makes the policy surer of the pair.

    beta_i = beta / (1 + epsilon step_i) with the step of `epsilon_steps`; after each optimizer step
    beta <- beta / (1 + epsilon mean(step)), the mean being over micro-batches and ranks.
    arXiv:2502.13177; trainer.py of the authors' repository oddqueue/e-dpo. In evaluation beta_i is formed in the same
    way, and nothing accumulates. Label smoothing acts on the loss as cDPO's; there it has no effect.
    """

    def __init__(self, *, beta0: float = 0.01, epsilon: float = 0.01) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.register_buffer("beta", torch.tensor(beta0, dtype=torch.float32))
        # Sum of the mean steps of the micro-batches since the last optimizer step, and their number.
        self.register_buffer("step_sum", torch.zeros((), dtype=torch.float32))
        self.register_buffer("batches", torch.zeros((), dtype=torch.float32))

    @classmethod
    def from_arguments(cls, args: LedpoArguments, *, beta0: float, hidden_size: int, seed: int = 0) -> Self:
        """Build the strategy from `epsilon_dpo_epsilon`."""
        return cls(beta0=beta0, epsilon=args.epsilon_dpo_epsilon)

    def forward(self, features: BetaFeatures) -> BetaOutput:
        """Return beta `[B]` from `features.epsilon_step` `[B]`."""
        step = features.need("epsilon_step").float()
        if features.training:
            self.step_sum += step.mean()
            self.batches += 1
        return BetaOutput(self.beta / (1 + self.epsilon * step))

    def after_optimizer_step(self, mean_over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Move the base beta by the mean step since the last call, and start counting anew."""
        mean = mean_over_ranks(self.step_sum / self.batches.clamp(min=1))
        self.beta /= 1 + self.epsilon * mean
        self.step_sum.zero_()
        self.batches.zero_()


@torch.no_grad()
def mixture_token_logps(
    policy_logits: Tensor, reference_logits: Tensor, labels: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Return the labels' log-probabilities under the two mixtures of epsilon-DPO, `(up, down)`, each `[N]` fp32.

    up: logits (1 + epsilon) policy - epsilon reference, a step away from the reference; down: (1 - epsilon) policy +
    epsilon reference, a step towards it. Logits are `[N, V]`, labels `[N]` token ids. Sum over an answer's tokens to
    get its log-probability. No gradient.
    """
    policy, reference = policy_logits.float(), reference_logits.float()
    index = labels.unsqueeze(-1)

    def logps(weight: float) -> Tensor:
        mixed = torch.lerp(policy, reference, weight)
        return mixed.gather(-1, index).squeeze(-1) - mixed.logsumexp(-1)

    return logps(-epsilon), logps(epsilon)


def epsilon_steps(gap_up: Tensor, gap: Tensor, gap_down: Tensor) -> Tensor:
    """Return epsilon-DPO's step per pair, `[B]` in {-1, 0, +1}.

    A gap is ln p(chosen) - ln p(rejected) under the up mixture, the policy and the down mixture. +1 (beta falls) if it
    grows strictly from down over policy to up; -1 (beta rises) if it shrinks strictly; else 0.
    """
    rising = (gap_up > gap) & (gap > gap_down)
    falling = (gap_up < gap) & (gap < gap_down)
    return rising.to(gap.dtype) - falling.to(gap.dtype)


class MallowsBeta(BetaStrategy):
    """MallowsPO-theta: beta = beta0 (-phi ln H), H the reference's normalised token entropy on the pair's answers.

    Prompts that the reference answers with little entropy get a higher beta. H is the mean over both answers of the
    token entropy averaged over the answer, divided by ln|V|. arXiv:2405.14953; mallowsPO_trainer.py of the authors'
    repository haoxian-chen/MallowsPO. phi = 0.29 makes the mean of -phi ln H about 1 there.

    Departures from that code: rewards carry the whole beta, where it leaves out -phi ln H; H is kept 1e-6 inside
    (0, 1). Its defaults are beta 10, log-probabilities per token and no reference in the margin; the loss here is plain
    DPO. Its IPO form (`mallows_ipo`) is not offered.
    """

    def __init__(self, *, beta0: float = 0.1, phi: float = 0.29) -> None:
        super().__init__()
        self.beta0 = beta0
        self.phi = phi

    @classmethod
    def from_arguments(cls, args: LedpoArguments, *, beta0: float, hidden_size: int, seed: int = 0) -> Self:
        """Build the strategy from `mallows_phi`."""
        return cls(beta0=beta0, phi=args.mallows_phi)

    def forward(self, features: BetaFeatures) -> BetaOutput:
        """Return beta `[B]` from `features.reference_entropy` `[B]`."""
        entropy = features.need("reference_entropy").clamp(_ENTROPY_MARGIN, 1 - _ENTROPY_MARGIN)
        return BetaOutput(-self.beta0 * self.phi * entropy.log())
