"""What comes when: which step belongs to which phase, which prompts a rollout answers, which rows a step trains on.

All of it follows from the recipe, the seed and the number of the step, so that a resumed run goes on as if nothing had
happened.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from ledpo_plugin.data.mixture import endless

SLOT = "ledpo_rollout"  # a batch that holds nothing: the rollout has its rows
NO_ROW = -1


@dataclass(frozen=True)
class Schedule:
    """`ledpo` optimizer steps on preferences, then `ppo` steps on rollouts, over and over; either may be 0."""

    ledpo: int
    ppo: int

    @classmethod
    def read(cls, text: str) -> "Schedule":
        """Return the schedule that "k:m" means.

        Raises:
            ValueError: it is not two whole numbers above 0 with a colon between them.
        """
        first, colon, second = text.partition(":")
        if not colon or not all(part.strip().isascii() and part.strip().isdigit() for part in (first, second)):
            raise ValueError(f"{text!r} is not of the form k:m, two whole numbers")
        ledpo, ppo = int(first), int(second)
        if ledpo < 1 or ppo < 1:
            raise ValueError(f"{text!r} leaves one of the two phases without a step")
        return cls(ledpo, ppo)

    @property
    def cycle(self) -> int:
        """Steps of both phases together."""
        return self.ledpo + self.ppo

    def is_ppo(self, step: int) -> bool:
        """Whether step number `step`, from 0, trains on rollouts."""
        return step % self.cycle >= self.ledpo

    def ppo_steps_before(self, step: int) -> int:
        """Return how many PPO steps come before step number `step`."""
        cycles, rest = divmod(step, self.cycle)
        return cycles * self.ppo + max(0, rest - self.ledpo)


@dataclass(frozen=True)
class Sizes:
    """How many answers go into a step and into a rollout, of one process."""

    batch: int  # answers of a pass with gradient
    accumulated: int  # passes of an optimizer step
    buffer: int  # optimizer steps' worth of answers in a rollout
    epochs: int  # how often a rollout is used
    group: int  # answers of a prompt

    @property
    def step(self) -> int:
        """Answers of an optimizer step."""
        return self.batch * self.accumulated

    @property
    def rollout(self) -> int:
        """Answers of a rollout."""
        return self.step * self.buffer

    @property
    def prompts(self) -> int:
        """Prompts of a rollout."""
        return self.rollout // self.group

    @property
    def updates(self) -> int:
        """Optimizer steps for which a rollout is used."""
        return self.epochs * self.buffer


def seed_of(*parts: int | str) -> int:
    """Return a seed that follows from all of the parts."""
    digest = hashlib.sha256(" ".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class PromptOrder:
    """An endless row of prompts, shuffled anew in each pass over them; any stretch of it can be asked for."""

    def __init__(self, count: int, seed: int, shuffled: bool = True):
        self.count, self.seed, self.shuffled = count, seed, shuffled
        self._passes: dict[int, list[int]] = {}

    def rows(self, start: int, length: int) -> list[int]:
        """Return the prompts at the places `start` to `start + length - 1` of the endless row."""
        return [self._of(place // self.count)[place % self.count] for place in range(start, start + length)]

    def _of(self, number: int) -> list[int]:
        if number not in self._passes:
            generator = torch.Generator().manual_seed(seed_of("prompts", self.seed, number))
            order = torch.randperm(self.count, generator=generator) if self.shuffled else torch.arange(self.count)
            last = self._passes.get(number - 1)
            self._passes = {number: order.tolist()} | ({} if last is None else {number - 1: last})
        return self._passes[number]


def rows_of_update(sizes: Sizes, seed: int, iteration: int, update: int, rank: int) -> list[int]:
    """Return the rows of a rollout that optimizer step number `update` of its use trains on."""
    epoch, part = divmod(update, sizes.buffer)
    generator = torch.Generator().manual_seed(seed_of("update", seed, iteration, epoch, rank))
    order = torch.randperm(sizes.rollout, generator=generator).tolist()
    return order[part * sizes.step : (part + 1) * sizes.step]


class Slots(Dataset):
    """Preference pairs, and the row that stands for a batch out of the rollout."""

    def __init__(self, data: Any, batches: "SlotBatches"):
        self.data, self.batches = data, batches

    def set_epoch(self, epoch: int) -> None:
        """Tell the batches: accelerate asks the data set where it has wrapped them, as after a resume."""
        self.batches.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {SLOT: True} if row == NO_ROW else self.data[row]


class SlotBatches(Sampler):
    """Batches of an epoch over all processes: pairs in LEDPO steps, empty slots in PPO steps.

    An epoch of an alternating run is a pass over the pairs, rounded up to whole cycles; of a PPO run it is a pass over
    the prompts, rounded up to whole rollouts.
    """

    drop_last = True  # as accelerate asks: no batch is smaller than the others

    def __init__(
        self,
        count: int,
        *,
        sizes: Sizes,
        processes: int,
        schedule: Schedule,
        seed: int,
        shuffled: bool = True,
    ):
        self.count, self.schedule, self.seed, self.shuffled = count, schedule, seed, shuffled
        self.batch_size, self.batches_a_step, self.epoch = sizes.batch, sizes.accumulated * processes, 0
        if schedule.ledpo:
            ledpo_steps = -(-count // (sizes.step * processes))
            self.steps = -(-ledpo_steps // schedule.ledpo) * schedule.cycle
        else:
            self.steps = -(-count // (sizes.prompts * processes)) * sizes.updates

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration is of."""
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return self.steps * self.batches_a_step

    def __iter__(self) -> Iterator[list[int]]:
        rows = endless(self.count, 0, self.seed + 1000 * self.epoch, self.shuffled)
        for step in range(self.steps):
            for _ in range(self.batches_a_step):
                if self.schedule.is_ppo(step):
                    yield [NO_ROW] * self.batch_size
                else:
                    yield list(islice(rows, self.batch_size))
