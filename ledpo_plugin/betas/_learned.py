"""Betas that the loss trains: one scalar, or a head on the prompt's hidden state.

A bare head on -LS(beta D) has no optimum: its gradient, -D s(-beta D), pushes beta to infinity where the margin D is
positive and to 0 where it is not. Hence the smooth bounds, the penalty on `log_ratio` (the trainer's) and `center`.
"""

from itertools import pairwise
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ledpo_plugin.betas._maps import ACTIVATIONS, Bounds
from ledpo_plugin.betas._types import BetaFeatures, BetaOutput, BetaStrategy
from ledpo_plugin.hparams import LedpoArguments

_CENTER_MOMENTUM = 0.5  # a head that drifts by d a step is held at d / (1 - momentum); 0.9 let it drift far


class LearnedBeta(BetaStrategy):
    """What learned betas share: they start at beta0 and stay inside bounds, by default beta0 / 10 and beta0 * 10.

    Raises:
        ValueError: not 0 < beta_min < beta0 < beta_max.
    """

    def __init__(self, *, beta0: float = 0.1, beta_min: float | None = None, beta_max: float | None = None) -> None:
        super().__init__()
        self.bounds = Bounds(
            beta0=beta0,
            beta_min=beta0 / 10 if beta_min is None else beta_min,
            beta_max=beta0 * 10 if beta_max is None else beta_max,
        )


class GlobalBeta(LearnedBeta):
    """One learned scalar: beta = beta0 exp(bound(theta)), theta = 0 at the start."""

    def __init__(self, *, beta0: float = 0.1, beta_min: float | None = None, beta_max: float | None = None) -> None:
        super().__init__(beta0=beta0, beta_min=beta_min, beta_max=beta_max)
        self.theta = nn.Parameter(torch.zeros(1, dtype=torch.float32))  # [1]: sharded optimizers refuse scalars

    @classmethod
    def from_arguments(cls, args: LedpoArguments, *, beta0: float, hidden_size: int, seed: int = 0) -> Self:
        """Build the strategy from `beta_min` and `beta_max`."""
        return cls(beta0=beta0, beta_min=args.beta_min, beta_max=args.beta_max)

    def forward(self, features: BetaFeatures) -> BetaOutput:
        """Return beta `[B]`, the same for all, with gradient to theta."""
        log_ratio = self.bounds.bound(self.theta).expand(features.size)
        return BetaOutput(self.bounds.beta(log_ratio), log_ratio=log_ratio)


class PromptBeta(LearnedBeta):
    """A learned beta with a head on the prompt's hidden state, and the option to hold its mean.

    `center` holds the running geometric mean of beta at beta0, as far as the bounds allow, by integral control: the
    buffer `offset` (0 at the start) collects half of each training batch's mean log factor, over all ranks, and
    subclasses subtract it from what they map. Outside training it stays as it is.
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
        seed: int = 0,
    ) -> None:
        super().__init__(beta0=beta0, beta_min=beta_min, beta_max=beta_max)
        self.center = center
        self.head = Head(hidden_size=hidden_size, widths=widths, seed=seed)
        self.register_buffer("offset", torch.zeros((), dtype=torch.float32))

    def _output(self, log_ratio: Tensor, features: BetaFeatures) -> BetaOutput:
        if self.center and features.training:
            mean = features.gather(log_ratio.detach()).mean()
            self.offset += (1 - _CENTER_MOMENTUM) * mean
        return BetaOutput(self.bounds.beta(log_ratio), log_ratio=log_ratio)


class HeadBeta(PromptBeta):
    """LEDPO: beta(x) = beta0 exp(bound(u)), u = MLP(LayerNorm(h)) of the last prompt token's hidden state h.

    `activation` names the map from u to beta / beta0 (see `ACTIVATIONS`; the formula above is exp_tanh). The last layer
    starts at zero, so beta is exactly beta0 for every prompt until the first update, and the layers before it get no
    gradient from that one. Gradient reaches the head's parameters, never the hidden state.
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
        activation: str = "exp_tanh",
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
        self.activation = activation

    @classmethod
    def from_arguments(cls, args: LedpoArguments, *, beta0: float, hidden_size: int, seed: int = 0) -> Self:
        """Build the strategy from the `beta_*` keys."""
        return cls(
            hidden_size=hidden_size,
            beta0=beta0,
            beta_min=args.beta_min,
            beta_max=args.beta_max,
            center=args.beta_center,
            widths=parse_widths(args.beta_head_widths),
            activation=args.beta_head_activation,
            seed=seed,
        )

    def forward(self, features: BetaFeatures) -> BetaOutput:
        """Return beta `[B]` from `features.hidden` `[B, d]`."""
        u = self.head(features.need("hidden")) - self.offset
        return self._output(ACTIVATIONS[self.activation](u, self.bounds), features)


class Head(nn.Module):
    """LayerNorm without parameters, then Linear and GELU per width, then a Linear to one number that starts at 0.

    Always computed in fp32, also under autocast. Its initial weights come from `seed` alone: building a head leaves
    the global random state, and so the rest of the run, as it was.
    """

    def __init__(self, *, hidden_size: int, widths: tuple[int, ...] = (128,), seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        layers: list[nn.Module] = []
        for size_in, size_out in pairwise((hidden_size, *widths)):
            layers += [_linear(size_in, size_out), nn.GELU()]
            # As nn.Linear draws its weights, but from our own generator.
            nn.init.kaiming_uniform_(layers[-2].weight, a=5**0.5, generator=generator)
        layers.append(_linear((hidden_size, *widths)[-1], 1))
        self.layers = nn.Sequential(*layers)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return one number per row, `[B]` fp32, of hidden states `[B, d]`."""
        with torch.autocast(hidden.device.type, enabled=False):
            normed = F.layer_norm(hidden.detach().float(), hidden.shape[-1:])
            return self.layers(normed).squeeze(-1)


def _linear(size_in: int, size_out: int) -> nn.Linear:
    """Return a Linear of zeros, made without touching the global random state."""
    layer = nn.utils.skip_init(nn.Linear, size_in, size_out, dtype=torch.float32)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def parse_widths(text: str) -> tuple[int, ...]:
    """Return the widths of `beta_head_widths`: "128,64" -> (128, 64); "" -> (), a linear head."""
    return tuple(int(width) for width in text.split(",") if width.strip())
