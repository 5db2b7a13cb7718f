"""Training of beta's own parameters, apart from the policy's and the same under every way to distribute the policy.

The strategy is small (a head with one hidden layer: 128 times the model's width), replicated on every rank and never
part of the wrapped model: FSDP and DeepSpeed would shard it, and whatever optimizer the recipe chose for the policy
(GaLore, Muon, 8-bit) would not fit it. Its gradients are averaged over ranks, clipped on their own (so that the
policy's clipping is what it would be without it) and stepped by AdamW just before the policy's optimizer steps, at
`beta_lr_ratio` times its learning rate.
"""

from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback

from .betas import BetaStrategy
from .head_file import HeadFileError

STATE = "ledpo_training_state.safetensors"
MEAN = "reward_mean."
# At the first step every margin is 0 but for rounding, and so is the gradient. Adam divides by its size: with the usual
# 1e-8 rounding alone would move beta as far as anything learned.
EPSILON = 1e-5


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """Return the mean of `tensor` over all ranks; the tensor itself on one process."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


class RunningMean(nn.Module):
    """Mean of one number per step over all steps so far and all ranks (BCO's delta, arXiv:2404.04656, eq. 9)."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("count", torch.zeros(()))

    def update(self, value: Tensor) -> Tensor:
        """Take in this rank's value of this step and return the new mean, a scalar."""
        self.count += 1
        self.mean += (mean_over_ranks(value.detach()) - self.mean) / self.count
        return self.mean.clone()


class BetaTraining(TrainerCallback):
    """Steps the strategy's parameters with the policy's optimizer; saved and restored to the bit."""

    def __init__(self, strategy: BetaStrategy, *, lr_ratio: float, max_grad_norm: float, trainer):
        self.reward_mean = RunningMean().to(trainer.args.device)
        self.strategy = strategy
        self.lr_ratio = lr_ratio
        self.max_grad_norm = max_grad_norm
        self.trainer = trainer
        self.parameters = [p for p in strategy.parameters() if p.requires_grad]
        self.optimizer = None
        if self.parameters:
            self.optimizer = torch.optim.AdamW(self.parameters, lr=0.0, weight_decay=0.0, eps=EPSILON)
        self.grad_norms: list[Tensor] = []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        """Average, unscale, clip and apply the strategy's gradients, then clear them."""
        if self.optimizer is not None:
            self._step()
        self.strategy.after_optimizer_step(mean_over_ranks)

    def _step(self) -> None:
        scaler = getattr(self.trainer.accelerator, "scaler", None)
        scale = scaler.get_scale() if scaler is not None and scaler.is_enabled() else 1.0
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in self.parameters])
        flat = mean_over_ranks(flat / scale if scale != 1.0 else flat)
        sizes = [p.numel() for p in self.parameters]
        for parameter, part in zip(self.parameters, flat.split(sizes), strict=True):
            parameter.grad = part.view_as(parameter).clone()
        limit = self.max_grad_norm if self.max_grad_norm > 0 else float("inf")
        self.grad_norms.append(nn.utils.clip_grad_norm_(self.parameters, limit).detach())
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr_ratio * self.trainer._get_learning_rate()
        # Under fp16 the policy's step is skipped when gradients overflow; so is this one.
        if scale == 1.0 or bool(torch.isfinite(flat).all()):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def save(self, folder: str | Path) -> None:
        """Write the optimizer's moments and the running reward mean into `folder`."""
        tensors = {MEAN + name: value.cpu() for name, value in self.reward_mean.state_dict().items()}
        if self.optimizer is not None:
            state = self.optimizer.state_dict()["state"]
            tensors |= {f"{i}.{name}": value.cpu() for i, item in state.items() for name, value in item.items()}
        save_file(tensors, Path(folder) / STATE)

    def load(self, folder: str | Path) -> None:
        """Restore what `save` wrote into `folder`.

        Raises:
            HeadFileError: the file is missing or damaged; going on without it would not be the same training.
        """
        path = Path(folder) / STATE
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise HeadFileError(
                f"{path} is missing or damaged ({error}), so training cannot be resumed exactly. "
                "Resume from an earlier checkpoint."
            ) from None
        mean = {key.removeprefix(MEAN): tensors.pop(key) for key in list(tensors) if key.startswith(MEAN)}
        self.reward_mean.load_state_dict(mean)
        if self.optimizer is None:
            return
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
