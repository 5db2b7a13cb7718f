"""Maps from an unbounded number to ln(beta / beta0). All are 0, exactly, at 0, so that training starts at beta0."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

_SOFTPLUS_SHIFT = math.log(math.e - 1)  # softplus of it is 1
_RELU_FLOOR = 1e-6


@dataclass(frozen=True)
class Bounds:
    """The interval that a learned beta stays inside of: beta_min < beta0 < beta_max."""

    beta0: float
    beta_min: float
    beta_max: float

    def __post_init__(self) -> None:
        if not 0 < self.beta_min < self.beta0 < self.beta_max:
            raise ValueError(
                f"0 < beta_min < pref_beta < beta_max must hold, got beta_min={self.beta_min}, "
                f"pref_beta={self.beta0}, beta_max={self.beta_max}"
            )

    def bound(self, raw: Tensor) -> Tensor:
        """Map any log factor smoothly into (ln(beta_min/beta0), ln(beta_max/beta0)): slope 1 at 0, C1, monotone.

        r tanh(raw / r) on each side of 0 with that side's own range r. The gradient vanishes only as raw leaves the
        range, where a clamp's would be 0 at once.
        """
        up, down = math.log(self.beta_max / self.beta0), math.log(self.beta0 / self.beta_min)
        return torch.where(raw >= 0, up * torch.tanh(raw / up), down * torch.tanh(raw / down))

    def beta(self, log_ratio: Tensor) -> Tensor:
        """Return beta0 exp(log_ratio), strictly inside the bounds also where fp32 rounds tanh to 1."""
        return (self.beta0 * log_ratio.exp()).clamp(self.beta_min * (1 + 1e-6), self.beta_max * (1 - 1e-6))


# The maps below subtract their value at `zeros_like(u)`, not at a scalar: the same kernel on the same shape rounds the
# same way, so that u = 0 gives exactly 0.


def _exp_tanh(u: Tensor, bounds: Bounds) -> Tensor:
    """beta0 exp(u), bounded by tanh."""
    return bounds.bound(u)


def _softplus(u: Tensor, bounds: Bounds) -> Tensor:
    """beta0 softplus(u + c), softplus(c) = 1, bounded."""
    return bounds.bound(_log_softplus(u) - _log_softplus(torch.zeros_like(u)))


def _log_softplus(u: Tensor) -> Tensor:
    x = u + _SOFTPLUS_SHIFT
    # ln softplus(x) = x - e^x / 2 + ... below -15: x to fp32 accuracy, where softplus itself would underflow.
    return torch.where(x < -15, x, F.softplus(x.clamp(min=-15)).log())


def _relu(u: Tensor, bounds: Bounds) -> Tensor:
    """beta0 relu(1 + u), bounded; below the floor the gradient is 0: a head that gets there stays there."""
    return bounds.bound((1 + u).clamp(min=_RELU_FLOOR).log())


def _sigmoid(u: Tensor, bounds: Bounds) -> Tensor:
    """beta_min + (beta_max - beta_min) s(u + c), which is beta0 at u = 0; its bounds are its own."""
    share = (bounds.beta0 - bounds.beta_min) / (bounds.beta_max - bounds.beta_min)
    shift = math.log(share) - math.log1p(-share)
    rise = torch.sigmoid(u + shift) - torch.sigmoid(torch.zeros_like(u) + shift)
    factor = 1 + (bounds.beta_max - bounds.beta_min) / bounds.beta0 * rise
    # The difference above may round to a hair below beta_min / beta0.
    return factor.clamp(min=bounds.beta_min / bounds.beta0).log()


# Name in the recipe (`beta_head_activation`) -> map from the head's output u to ln(beta / beta0).
ACTIVATIONS: Mapping[str, Callable[[Tensor, Bounds], Tensor]] = MappingProxyType(
    {"exp_tanh": _exp_tanh, "softplus": _softplus, "relu": _relu, "sigmoid": _sigmoid}
)
