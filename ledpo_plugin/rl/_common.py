"""What the mathematics shares: shape checks, exponentials that stay finite, sums over ranks, moments."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# Sums a small tensor over all ranks, element by element; every rank calls it equally often.
Total = Callable[[Tensor], Tensor]

# Above this log-ratio an exponential goes on along its tangent: e^20 is far beyond any clip, and the square
# of e^20 times ten thousand nats still fits into fp32.
LARGEST_EXPONENT = 20.0


def one_rank(tensor: Tensor) -> Tensor:
    """Return the sum over ranks of a run with one process: the tensor itself."""
    return tensor


def check_shapes(expected: torch.Size, **tensors: Tensor) -> None:
    """Refuse every tensor that has another shape: broadcasting would turn `[R]` into a plausible `[R, R]`.

    Raises:
        ValueError: "values has shape (4,), expected (4, 7)".
    """
    for name, tensor in tensors.items():
        if tensor.shape != expected:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(expected)}")


def masked(values: Tensor, mask: Tensor) -> Tensor:
    """Return the values where the mask is True, else 0; NaN outside gets neither into values nor into gradients."""
    return torch.where(mask, values, torch.zeros_like(values))


def bounded_exp(exponent: Tensor) -> Tensor:
    """Return e^x up to x = 20, and its tangent there beyond: finite, rising, with a gradient of the right sign."""
    low = _capped(exponent)
    return torch.exp(low) * (1 + torch.relu(exponent - LARGEST_EXPONENT))


def bounded_expm1(exponent: Tensor) -> Tensor:
    """Return e^x - 1 without loss of digits near 0, and beyond x = 20 the same tangent as `bounded_exp`."""
    low = _capped(exponent)
    return torch.expm1(low) + torch.exp(low) * torch.relu(exponent - LARGEST_EXPONENT)


def _capped(exponent: Tensor) -> Tensor:
    """Return the exponent, at most 20; unlike clamp's, the gradient at 20 itself is 1."""
    return torch.where(exponent > LARGEST_EXPONENT, LARGEST_EXPONENT, exponent)


class Moments(NamedTuple):
    """Mean, sum of squared deviations from it, and count of some values; scalars, all 0 where there are none."""

    mean: Tensor
    squares: Tensor
    count: Tensor

    @property
    def variance(self) -> Tensor:
        """The unbiased variance; 0 for fewer than two values."""
        return self.squares / (self.count - 1).clamp(min=1)


def moments(values: Tensor, mask: Tensor, total: Total = one_rank) -> Moments:
    """Return the moments of the values under the mask, of any one shape, over all ranks, in fp32 or better.

    Two passes, hence two sums over ranks: a sum of squares loses its digits where the mean is large.
    """
    wide = masked(values, mask).to(torch.promote_types(values.dtype, torch.float32))
    summed, count = total(torch.stack([wide.sum(), mask.sum().to(wide.dtype)])).unbind()
    mean = summed / count.clamp(min=1)
    return Moments(mean, total(masked(wide - mean, mask).square().sum()), count)
