"""The runs of an experiment: the exact recipe of each, and where it lives in the results folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ledpo_plugin.lookup import unknown_name

from .budget import budget_keys, steps_of
from .definition import Experiment, Variant

DEFAULT_RESULTS = Path("runs") / "experiments"
TRAIN, RECIPE, JOB = "train", "recipe.yaml", "job.json"


@dataclass(frozen=True)
class Run:
    """One training: a variant with a seed."""

    variant: str
    seed: int
    folder: Path  # of this run, in the results folder
    recipe: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"{self.variant} seed {self.seed}"


def results_folder(experiment: str, profile: str, given: str | Path | None = None) -> Path:
    """Return the results folder: the given one, or the default for the experiment's name and profile."""
    return Path(given) if given else DEFAULT_RESULTS / experiment / profile


def run_recipe(experiment: Experiment, variant: Variant, seed: int, train_folder: Path) -> dict[str, Any]:
    """Return the flat recipe of a run: the variant's, with the seed, the budget, its folder and its checkpoints."""
    steps = steps_of(experiment.budget, variant.recipe, experiment.resources.processes)
    every = experiment.checkpoint_steps or steps // experiment.checkpoints
    recipe = {**variant.recipe, **budget_keys(experiment.budget, variant.recipe, experiment.resources.processes)}
    recipe |= {
        "seed": seed,
        "output_dir": str(train_folder),
        "overwrite_output_dir": False,  # True would throw a killed run's checkpoints away
        "save_strategy": "steps",
        "save_steps": every,
        "save_only_model": False,
    }
    for key in ("save_total_limit", "resume_from_checkpoint", "load_best_model_at_end"):
        recipe.pop(key, None)
    if recipe.get("eval_strategy") in (None, "no", False):  # the end is measured afterwards, with all checkpoints
        for key in ("do_eval", "eval_dataset", "eval_on_each_dataset", "eval_strategy"):
            recipe.pop(key, None)
    return recipe


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
                folder = results / "runs" / variant.name / f"seed-{seed}"
                recipe = run_recipe(experiment, variant, seed, folder / TRAIN)
                runs.append(Run(variant.name, seed, folder, recipe))
    return runs
