"""What a beta strategy takes and gives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Self

from torch import Tensor, nn

from ledpo_plugin.facts import BETAS, BetaMode, Need
from ledpo_plugin.hparams import LedpoArguments


@dataclass(frozen=True)
class Progress:
    """How far a run has come, in optimizer steps, in numbers of the host: reading them waits for no device.

    Attributes:
        step: Steps taken before this batch: 0 in the first one, the same for all batches that one step accumulates,
            `total` once training is over. A resumed run goes on counting.
        total: Steps of the whole run, from `max_steps` or the epochs.
    """

    step: int
    total: int

    @property
    def share(self) -> float:
        """Return how much of the run is behind: 0 in its first step, 1 once it is over."""
        return 1.0 if self.step >= self.total else self.step / self.total


FINISHED = Progress(1, 1)  # where nothing is trained any more and the run's own steps are not known


@dataclass(frozen=True)
class BetaFeatures:
    """What is known of a batch of `B` examples when its beta is decided; only what the strategy asked for is set.

    Everything is detached, fp32 and on the strategy's device.
    """

    size: int  # B
    hidden: Tensor | None = None  # [B, d], last-layer hidden state of the last prompt token
    prompt_nll: Tensor | None = None  # [B], mean negative log-likelihood of the prompt's tokens, nats
    margin: Tensor | None = None  # [B], beta-free margin (log-ratio of chosen minus that of rejected), nats
    reference_entropy: Tensor | None = None  # [B], reference token entropy, mean over both answers, / ln|V|
    epsilon_step: Tensor | None = None  # [B], in {-1, 0, +1}
    # Gathers a [B] tensor over all ranks into [world * B]; the identity on one process.
    gather: Callable[[Tensor], Tensor] = lambda tensor: tensor
    rank: int = 0
    training: bool = True  # running statistics move only in training
    progress: Progress | None = None  # of the run; whoever asks a strategy for beta sets it

    def need_progress(self) -> Progress:
        """Return the progress of the run.

        Raises:
            ValueError: it is not set.
        """
        if self.progress is None:
            raise ValueError("this beta mode follows the steps of the run, and the progress of the run is not set")
        return self.progress

    def need(self, name: Need) -> Tensor:
        """Return the field `name`.

        Raises:
            ValueError: it is not set, or has another shape than `[B]` (`hidden`: `[B, d]`).
        """
        tensor = getattr(self, name)
        if tensor is None:
            raise ValueError(f"this beta mode needs the feature {name!r}, which is not set")
        expected = (self.size, tensor.shape[-1]) if name == "hidden" else (self.size,)
        if tuple(tensor.shape) != expected:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {expected}")
        return tensor


class BetaOutput(NamedTuple):
    """Beta per example `[B]`, positive; `weights` `[B]` multiplies the losses (None: all ones).

    `log_ratio` is ln(beta / beta0) `[B]` with gradient where beta is learned, None otherwise: the penalty's argument.
    """

    beta: Tensor
    weights: Tensor | None = None
    log_ratio: Tensor | None = None


_PACKAGE = __name__.rpartition(".")[0]


class BetaStrategy(nn.Module):
    """Decides beta per example. Learned values are Parameters, running statistics are buffers: both are saved."""

    @property
    def mode(self) -> BetaMode:
        """Return what is known of it: its row in the table of beta modes.

        Raises:
            LookupError: it has none.
        """
        own = f"{type(self).__module__}:{type(self).__qualname__}"
        for mode in BETAS.values():
            if own == (f"{_PACKAGE}{mode.where}" if mode.where.startswith(".") else mode.where):
                return mode
        raise LookupError(f"{own} is the strategy of no beta mode. Give it a row in ledpo_plugin.facts.betas.")

    @property
    def needs(self) -> frozenset[Need]:
        """Return the fields of `BetaFeatures` that it must be given."""
        return self.mode.needs

    @classmethod
    def from_arguments(cls, args: LedpoArguments, *, beta0: float, hidden_size: int, seed: int = 0) -> Self:
        """Build the strategy from a recipe; `beta0` is its `pref_beta`, `seed` that of the head or the sampling."""
        raise NotImplementedError

    def forward(self, features: BetaFeatures) -> BetaOutput:
        """Return beta for every example of the batch."""
        raise NotImplementedError

    def after_optimizer_step(self, mean_over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Move what changes once per optimizer step, not per forward (gradient accumulation).

        `mean_over_ranks` averages a tensor over all ranks; every rank calls it equally often.
        """
