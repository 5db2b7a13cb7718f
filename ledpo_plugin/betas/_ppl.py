"""Beta from the prompt's perplexity."""

from typing import Self

import torch
from torch import Tensor, nn

from ledpo_plugin.betas._learned import PromptBeta, parse_widths
from ledpo_plugin.betas._types import BetaFeatures, BetaOutput
from ledpo_plugin.hparams import LedpoArguments

_REFERENCE_MOMENTUM = 0.99


class PplBeta(PromptBeta):
    """beta = w PPL(x)^p (1 + eps tanh(NN(h))), w = beta0 exp(theta) / PPL_ref^p, inside the bounds.

    PPL_ref is the running geometric mean of the prompts' perplexity over all ranks (momentum 0.99, set by the first
    training batch), so that beta starts around beta0; theta and NN start at 0. Gradient reaches theta and the network.

    The sign of p is open. The theory this follows (xdpo/ledpo-core-theory.md in 1587causalai/llama_factory) wants a
    high beta, that is trust in the reference, on familiar prompts, yet writes beta as proportional to PPL, which is
    high on unfamiliar ones. p = 1 is what it writes, p = -1 what it says: try both.
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        beta0: float = 0.1,
        beta_min: float | None = None,
        beta_max: float | None = None,
        center: bool = False,
        widths: tuple[int, ...] = (128,),
        power: int = 1,
        epsilon: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(
            hidden_size=hidden_size,
            beta0=beta0,
            beta_min=beta_min,
            beta_max=beta_max,
            center=center,
            widths=widths,
            seed=seed,
        )
        self.power = power
        self.epsilon = epsilon
        self.theta = nn.Parameter(torch.zeros(1, dtype=torch.float32))
        self.register_buffer("log_ppl_reference", torch.zeros((), dtype=torch.float32))
        self.register_buffer("seen", torch.zeros((), dtype=torch.bool))

    @classmethod
    def from_arguments(cls, args: LedpoArguments, *, beta0: float, hidden_size: int, seed: int = 0) -> Self:
        """Build the strategy from the `beta_*` and `beta_ppl_*` keys."""
        return cls(
            hidden_size=hidden_size,
            beta0=beta0,
            beta_min=args.beta_min,
            beta_max=args.beta_max,
            center=args.beta_center,
            widths=parse_widths(args.beta_head_widths),
            power=args.beta_ppl_power,
            epsilon=args.beta_ppl_epsilon,
            seed=seed,
        )

    def forward(self, features: BetaFeatures) -> BetaOutput:
        """Return beta `[B]` from `features.prompt_nll` `[B]` and `features.hidden` `[B, d]`."""
        nll = features.need("prompt_nll")
        network = torch.log1p(self.epsilon * torch.tanh(self.head(features.need("hidden"))))
        raw = self.theta + self.power * (nll - self._reference(nll, features)) + network
        return self._output(self.bounds.bound(raw - self.offset), features)

    def _reference(self, nll: Tensor, features: BetaFeatures) -> Tensor:
        """Return ln PPL_ref, moved first in training; before any training it is the batch's own mean."""
        if features.training:
            mean = features.gather(nll).mean()
            moved = self.log_ppl_reference.lerp(mean, 1 - _REFERENCE_MOMENTUM)
            self.log_ppl_reference.copy_(torch.where(self.seen, moved, mean))
            self.seen.fill_(True)
        return torch.where(self.seen, self.log_ppl_reference, nll.mean())
