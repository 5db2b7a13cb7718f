"""One run from its recipe to its result, in a process of its own: train, measure, write down. Again, it goes on.

    python -m ledpo_plugin.experiments.worker FOLDER

Training is the stock `llamafactory-cli train`. Only one process is ever at work on a run: the folder's lock is handed
down to the training, so that a training whose worker was killed is waited for, not started a second time.
"""

import ctypes
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ledpo_plugin.checkpoints import checkpoints_of, set_aside_incomplete
from ledpo_plugin.run_record import package_versions, read_record, recipe_hash
from ledpo_plugin.usage import USAGE

from .budget import COUNTED, Budget, logged, overrun, share_missed, used
from .checks import held_out_names
from .definition import read_yaml
from .files import read_json, read_lines, tail, write_json
from .plan import JOB, RECIPE, TRAIN
from .store import FORMAT, RESULT, Locked, is_finished, locked, now, write_state

TRAINED, TRAIN_LOG, MEASURES = "trained.json", "train.log", "measures"
STARTED = now()


class RunFailed(RuntimeError):
    """A run that could not be finished; `log_tail` holds the last lines of its log."""

    def __init__(self, message: str, log_tail: list[str] | None = None):
        super().__init__(message)
        self.log_tail = log_tail or []


def die_with_parent() -> None:
    """Have the system kill this process when the one that started it is killed (Linux; elsewhere nothing is done)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG


def stock_command() -> str:
    """Return the stock command of this environment.

    Raises:
        RunFailed: it is not installed.
    """
    beside = Path(sys.executable).parent / "llamafactory-cli"
    found = str(beside) if beside.is_file() else shutil.which("llamafactory-cli")
    if not found:
        raise RunFailed("llamafactory-cli is not installed here: pip install 'llamafactory>=0.9.5,<0.9.6'.")
    return found


def main(folder: Path) -> int:
    """Finish a run; return the exit status. What went wrong is in its state.json."""
    job = read_json(folder / JOB)
    if not isinstance(job, dict):
        print(f"{folder / JOB} is missing or damaged: start this with `ledpo run`.", file=sys.stderr)
        return 1
    waiting = False
    while True:
        try:
            with locked(folder, "at work on this run") as lock:
                return _finish(folder, job, lock)
        except Locked as error:
            if not waiting:
                print(f"waiting for {error}", flush=True)
            waiting = True
            time.sleep(0.5)


def _finish(folder: Path, job: Mapping[str, Any], lock: int) -> int:
    if is_finished(folder):
        return 0
    os.chdir(job["cwd"])
    try:
        if job["kind"] == "base":
            _use_one_device()
            _measure_base(folder, job)
        elif job["kind"] == "study":
            _use_one_device()
            _study(folder, job)
        else:
            _train(folder, job, lock)
            _use_one_device()
            _measure(folder, job)
    except Exception as error:  # whatever it is, the other runs go on and the report says it
        log_tail = error.log_tail if isinstance(error, RunFailed) else []
        text = f"{type(error).__name__}: {error}" if not isinstance(error, RunFailed) else str(error)
        write_state(folder, "failed", STARTED, error=text, log_tail=log_tail)
        if not isinstance(error, RunFailed):
            raise
        print(text, *log_tail, sep="\n", file=sys.stderr)
        return 1
    write_state(folder, "finished", STARTED)
    return 0


# ---- training


def _train(folder: Path, job: Mapping[str, Any], lock: int) -> None:
    if (folder / TRAINED).is_file():
        return
    recipe = read_yaml(folder / RECIPE)
    budget = Budget(**job["budget"])
    train = folder / TRAIN
    _go_back_to_a_checkpoint(train, recipe, budget)
    write_state(folder, "training", STARTED, total_steps=recipe["max_steps"] if budget.unit in COUNTED else None)
    environ = dict(os.environ)
    if job["processes"] > 1:
        environ |= {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": str(job["processes"])}
    command = [stock_command(), "train", str(folder / RECIPE)]
    with (folder / TRAIN_LOG).open("ab") as log:
        log.write(f"\n[{now()}] {' '.join(command)}\n".encode())
        log.flush()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environ,
            pass_fds=(lock,),
            preexec_fn=die_with_parent,
        )
        status = process.wait()
    if status != 0:
        why = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        raise RunFailed(f"llamafactory-cli train ended with {why}; its log: {folder / TRAIN_LOG}", _tail(folder))
    usage = read_json(train / USAGE)
    if not isinstance(usage, dict):
        raise RunFailed(f"The training left no {USAGE}; its log: {folder / TRAIN_LOG}", _tail(folder))
    rows = _training_log(train)
    problem = overrun(budget, usage, recipe, rows)
    if problem:
        raise RunFailed(f"The run did not keep to its budget: {problem}.", _tail(folder))
    problem = share_missed(recipe, rows)
    if problem:
        raise RunFailed(f"The run did not keep to its mixture: {problem}.", _tail(folder))
    write_json(folder / TRAINED, {"ended": now()})


def _tail(folder: Path) -> list[str]:
    return tail(folder / TRAIN_LOG)


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
    rows = [row for row in _training_log(checkpoint) if "flops" in row]
    return bool(rows) and logged(budget.unit, rows[-1]) >= budget.amount


def _training_log(folder: Path) -> list[dict[str, Any]]:
    """Return the logged steps of a training, each once; a number that is not finite is None."""
    state = read_json(folder / "trainer_state.json") or {}
    rows = [row for row in state.get("log_history", []) if "loss" in row]
    return [{key: _finite(value) for key, value in row.items()} for row in rows]


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---- measuring


def _log(text: str) -> None:
    print(f"[{now()}] {text}", flush=True)


def _use_one_device() -> None:
    """Leave one accelerator visible, before anything asks for them: the training's others would stay empty."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = "0" if named is None else named.split(",")[0]


def _measure_base(folder: Path, job: Mapping[str, Any]) -> None:
    from .measure import measure_base
    from .provenance import provenance

    recipe = read_yaml(folder / RECIPE)
    write_state(folder, "measuring", STARTED)
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


def _study(folder: Path, job: Mapping[str, Any]) -> None:
    from eval_harness.studies import study_of

    from .provenance import git_state, hardware

    write_state(folder, "measuring", STARTED)
    found = study_of(job["study"]).work(folder, job, _log)
    made = {"versions": package_versions(), "hardware": hardware(), "git": git_state(Path.cwd())}
    write_json(folder / RESULT, {"format": FORMAT, "ended": now(), "provenance": made, **found})


def _measure(folder: Path, job: Mapping[str, Any]) -> None:
    from .measure import measure_run
    from .provenance import provenance

    recipe, train = read_yaml(folder / RECIPE), folder / TRAIN
    write_state(folder, "measuring", STARTED, total_steps=job.get("steps"))
    measured = measure_run(recipe, train, folder / MEASURES, job["evaluation"], _log)
    usage, record = read_json(train / USAGE), read_record(train)
    rows = _training_log(train)
    operations = {row["step"]: row.get("flops") for row in rows}
    for checkpoint in measured["checkpoints"]:
        checkpoint["flops"] = operations.get(checkpoint["step"])
    budget = Budget(**job["budget"])
    result = {
        "format": FORMAT,
        "experiment": job["experiment"],
        "profile": job["profile"],
        "variant": job["variant"],
        "seed": job["seed"],
        "base": job["base"],
        "recipe": recipe,
        "recipe_sha256": recipe_hash({key: value for key, value in recipe.items() if key != "output_dir"}),
        "resolved": record["resolved"],
        "started": record["started"],
        "ended": now(),
        "provenance": provenance(recipe, held_out_names(job["evaluation"])),
        "budget": {"unit": budget.unit, "amount": budget.amount, "used": used(budget, usage, recipe)},
        "usage": usage
        | {"measure_seconds": measured["measure_seconds"], "generated_tokens": measured["generated_tokens"]},
        "training": rows,
        "unreadable_log_lines": read_lines(train / "trainer_log.jsonl")[1],
        "checkpoints": measured["checkpoints"],
        "final": measured["final"],
    }
    write_json(folder / RESULT, result)
    if not job.get("keep_checkpoints"):
        for checkpoint in checkpoints_of(train).values():
            shutil.rmtree(checkpoint, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute()))
