"""The results folder: what it is of, the state of each run, and what must not be overwritten."""

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from ledpo_plugin.common.files import read_json, tail, write_json, write_text
from ledpo_plugin.common.lock import LOCK, is_locked
from ledpo_plugin.experiments.definition.checks import differences, held_out_names
from ledpo_plugin.experiments.definition.experiment import Experiment
from ledpo_plugin.experiments.definition.plan import JOB, PREREQUISITES, RECIPE, Run

from .provenance import data_hashes

EXPERIMENT, STATE, RESULT, WORKER_LOG = "experiment.json", "state.json", "result.json", "worker.log"
BACKGROUND, BACKGROUND_LOG = "background.json", "background.log"  # of a `ledpo run` that the web UI started
BASE, MEASURES, REPORT = "base", "measures", "report.html"
NODE = "LEDPO_NODE"  # environment variable: what to call the machine, where its name would not tell
OF_RESULTS = ("definition", "recipes", "data_sha256")
FORMAT = 1


class ResultsError(ValueError):
    """A results folder that must not be written to, or cannot be read; the message says what to do."""


def now() -> str:
    """Return the time as ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


# ---- what a results folder is of


def definition_of(experiment: Experiment) -> dict[str, Any]:
    """Return the experiment as the report is told of it."""
    return {**experiment.raw, "profile_name": experiment.profile, "folder": str(experiment.folder)}


def _recipes_of(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """Return what `experiment.json` holds of the recipes: of every variant the first, and all others by file name."""
    further = {
        phase.path.stem: {"of": f"runs/{variant.name}/seed-*", "recipe": dict(phase.recipe)}
        for variant in experiment.variants
        for phase in variant.phases[1:]
    }
    further |= {
        one.name: {"of": f"{PREREQUISITES}/{one.name}", "recipe": dict(one.recipe)} for one in experiment.prerequisites
    }
    return {"recipes": {variant.name: dict(variant.recipe) for variant in experiment.variants}, "further": further}


def open_results(experiment: Experiment, results: Path) -> None:
    """Make the results folder, or check that it is of this experiment as it is now.

    Raises:
        ResultsError: it holds something else, or runs of recipes that have changed since.
    """
    path = results / EXPERIMENT
    recipes = _recipes_of(experiment)
    every = [*recipes["recipes"].values(), *(one["recipe"] for one in recipes["further"].values())]
    data = data_hashes(every, held_out_names(experiment.evaluation))
    fresh = {"format": FORMAT, "definition": definition_of(experiment), **recipes, "data_sha256": data}
    if not path.is_file():
        if results.exists() and not results.is_dir():
            raise ResultsError(f"{results} is a file. Name a folder with --results.")
        inside = [entry.name for entry in results.iterdir()] if results.is_dir() else []
        strange = [name for name in inside if name not in (LOCK, BACKGROUND, BACKGROUND_LOG)]
        if strange:
            raise ResultsError(
                f"{results} is not empty and holds no {EXPERIMENT} (but {', '.join(sorted(strange)[:5])}). Name a new "
                f"or empty folder with --results."
            )
        write_json(path, fresh | {"created": now()})
        return
    kept = read_results(results)
    problems = _conflicts(kept, fresh, results)
    if problems:
        raise ResultsError(
            f"{results} holds runs of something else than {experiment.folder} (profile {experiment.profile}) as it is "
            f"now; nothing was run or changed.\n"
            + "\n".join(f"{number}. {text}" for number, text in enumerate(problems, start=1))
            + "\nWhat to do: take the change back, or name another folder with --results."
        )
    before = {key: kept.get(key) or {} for key in ("recipes", "further", "data_sha256")}
    merged = {key: {**old, **fresh[key]} for key, old in before.items()}
    write_json(path, kept | fresh | merged)


def _conflicts(kept: Mapping[str, Any], fresh: Mapping[str, Any], results: Path) -> list[str]:
    before, after = kept["definition"], fresh["definition"]
    for key in ("name", "profile_name"):
        if before.get(key) != after.get(key):
            return [f"{key.removesuffix('_name')}: {before.get(key)!r} there, {after.get(key)!r} here."]
    found = []
    # A prediction is of what was not seen yet: with runs there, it can neither be changed nor written down.
    for key in ("budget", "evaluation", "checkpoints", "checkpoint_steps", "prediction"):
        if before["profile"].get(key) != after["profile"].get(key):
            there, here = before["profile"].get(key), after["profile"].get(key)
            found.append(f"{key}: {there!r} there, {here!r} here.")
    for name, digest in fresh["data_sha256"].items():
        if kept["data_sha256"].get(name, digest) != digest:
            found.append(f"data set {name}: its file has changed since.")
    pairs = {name: (f"runs/{name}/seed-*", kept["recipes"].get(name), own) for name, own in fresh["recipes"].items()}
    there = kept.get("further") or {}
    for name, own in fresh["further"].items():
        pairs[name] = own["of"], (there.get(name) or {}).get("recipe"), own["recipe"]
    for name, (made, old, new) in pairs.items():
        if old is not None and any(results.glob(made)):
            for key in differences(old, new):
                found.append(f"recipe of {name}: {key} is {old.get(key)!r} there, {new.get(key)!r} here.")
    return found


def read_results(results: Path) -> dict[str, Any]:
    """Return what a results folder says it is of.

    Raises:
        ResultsError: it is no results folder, or of a later version of this package.
    """
    kept = read_json(results / EXPERIMENT)
    whole = isinstance(kept, dict) and all(isinstance(kept.get(key), dict) for key in OF_RESULTS)
    if not whole:
        raise ResultsError(
            f"{results} is no results folder: its {EXPERIMENT} is missing or damaged. Name the folder of an "
            f"experiment (yaml_recipes/NAME), or one that `ledpo run` made."
        )
    if kept.get("format") != FORMAT:
        raise ResultsError(f"{results} was written in format {kept.get('format')}; this version reads {FORMAT}.")
    return kept


# ---- one run


def write_recipe(folder: Path, recipe: Mapping[str, Any]) -> None:
    """Write the exact recipe of a training into its folder."""
    write_text(folder / RECIPE, yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True))


def write_run(run: Run, job: Mapping[str, Any]) -> None:
    """Write what a run is to do into its folder."""
    for training in run.trainings:
        write_recipe(training.folder, training.recipe)
    if not run.trainings:
        write_recipe(run.folder, run.recipe)
    write_json(run.folder / JOB, job)


def write_part(folder: Path, job: Mapping[str, Any]) -> None:
    """Write what a part of a study is to do into its folder; a result of something else is removed first."""
    job = json.loads(json.dumps(job))  # as it will be read again
    if read_json(folder / JOB) != job:
        (folder / RESULT).unlink(missing_ok=True)
    write_json(folder / JOB, job)


def write_state(folder: Path, phase: str, started: str, **facts: Any) -> None:
    """Note where a run is (training, measuring, finished or failed) and when its present worker started."""
    where = {"pid": os.getpid(), "host": os.environ.get(NODE) or os.uname().nodename}
    write_json(folder / STATE, {"phase": phase, "started": started, "changed": now(), **where, **facts})


def state_of(folder: Path) -> dict[str, Any]:
    """Return the state of a run: its phase, and what else is known.

    Phases: pending, training, measuring, finished, failed; "interrupted" where a process noted a phase and is gone.
    """
    state = read_json(folder / STATE)
    state = state if isinstance(state, dict) else {}
    if is_finished(folder):
        return {**state, "phase": "finished"}
    phase = state.get("phase", "pending")
    if phase in ("training", "measuring") and not is_locked(folder):
        phase = "interrupted"
    if phase == "finished":
        phase = "interrupted"  # it says so, and its result is not there
    if phase == "failed" and not state.get("log_tail"):
        state["log_tail"] = tail(folder / WORKER_LOG)
    return {**state, "phase": phase}


def study_states(results: Path) -> dict[str, dict[str, Any]]:
    """Return the state of every part of the experiment's study that has a folder, by what it is and its name."""
    folders = sorted(path.parent for path in results.glob(f"study/*/*/{JOB}"))
    return {f"{folder.parent.name} {folder.name}": state_of(folder) for folder in folders}


def further_states(results: Path) -> dict[str, dict[str, Any]]:
    """Return the state of what runs need first, and of every part of the experiment's study, by what and name."""
    folders = sorted(path.parent for path in results.glob(f"{PREREQUISITES}/*/{JOB}"))
    needed = {f"{folder.parent.name.removesuffix('s')} {folder.name}": state_of(folder) for folder in folders}
    return needed | {f"study: {name}": state for name, state in study_states(results).items()}


def is_finished(folder: Path) -> bool:
    """Return whether a run has its result; it is written last."""
    return (folder / RESULT).is_file()


def states_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the state of every run, as the report is told of them."""
    return [
        {"error": None, "log_tail": []}
        | state_of(run.folder)
        | {"variant": run.variant, "seed": run.seed, "folder": str(run.folder)}
        for run in runs
    ]


def runs_in(results: Path, recipes: Mapping[str, Mapping[str, Any]]) -> list[Run]:
    """Return the runs that a results folder has folders of, in the order of the variants."""
    found = []
    for place, (variant, recipe) in enumerate(recipes.items()):
        for folder in (results / "runs" / variant).glob("seed-*"):
            number = folder.name.removeprefix("seed-")
            if number.isdigit():
                found.append((int(number), place, Run(variant, int(number), folder, recipe)))
    return [run for _, _, run in sorted(found, key=lambda item: item[:2])]
