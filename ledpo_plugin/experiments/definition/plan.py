"""The runs of an experiment: the exact recipe of each, and where it lives in the results folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ledpo_plugin.common.lookup import unknown_name

from .budget import Budget, budget_keys, steps_of
from .experiment import Experiment, Phase, Variant
from .links import linked, place_of

DEFAULT_RESULTS = Path("runs") / "experiments"
TRAIN, RECIPE, JOB = "train", "recipe.yaml", "job.json"
PREREQUISITES = "prerequisites"


@dataclass(frozen=True)
class Training:
    """One call of the stock command: a flat recipe in a folder, with its part of the run's budget."""

    name: str  # of the phase; empty where the run is one training
    folder: Path
    recipe: Mapping[str, Any]
    budget: Budget
    steps: int | None  # None where only training can tell


@dataclass(frozen=True)
class Run:
    """A variant with a seed: one training, or several one after the other."""

    variant: str
    seed: int
    folder: Path  # of this run, in the results folder
    recipe: Mapping[str, Any]  # of the first training
    trainings: tuple[Training, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.variant} seed {self.seed}"


def results_folder(experiment: str, profile: str, given: str | Path | None = None) -> Path:
    """Return the results folder: the given one, or the default for the experiment's name and profile."""
    return Path(given) if given else DEFAULT_RESULTS / experiment / profile


def prerequisite_folder(results: Path, name: str) -> Path:
    """Return where what runs need first is trained."""
    return results / PREREQUISITES / name


def run_recipe(
    experiment: Experiment, phase: Phase, seed: int, train_folder: Path, places: Mapping[str, Path]
) -> dict[str, Any]:
    """Return the flat recipe of a training: the phase's, with seed, budget, its folder, its checkpoints and links.

    Args:
        experiment: what is run.
        phase: of a variant.
        seed: of the run.
        train_folder: its output_dir.
        places: where earlier trainings are, by what recipes call them (see `links`).
    """
    budget, processes = experiment.budget.part(phase.share), experiment.resources.processes
    steps, every = steps_of(budget, phase.recipe, processes), experiment.checkpoint_steps
    if isinstance(every, Mapping):
        every = every[phase.path.stem]
    recipe = {**linked(phase.recipe, places), **budget_keys(budget, phase.recipe, processes)}
    recipe |= {
        "seed": seed,
        "output_dir": str(train_folder),
        "overwrite_output_dir": False,  # True would throw a killed run's checkpoints away
        "save_strategy": "steps",
        "save_steps": every or steps // experiment.checkpoints,
        "save_only_model": False,
    }
    for key in ("save_total_limit", "resume_from_checkpoint", "load_best_model_at_end"):
        recipe.pop(key, None)
    if recipe.get("eval_strategy") in (None, "no", False):  # the end is measured afterwards, with all checkpoints
        for key in ("do_eval", "eval_dataset", "eval_on_each_dataset", "eval_strategy"):
            recipe.pop(key, None)
    return recipe


def run_of(experiment: Experiment, variant: Variant, seed: int, results: Path) -> Run:
    """Return a run with its trainings."""
    folder = results / "runs" / variant.name / f"seed-{seed}"
    places = {place_of(one.recipe): prerequisite_folder(results, one.name) / TRAIN for one in experiment.prerequisites}
    trainings = []
    for phase in variant.phases:
        own = folder / phase.name
        recipe = run_recipe(experiment, phase, seed, own / TRAIN, places)
        budget = experiment.budget.part(phase.share)
        steps = steps_of(budget, phase.recipe, experiment.resources.processes)
        trainings.append(Training(phase.name, own, recipe, budget, steps))
        places[place_of(phase.recipe)] = own / TRAIN
    return Run(variant.name, seed, folder, trainings[0].recipe, tuple(trainings))


def plan(
    experiment: Experiment, results: Path, *, only: Sequence[str] | None = None, seeds: Sequence[int] | None = None
) -> list[Run]:
    """Return the runs, seed by seed, so that an unfinished experiment has all variants of its first seeds.

    Args:
        experiment: what to run.
        results: the results folder.
        only: names of variants; left out: all of the profile.
        seeds: left out: those of the profile.

    Raises:
        ValueError: a variant of `only` is unknown, or a list is empty.
    """
    names = [variant.name for variant in experiment.variants]
    for name in only or ():
        if name not in names:
            raise ValueError(f"--only: {unknown_name('variant', name, names)}")
    for option, value in (("--only", only), ("--seeds", seeds)):
        if value is not None and not value:
            raise ValueError(f"{option} is an empty list: there is nothing to run. Name one at least, or leave it out.")
        if value is not None and len(set(value)) != len(value):
            raise ValueError(f"{option} names something twice: {', '.join(map(str, value))}. Name each once.")
    runs = []
    for seed in experiment.seeds if seeds is None else seeds:
        for variant in experiment.variants:
            if only is None or variant.name in only:
                runs.append(run_of(experiment, variant, seed, results))
    return runs
