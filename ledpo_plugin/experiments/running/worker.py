"""One run from its recipe to its result, in a process of its own: train, measure, write down. Again, it goes on.

    python -m ledpo_plugin.experiments.running.worker FOLDER

Training is the stock `llamafactory-cli train`. Only one process is ever at work on a run: the folder's lock is handed
down to the training, so that a training whose worker was killed is waited for, not started a second time.
"""

import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ledpo_plugin.common.checkpoints import checkpoints_of
from ledpo_plugin.common.files import read_json, read_lines, read_yaml, write_json
from ledpo_plugin.common.lock import Locked, locked
from ledpo_plugin.common.run_record import package_versions, read_record, recipe_hash
from ledpo_plugin.experiments.definition.budget import Budget, used
from ledpo_plugin.experiments.definition.checks import held_out_names
from ledpo_plugin.experiments.definition.plan import JOB, RECIPE, TRAIN, Training
from ledpo_plugin.experiments.measuring.operations import by_kind, summed
from ledpo_plugin.experiments.processes import RunFailed
from ledpo_plugin.experiments.results.merging import merged_log, merged_usage
from ledpo_plugin.experiments.results.store import FORMAT, MEASURES, RESULT, is_finished, now, write_state
from ledpo_plugin.experiments.studies.kinds import study_of

from .training import TRAIN_LOG, TRAINED, call, train, training_log, trainings_of, usage_of

__all__ = ["TRAINED", "TRAIN_LOG", "main"]


def main(folder: Path) -> int:
    """Finish a run; return the exit status. What went wrong is in its state.json."""
    job = read_json(folder / JOB)
    if not isinstance(job, dict):
        print(f"{folder / JOB} is missing or damaged: start this with `ledpo run`.", file=sys.stderr)
        return 1
    waiting, started = False, now()
    while True:
        try:
            with locked(folder, "at work on this run") as lock:
                return _finish(folder, job, lock, started)
        except Locked as error:
            if not waiting:
                print(f"waiting for {error}", flush=True)
            waiting = True
            time.sleep(0.5)


def _finish(folder: Path, job: Mapping[str, Any], lock: int, started: str) -> int:
    if is_finished(folder):
        return 0
    os.chdir(job["cwd"])
    try:
        if job["kind"] == "base":
            _use_one_device()
            _measure_base(folder, job, started)
        elif job["kind"] == "study":
            _use_one_device()
            _study(folder, job, started)
        elif job["kind"] == "prerequisite":
            _prerequisite(folder, job, lock, started)
        else:
            trainings = _train(folder, job, lock, started)
            _use_one_device()
            _measure(folder, job, trainings, started)
    except Exception as error:  # whatever it is, the other runs go on and the report says it
        log_tail = error.log_tail if isinstance(error, RunFailed) else []
        text = f"{type(error).__name__}: {error}" if not isinstance(error, RunFailed) else str(error)
        write_state(folder, "failed", started, error=text, log_tail=log_tail)
        if not isinstance(error, RunFailed):
            raise
        print(text, *log_tail, sep="\n", file=sys.stderr)
        return 1
    write_state(folder, "finished", started)
    return 0


# ---- training


def _train(folder: Path, job: Mapping[str, Any], lock: int, started: str) -> list[Training]:
    """Train what of a run is not trained; return all of its trainings, as they were run."""
    while True:
        trainings = trainings_of(folder, job)
        if (trainings[-1].folder / TRAINED).is_file():
            return trainings
        done = sum(usage_of(one)["steps"] for one in trainings[:-1])
        steps = None if trainings[-1].steps is None else done + trainings[-1].steps
        write_state(folder, "training", started, total_steps=steps, of_phase=trainings[-1].name or None)
        train(trainings[-1], job["processes"], lock)


def _prerequisite(folder: Path, job: Mapping[str, Any], lock: int, started: str) -> None:
    """Train what runs need first, from its start: the host's stage rm does not restore its value head."""
    from ledpo_plugin.experiments.results.provenance import provenance

    recipe = read_yaml(folder / RECIPE)
    if not (folder / TRAINED).is_file():
        shutil.rmtree(folder / TRAIN, ignore_errors=True)
        write_state(folder, "training", started)
        call(folder, job["processes"], lock)
        write_json(folder / TRAINED, {"ended": now()})
    figures = read_json(folder / TRAIN / "all_results.json") or {}
    state = read_json(folder / TRAIN / "trainer_state.json") or {}
    result = {
        "format": FORMAT,
        "prerequisite": job["name"],
        "recipe": recipe,
        "recipe_sha256": recipe_hash({key: value for key, value in recipe.items() if key != "output_dir"}),
        "ended": now(),
        "provenance": provenance(recipe, []),
        "figures": {key: value for key, value in figures.items() if isinstance(value, int | float)},
        "tokens": state.get("num_input_tokens_seen") or None,  # None: the recipe does not have them counted
    }
    write_json(folder / RESULT, result)


# ---- measuring


def _log(text: str) -> None:
    print(f"[{now()}] {text}", flush=True)


def _use_one_device() -> None:
    """Leave one accelerator visible, before anything asks for them: the training's others would stay empty."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = "0" if named is None else named.split(",")[0]


def _measure_base(folder: Path, job: Mapping[str, Any], started: str) -> None:
    from ledpo_plugin.experiments.measuring.measure import measure_base
    from ledpo_plugin.experiments.results.provenance import provenance

    recipe = read_yaml(folder / RECIPE)
    write_state(folder, "measuring", started)
    measured = measure_base(recipe, folder / MEASURES, job["evaluation"], _log)
    result = {
        "format": FORMAT,
        "base": folder.name,
        "model": recipe["model_name_or_path"],
        "ended": now(),
        "provenance": provenance(recipe, held_out_names(job["evaluation"])),
        **measured,
    }
    write_json(folder / RESULT, result)


def _study(folder: Path, job: Mapping[str, Any], started: str) -> None:
    from ledpo_plugin.experiments.results.provenance import git_state, hardware

    write_state(folder, "measuring", started)
    found = study_of(job["study"]).work(folder, job, _log)
    made = {"versions": package_versions(), "hardware": hardware(), "git": git_state(Path.cwd())}
    write_json(folder / RESULT, {"format": FORMAT, "ended": now(), "provenance": made, **found})


def _measure(folder: Path, job: Mapping[str, Any], trainings: list[Training], started: str) -> None:
    from ledpo_plugin.experiments.measuring.measure import Measured, measure_run
    from ledpo_plugin.experiments.results.provenance import provenance

    first = trainings[0]
    write_state(folder, "measuring", started, total_steps=job.get("steps"))
    trained = [Measured(one.recipe, one.folder / TRAIN) for one in trainings]
    base = None if job.get("base_folder") is None else Path(job["base_folder"]) / MEASURES
    measured = measure_run(trained, folder / MEASURES, job["evaluation"], _log, base=base)
    usages, logs = [usage_of(one) for one in trainings], [training_log(one.folder / TRAIN) for one in trainings]
    rows = merged_log(logs, usages, [one.name for one in trainings])
    operations = {row["step"]: row.get("flops") for row in rows}
    for checkpoint in measured["checkpoints"]:
        checkpoint["flops"] = operations.get(checkpoint["step"])
    anew = [not one.recipe.get("disable_gradient_checkpointing") for one in trainings]
    budget = Budget(**job["budget"])
    records = [read_record(one.folder / TRAIN) for one in trainings]
    parts = [_part(*told) for told in zip(trainings, usages, records, strict=True)]
    result = {
        "format": FORMAT,
        "experiment": job["experiment"],
        "profile": job["profile"],
        "variant": job["variant"],
        "seed": job["seed"],
        "base": job["base"],
        "recipe": first.recipe,
        "recipe_sha256": parts[0]["recipe_sha256"],
        "resolved": records[0]["resolved"],
        "phases": parts if len(parts) > 1 else [],
        "started": records[0]["started"],
        "ended": now(),
        "provenance": provenance(first.recipe, held_out_names(job["evaluation"])),
        "budget": {
            "unit": budget.unit,
            "amount": budget.amount,
            "used": sum(used(budget, usage, one.recipe) for one, usage in zip(trainings, usages, strict=True)),
        },
        "usage": {
            **merged_usage(usages),
            "flops_by_kind": summed([by_kind(measured["cost"], *told) for told in zip(usages, anew, strict=True)]),
            "measure_seconds": measured["measure_seconds"],
            "measure_tokens": measured["generated_tokens"],
        },
        "cost": measured["cost"],
        "training": rows,
        "unreadable_log_lines": sum(read_lines(one.folder / TRAIN / "trainer_log.jsonl")[1] for one in trainings),
        "checkpoints": measured["checkpoints"],
        "final": measured["final"],
    }
    write_json(folder / RESULT, result)
    if not job.get("keep_checkpoints"):
        for one in trainings:
            for checkpoint in checkpoints_of(one.folder / TRAIN).values():
                shutil.rmtree(checkpoint, ignore_errors=True)


def _part(training: Training, usage: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a result says of one of a run's trainings."""
    recipe = {key: value for key, value in training.recipe.items() if key != "output_dir"}
    return {
        "name": training.name,
        "budget": {"unit": training.budget.unit, "amount": training.budget.amount},
        "used": used(training.budget, usage, training.recipe),
        "steps": usage["steps"],
        "seconds": usage["seconds"],
        "recipe": training.recipe,
        "recipe_sha256": recipe_hash(recipe),
        "resolved": record["resolved"],
    }


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute()))
