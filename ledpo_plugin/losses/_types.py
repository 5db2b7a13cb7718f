"""What a preference loss takes and gives. Everything is one value per example: shape `[B]`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor


class PairLogps(NamedTuple):
    """Log-probabilities of a batch of `B` pairs; each tensor is `[B]`, in nats, SUMMED over response tokens."""

    policy_chosen: Tensor
    policy_rejected: Tensor
    reference_chosen: Tensor | None  # None where the loss needs no reference
    reference_rejected: Tensor | None
    chosen_length: Tensor  # response tokens, the end token included
    rejected_length: Tensor


class UnpairedLogps(NamedTuple):
    """Log-probabilities of a batch of `B` single answers (KTO); each tensor is `[B]` but `kl`, a scalar."""

    policy: Tensor
    reference: Tensor
    desirable: Tensor  # bool
    kl: Tensor  # mean log-ratio of mismatched answers over all ranks; the loss detaches it and clamps it to >= 0


class LossOutput(NamedTuple):
    """Per-example losses and the implicit rewards of the same beta, all `[B]`; rewards carry no gradient.

    For an unpaired loss `chosen_rewards` holds the reward of each answer and `rejected_rewards` is None.
    """

    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor | None


@dataclass(frozen=True)
class Loss:
    """One row of the table of losses: the function and the facts about it that others rely on."""

    name: str
    function: Callable[..., LossOutput]  # (logps, beta, **options) -> LossOutput
    formula: str  # one line, for the table in docs/losses.md
    source: str  # paper and equation, or the code it follows
    data: Literal["pairs", "unpaired"]
    needs_reference: bool
    length_normalised: bool
    label_smoothing: bool  # takes the keyword `label_smoothing`
    beta_modes: frozenset[str]  # admissible values of `beta_mode`
    refusal: str  # why the other beta modes are refused; "" if none is
    options: Mapping[str, str] = field(default_factory=dict)  # keyword of the function -> recipe key
    recommended: Mapping[str, float] = field(default_factory=dict)  # recipe key -> value
    sft_term: bool = False  # holds the chosen answer's NLL as a term of its own
    running_reward_mean: bool = False  # takes the keyword `delta`, a running mean of rewards (BCO)
