"""An experiment as its folder defines it: `experiment.yaml` and one flat recipe per variant."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .budget import Budget

FILE = "experiment.yaml"


@dataclass(frozen=True)
class Phase:
    """One training of a variant: a flat recipe and its share of the variant's budget."""

    name: str  # empty where the variant is one training
    share: float
    path: Path
    recipe: Mapping[str, Any]


@dataclass(frozen=True)
class Variant:
    """One of the things that are compared: a flat recipe, or several one after the other, and how they differ."""

    name: str
    label: str
    changes: tuple[str, ...]  # the only keys that differ from `compares_to`
    compares_to: str | None  # None: of the baseline alone
    note: str
    phases: tuple[Phase, ...]  # each goes on from the one before

    @property
    def path(self) -> Path:
        """The file of the first training, which starts from what is compared to at the end."""
        return self.phases[0].path

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The recipe of the first training."""
        return self.phases[0].recipe


@dataclass(frozen=True)
class Prerequisite:
    """A training that runs need and that is none of the things compared, such as a reward model; run once."""

    name: str
    label: str
    note: str
    path: Path
    recipe: Mapping[str, Any]


@dataclass(frozen=True)
class Resources:
    """What one run needs."""

    cpus: int = 1
    memory_gb: float = 4
    gpus: float = 0  # a whole number, or a share of one: with 0.125, eight runs are side by side on each
    disk_gb: float = 1

    @property
    def processes(self) -> int:
        """How many processes train together: one per accelerator."""
        return max(1, int(self.gpus))

    @property
    def devices(self) -> int:
        """How many accelerators a run sees, be it as one of several."""
        return math.ceil(self.gpus)

    @property
    def sharing(self) -> int:
        """How many runs are on an accelerator at once."""
        return int(1 / self.gpus + 1e-9) if 0 < self.gpus < 1 else 1


@dataclass(frozen=True)
class Experiment:
    """An experiment under one of its profiles."""

    folder: Path
    name: str
    title: str
    question: str
    status: str
    baseline: str
    profile: str
    variants: tuple[Variant, ...]
    prerequisites: tuple[Prerequisite, ...]
    seeds: tuple[int, ...]
    budget: Budget
    checkpoints: int | None  # the policy is measured after so many equal parts
    checkpoint_steps: int | Mapping[str, int] | None  # or after every so many steps, for all recipes or by their names
    resources: Resources
    evaluation: Mapping[str, Any]
    prepare: str | None
    seconds_per_run: float | None
    keep_checkpoints: bool
    study: Mapping[str, Any] | None  # what is asked of the trained models, once all runs are finished
    raw: Mapping[str, Any]  # experiment.yaml, with the profile's part under "profile"

    def variant(self, name: str) -> Variant:
        """Return a variant by its name."""
        return next(variant for variant in self.variants if variant.name == name)


def is_experiment(path: str | Path) -> bool:
    """Whether the path is an experiment's folder or its `experiment.yaml`."""
    path = Path(path)
    return path.name == FILE or (path / FILE).is_file()


def folder_of(path: str | Path) -> Path:
    """Return the folder of an experiment that was named by its folder or by its `experiment.yaml`."""
    path = Path(path)
    return path.parent if path.name == FILE else path
