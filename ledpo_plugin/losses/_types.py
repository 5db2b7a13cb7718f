"""What a preference loss takes and gives. Everything is one value per example: shape `[B]`."""

from typing import NamedTuple

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
