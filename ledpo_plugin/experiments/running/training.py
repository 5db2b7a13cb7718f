"""One training of a run, by the stock command: started, or gone on with after a kill, and held to its budget."""

import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ledpo_plugin.common.checkpoints import checkpoints_of, set_aside_incomplete
from ledpo_plugin.common.files import read_json, read_yaml, tail, write_json
from ledpo_plugin.experiments.definition.budget import COUNTED, Budget, logged, overrun, share_missed, used
from ledpo_plugin.experiments.definition.plan import RECIPE, TRAIN, Training
from ledpo_plugin.experiments.processes import RunFailed, run_stock
from ledpo_plugin.experiments.results.store import now, write_recipe
from ledpo_plugin.training.usage import USAGE

TRAINED, TRAIN_LOG = "trained.json", "train.log"


def trainings_of(folder: Path, job: Mapping[str, Any]) -> list[Training]:
    """Return the trainings of a run, from its job: those before the first open one with what they really used.

    The budget that a phase used too much or left is the next one's to keep: together they use what was declared.
    """
    made, spent = [], 0.0
    for told in job["trainings"]:
        own, budget = folder / told["name"], Budget(**told["budget"])
        recipe = read_yaml(own / RECIPE)
        if made and budget.unit not in COUNTED:
            declared = sum(one["budget"]["amount"] for one in job["trainings"][: len(made) + 1])
            budget = replace(budget, amount=max(1.0, declared - spent))
            recipe |= {f"budget_{budget.unit}": budget.amount}
        made.append(Training(told["name"], own, recipe, budget, told["steps"]))
        if not (own / TRAINED).is_file():
            break
        spent += used(budget, usage_of(made[-1]), recipe)
    return made


def usage_of(training: Training) -> dict[str, Any]:
    """Return what a training says that it used.

    Raises:
        RunFailed: it says nothing.
    """
    usage = read_json(training.folder / TRAIN / USAGE)
    if not isinstance(usage, dict):
        log = training.folder / TRAIN_LOG
        raise RunFailed(f"The training left no {USAGE}; its log: {log}", tail(log))
    return usage


def train(training: Training, processes: int, lock: int) -> None:
    """Train to the end, from the last checkpoint that a killed training left, or from the start.

    Args:
        training: what to train; nothing is done where it was trained before.
        processes: how many train together.
        lock: file descriptor of the run's lock, which the training inherits.

    Raises:
        RunFailed: it ended with an error, or did not keep to its budget.
    """
    folder, recipe, budget = training.folder, training.recipe, training.budget
    if (folder / TRAINED).is_file():
        return
    write_recipe(folder, recipe)
    _go_back_to_a_checkpoint(folder / TRAIN, recipe, budget)
    call(folder, processes, lock)
    rows = training_log(folder / TRAIN)
    problem = overrun(budget, usage_of(training), recipe, rows)
    if problem:
        raise RunFailed(f"The run did not keep to its budget: {problem}.", tail(folder / TRAIN_LOG))
    problem = share_missed(recipe, rows)
    if problem:
        raise RunFailed(f"The run did not keep to its mixture: {problem}.", tail(folder / TRAIN_LOG))
    write_json(folder / TRAINED, {"ended": now()})


def call(folder: Path, processes: int, lock: int) -> None:
    """Run the stock command on the recipe in a folder.

    Raises:
        RunFailed: it ended with an error.
    """
    arguments = ["train", str(folder / RECIPE)]
    with (folder / TRAIN_LOG).open("ab") as log:
        log.write(f"\n[{now()}] llamafactory-cli {' '.join(arguments)}\n".encode())
        log.flush()
        try:
            status = run_stock(arguments, log, processes, lock)
        except FileNotFoundError as error:
            raise RunFailed(str(error)) from None
    if status != 0:
        why = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        log_file = folder / TRAIN_LOG
        raise RunFailed(f"llamafactory-cli train ended with {why}; its log: {log_file}", tail(log_file))


def _go_back_to_a_checkpoint(train: Path, recipe: Mapping[str, Any], budget: Budget) -> None:
    """Leave what a killed training can go on from: its checkpoints, or nothing.

    A checkpoint at the very end is no place to go on from, since the host would train one more step: the last part is
    trained again from the one before.
    """
    if not train.is_dir():
        return
    set_aside_incomplete(str(train))
    for spoiled in train.glob("incomplete-*"):
        shutil.rmtree(spoiled)
    checkpoints = list(checkpoints_of(train).items())
    if checkpoints and _is_at_the_end(*checkpoints[-1], recipe, budget):
        shutil.rmtree(checkpoints.pop()[1])
    if not checkpoints:
        shutil.rmtree(train)
        return
    for weights in [*train.glob("adapter_model*"), *train.glob("model*.safetensors")]:
        weights.unlink()  # of a training that was killed after its last step; the last step comes again


def _is_at_the_end(step: int, checkpoint: Path, recipe: Mapping[str, Any], budget: Budget) -> bool:
    if budget.unit in COUNTED:
        return step >= recipe["max_steps"]
    rows = [row for row in training_log(checkpoint) if "flops" in row]
    return bool(rows) and logged(budget.unit, rows[-1]) >= budget.amount


def training_log(folder: Path) -> list[dict[str, Any]]:
    """Return the logged steps of a training, each once; a number that is not finite is None."""
    state = read_json(folder / "trainer_state.json") or {}
    rows = [row for row in state.get("log_history", []) if "loss" in row]
    return [{key: _finite(value) for key, value in row.items()} for row in rows]


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
