"""AdamW for small parameters that are trained beside the policy and are no part of the wrapped model.

They are replicated on every rank. FSDP and DeepSpeed would shard them, and whatever optimizer the recipe chose for the
policy (GaLore, Muon, 8-bit) would not fit them. Gradients are averaged over ranks, clipped on their own (so that the
policy's clipping is what it would be without them) and stepped just before the policy's optimizer steps.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

# At a first step gradients may be 0 but for rounding. Adam divides by their size: with the usual 1e-8 rounding alone
# would move the parameters as far as anything learned.
EPSILON = 1e-5


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return the sum of `tensor` over all ranks; the tensor itself on one process."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """Return the mean of `tensor` over all ranks; the tensor itself on one process."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensor
    return sum_over_ranks(tensor) / dist.get_world_size()


class SideOptimizer:
    """Steps some parameters at a multiple of the policy's learning rate; saved and restored to the bit."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr_ratio: float,
        max_grad_norm: float,
        accelerator: Any,
        learning_rate: Callable[[], float],
    ):
        """Set up the optimizer.

        Args:
            parameters: those that take a gradient are stepped.
            lr_ratio: their learning rate, as a multiple of the policy's.
            max_grad_norm: their gradient's largest norm; 0 or below: any.
            accelerator: of the run, for the scale of its gradients under fp16.
            learning_rate: returns the policy's learning rate of the step that is due.
        """
        self.parameters = [p for p in parameters if p.requires_grad]
        self.lr_ratio, self.max_grad_norm = lr_ratio, max_grad_norm
        self.accelerator, self.learning_rate = accelerator, learning_rate
        self.adam = torch.optim.AdamW(self.parameters, lr=0.0, weight_decay=0.0, eps=EPSILON)

    def step(self) -> Tensor:
        """Average, unscale, clip and apply the gradients, then clear them; return their norm before clipping."""
        scaler = getattr(self.accelerator, "scaler", None)
        scale = scaler.get_scale() if scaler is not None and scaler.is_enabled() else 1.0
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in self.parameters])
        flat = mean_over_ranks(flat / scale if scale != 1.0 else flat)
        sizes = [p.numel() for p in self.parameters]
        for parameter, part in zip(self.parameters, flat.split(sizes), strict=True):
            parameter.grad = part.view_as(parameter).clone()
        limit = self.max_grad_norm if self.max_grad_norm > 0 else float("inf")
        norm = nn.utils.clip_grad_norm_(self.parameters, limit).detach()
        for group in self.adam.param_groups:
            group["lr"] = self.lr_ratio * self.learning_rate()
        # Under fp16 the policy's step is skipped when gradients overflow; so is this one.
        if scale == 1.0 or bool(torch.isfinite(flat).all()):
            self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        return norm

    def tensors(self) -> dict[str, Tensor]:
        """Return the optimizer's moments by names of their own."""
        state = self.adam.state_dict()["state"]
        return {f"{i}.{name}": value.cpu() for i, item in state.items() for name, value in item.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` returned."""
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = value
        self.adam.load_state_dict({**self.adam.state_dict(), "state": state})
