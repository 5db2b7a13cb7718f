"""Training of beta's own parameters, apart from the policy's and the same under every way to distribute the policy.

The strategy is small: a head with one hidden layer has 128 times the model's width in weights. `side_optimizer` says
how such parameters are stepped.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback

from ledpo_plugin.betas import BetaStrategy
from ledpo_plugin.modeling.head_file import HeadFileError

from .side_optimizer import SideOptimizer, mean_over_ranks

STATE = "ledpo_training_state.safetensors"
MEAN = "reward_mean."


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

    def __init__(self, strategy: BetaStrategy, optimizer: SideOptimizer | None, *, device: torch.device):
        """Set up the training of a strategy.

        Args:
            strategy: on its device.
            optimizer: of the strategy's parameters; None where it has none to train.
            device: of the running mean of rewards.
        """
        self.reward_mean = RunningMean().to(device)
        self.strategy, self.optimizer = strategy, optimizer
        self.resting = False  # while steps are not about beta; its moments would move it on without a gradient
        self._grad_norms: list[Tensor] = []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        """Step the strategy, unless it rests."""
        if self.resting:
            return
        if self.optimizer is not None:
            self._grad_norms.append(self.optimizer.step())
        self.strategy.after_optimizer_step(mean_over_ranks)

    def take_metrics(self) -> dict[str, float]:
        """Return the mean norm of the gradient since the last call; nothing where no step was made."""
        if not self._grad_norms:
            return {}
        norm = torch.stack(self._grad_norms).mean().item()
        self._grad_norms.clear()
        return {"beta/head_grad_norm": norm}

    def save(self, folder: str | Path) -> None:
        """Write the optimizer's moments and the running reward mean into `folder`."""
        tensors = {MEAN + name: value.cpu() for name, value in self.reward_mean.state_dict().items()}
        if self.optimizer is not None:
            tensors |= self.optimizer.tensors()
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
        if self.optimizer is not None:
            self.optimizer.load(tensors)
