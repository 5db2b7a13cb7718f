"""The parts of a study: where each is, what it is told, and what is known of the models that it is about."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ledpo_plugin.common.files import read_json
from ledpo_plugin.common.run_record import recipe_hash
from ledpo_plugin.experiments.definition.experiment import Experiment
from ledpo_plugin.experiments.definition.plan import TRAIN, Run
from ledpo_plugin.experiments.results.store import RESULT

FOLDER = "study"
START = "start"  # the name of the model that training started from
FORMAT = 1  # raise it when the way something is worked out changes: parts are then done again


@dataclass(frozen=True)
class Part:
    """A piece of work with a folder of its own; its worker is told `job`, and leaves result.json there."""

    name: str
    folder: Path
    job: Mapping[str, Any]


def part(experiment: Experiment, results: Path, what: str, name: str, **told: Any) -> Part:
    """Return a part: `what` is its kind of work, `name` what of that it is; `told` are JSON values."""
    job = {
        "kind": "study",
        "study": experiment.study["kind"],
        "part": what,
        "name": name,
        "format": FORMAT,
        "cwd": str(Path.cwd()),
        **told,
    }
    return Part(f"{what} {name}", results / FOLDER / what / safe(name), job)


def safe(name: str) -> str:
    """Return a name as the name of a file."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "unnamed"


def model_name(variant: str, seed: int) -> str:
    """Return what a run's model is called as the author of answers."""
    return f"{variant}-{seed}"


def chosen_runs(experiment: Experiment, runs: Sequence[Run]) -> list[Run]:
    """Return the runs that the study is about: those of its seeds and of the experiment's variants."""
    seeds = experiment.study.get("seeds")
    names = [variant.name for variant in experiment.variants]
    return [run for run in runs if run.variant in names and (seeds is None or run.seed in seeds)]


def model_of(run: Run) -> dict[str, Any]:
    """Return how a trained model is loaded, and what tells it from the same run's, trained anew."""
    result = read_json(run.folder / RESULT) or {}
    return {
        "model": model_name(run.variant, run.seed),
        "variant": run.variant,
        "seed": run.seed,
        "load": {"run_or_model": str((run.folder / TRAIN).absolute())},
        "recipe_sha256": result.get("recipe_sha256"),
        "trained": result.get("ended"),
    }


def start_of(run: Run) -> dict[str, Any]:
    """Return how the model that a run started from is loaded."""
    return {
        "model": START,
        "variant": START,
        "seed": 0,
        "load": {
            "run_or_model": str(_absolute(run.recipe["model_name_or_path"])),
            "template": run.recipe["template"],
            "adapter": run.recipe.get("adapter_name_or_path"),
            "default_system": run.recipe.get("default_system"),
        },
        "recipe_sha256": recipe_hash({"model": str(run.recipe["model_name_or_path"])}),
        "trained": None,
    }


def _absolute(path: Any) -> Any:
    return os.path.abspath(path) if os.path.isdir(path) else path


def known_of(models: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what is reported of models: not where they lie on this machine."""
    return [{key: value for key, value in model.items() if key != "load"} for model in models]


def finished(part_: Part) -> dict[str, Any] | None:
    """Return a part's result, None where it has none."""
    found = read_json(part_.folder / RESULT)
    return found if isinstance(found, dict) else None


def digest(value: Any) -> str:
    """Return 16 hex digits that tell one JSON value from another."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def key_of(model: str, decoding: str, sample: int) -> str:
    """Return what the answers of a model under a decoding are called, as a name of a file, too."""
    return f"{model}.{decoding}.{sample}"


def compared(job: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the pairs of answers' names that judges compare: (what is compared with, what is compared)."""
    found = []
    for model in job["models"]:
        base = key_of(model["model"], job["baseline"], 0)
        for name in job["decodings"]:
            own = key_of(model["model"], name, 0)
            if own != base and own in job["outputs"] and base in job["outputs"]:
                found.append((base, own))
    for first in (model for model in job["models"] if model["variant"] == job["against"]):
        for second in (model for model in job["models"] if model["variant"] != job["against"]):
            if first["seed"] == second["seed"]:
                keys = [(key_of(first["model"], n, 0), key_of(second["model"], n, 0)) for n in job["decodings"]]
                found += [pair for pair in keys if all(key in job["outputs"] for key in pair)]
    return found
