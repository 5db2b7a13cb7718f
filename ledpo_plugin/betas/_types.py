"""What a beta strategy takes and gives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple, Self

from torch import Tensor, nn

from ledpo_plugin.hparams import LedpoArguments


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

    def need(self, name: "Need") -> Tensor:
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


Need = Literal["hidden", "prompt_nll", "margin", "reference_entropy", "epsilon_step"]


class BetaStrategy(nn.Module):
    """Decides beta per example. Learned values are Parameters, running statistics are buffers: both are saved."""

    needs: ClassVar[frozenset[str]] = frozenset()  # fields of BetaFeatures (of type Need) it must be given
    needs_reference: ClassVar[bool] = False  # cannot work without a reference model
    learned: ClassVar[bool] = False  # has Parameters that the loss trains

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


@dataclass(frozen=True)
class BetaMode:
    """One row of the table of beta modes: the strategy and the facts about it that others rely on."""

    name: str
    cls: type[BetaStrategy]
    formula: str  # one line, for the table in docs/betas.md
    source: str  # paper or code it follows
    summary: str  # one sentence
    learned: bool  # has Parameters that the loss trains
    needs_reference: bool  # cannot work without a reference model
    recommended: Mapping[str, float] = field(default_factory=dict)  # recipe key -> value, where not the loss's
