"""Instructions beside preferences in one training run: which examples make up each batch, and the mixed data set.

A share is kept exactly in every optimizer step, not on average: what a step sees is decided by the batch sampler, from
the seed and the epoch alone, so that a resumed run and every number of processes see the same.
"""

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import islice
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from ledpo_plugin.modeling.logps import IGNORE

from .token_rows import token_rows

SFT = "sft_"  # prefix of what a batch holds of its instructions
KIND = "ledpo_instruction"  # marks a row of the mixed data set as an instruction
UNITS = ("examples", "tokens")


def exact_share(ratio: float) -> Fraction:
    """Return the share that a decimal number was meant to be: 0.3 is 3/10, one third written as 0.3333 is not."""
    return Fraction(str(ratio))


def share_problem(ratio: float, batch: int, step: int) -> tuple[str, str] | None:
    """Return why a share cannot be kept in every step, and what to do; None if it can.

    Args:
        ratio: share of instructions among the examples, 0 to below 1.
        batch: examples a process takes at a time.
        step: examples of one optimizer step, over all processes and accumulated batches.
    """
    share = exact_share(ratio)
    if (share * step).denominator != 1:
        why = f"{ratio:g} of the {step} examples of an optimizer step are {float(share * step):g}, not a whole number"
        return why, f"make per_device_train_batch_size * gradient_accumulation_steps a multiple of {share.denominator}"
    if share * batch > batch - 1:
        why = f"of the {batch} examples that a process takes at a time none would be left for preferences in some"
        least = -(-share.denominator // (share.denominator - share.numerator))
        return why, f"set per_device_train_batch_size to {least} or more"
    return None


class Mixed(Dataset):
    """Preferences, then instructions, as one data set; rows of the second kind carry the mark `KIND`."""

    def __init__(self, preferences: Any, instructions: Any):
        self.preferences, self.instructions = preferences, instructions
        self.batches: MixtureBatches | None = None

    def set_epoch(self, epoch: int) -> None:
        """Tell the batches: accelerate asks the data set where it has wrapped them, as after a resume."""
        if self.batches is not None:
            self.batches.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.preferences) + len(self.instructions)

    def lengths(self) -> list[int]:
        """Return the tokens of every row: of a pair its prompt once and both answers, of other rows their length."""
        return [*map(_length, token_rows(self.preferences, _columns(self.preferences)))] + [
            *map(_length, token_rows(self.instructions, _columns(self.instructions)))
        ]

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index < len(self.preferences):
            return self.preferences[index]
        return self.instructions[index - len(self.preferences)] | {KIND: True}


def _columns(data: Any) -> list[str]:
    return [name for name in data.column_names if name.endswith(("input_ids", "labels"))]


def _length(row: Mapping[str, Any]) -> int:
    if "chosen_input_ids" not in row:
        return len(row["input_ids"])
    answer = sum(label != IGNORE for label in row["rejected_labels"])
    return len(row["chosen_input_ids"]) + int(answer)


def separate(features: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the preferences and the instructions of a batch."""
    kinds: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for feature in features:
        kinds[bool(feature.get(KIND))].append({key: value for key, value in feature.items() if key != KIND})
    return kinds


def endless(count: int, first: int, seed: int, shuffled: bool) -> Iterator[int]:
    """Give `first` to `first + count - 1` over and over, in a new order each time."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(count, generator=generator) if shuffled else torch.arange(count)
        yield from (order + first).tolist()


class MixtureBatches(Sampler):
    """Batches of a `Mixed` data set, the same for a seed and an epoch.

    An epoch is one pass over the preferences but for those that would make an incomplete last step. Instructions are
    drawn without repetition until all were seen in this epoch.
    """

    drop_last = True  # as accelerate asks: no batch is smaller than the others

    def __init__(
        self,
        data: Mixed,
        *,
        ratio: float,
        batch_size: int,
        batches_a_step: int,
        seed: int,
        shuffled: bool = True,
        tokens: Sequence[int] | None = None,
    ):
        """Set up an epoch's batches.

        Args:
            data: the mixed data set.
            ratio: share of instructions, of examples or of tokens.
            batch_size: examples of a batch.
            batches_a_step: batches of an optimizer step, over all processes.
            seed: of the order.
            shuffled: False keeps the data sets' own order.
            tokens: length of every row of `data`; the share is then one of tokens.

        Raises:
            ValueError: there are fewer preferences than one step needs.
        """
        self.preferences, self.instructions = len(data.preferences), len(data.instructions)
        self.share, self.batch_size, self.batches_a_step = exact_share(ratio), batch_size, batches_a_step
        self.seed, self.shuffled, self.tokens, self.epoch = seed, shuffled, tokens, 0
        usual = float(batch_size * (1 - self.share))
        if tokens is not None:
            usual = self._preferences_a_batch()
        self.batches = int(self.preferences / usual + 1e-9) // batches_a_step * batches_a_step
        if self.batches == 0:
            raise ValueError(
                f"The training data has {self.preferences} preference examples, and one optimizer step needs "
                f"{usual * batches_a_step:g}. Use more data, a smaller batch or a larger sft_ratio."
            )

    # accelerate looks for `sampler.set_epoch` behind wrappers of its own
    @property
    def sampler(self) -> "MixtureBatches":
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration is of."""
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return self.batches

    def _preferences_a_batch(self) -> float:
        """Return how many preferences a batch holds on average where the share is one of tokens."""
        first = self.tokens[: self.preferences], self.tokens[self.preferences :]
        preference, instruction = (sum(part) / len(part) for part in first)
        share = float(self.share)
        instructions_a_preference = share / (1 - share) * preference / instruction
        return max(1.0, self.batch_size / (1 + instructions_a_preference))

    def __iter__(self) -> Iterator[list[int]]:
        seed = self.seed + 1000 * self.epoch
        preferences = endless(self.preferences, 0, seed, self.shuffled)
        instructions = endless(self.instructions, self.preferences, seed + 1, self.shuffled)
        fill = self._by_examples if self.tokens is None else self._by_tokens
        return fill(preferences, instructions)

    def _by_examples(self, preferences: Iterator[int], instructions: Iterator[int]) -> Iterator[list[int]]:
        per_batch = self.share * self.batch_size
        for number in range(self.batches):
            # Rounded down at each batch, so that after a whole step nothing is left over.
            count = int((number + 1) * per_batch) - int(number * per_batch)
            yield [*islice(preferences, self.batch_size - count), *islice(instructions, count)]

    def _by_tokens(self, preferences: Iterator[int], instructions: Iterator[int]) -> Iterator[list[int]]:
        """Take whichever kind is behind its share; each batch has one preference at least."""
        seen = [0, 0]
        share = float(self.share)
        for _ in range(self.batches):
            batch: list[int] = []
            for place in range(self.batch_size):
                behind = seen[1] * (1 - share) < seen[0] * share
                kind = int(behind and place > 0)
                batch.append(next(instructions if kind else preferences))
                seen[kind] += self.tokens[batch[-1]]
            yield batch
