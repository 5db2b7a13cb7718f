"""Running an experiment: what is open is started, what is finished is kept, what fails does not stop the others."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ledpo_plugin.common.files import tail, write_json
from ledpo_plugin.common.lock import Locked, locked
from ledpo_plugin.experiments.definition.experiment import Experiment
from ledpo_plugin.experiments.definition.metrics import SCORERS
from ledpo_plugin.experiments.definition.plan import JOB, TRAIN, Run, prerequisite_folder
from ledpo_plugin.experiments.definition.variants import users_of
from ledpo_plugin.experiments.measuring.measure import base_key
from ledpo_plugin.experiments.results.kept import keep, kept_file, restore
from ledpo_plugin.experiments.results.store import (
    BASE,
    WORKER_LOG,
    ResultsError,
    is_finished,
    open_results,
    read_results,
    runs_in,
    state_of,
    write_part,
    write_recipe,
    write_run,
)
from ledpo_plugin.experiments.studies.kinds import study_of

from .launchers import Launcher
from .progress import Progress
from .tasks import Task

POLL = 0.3  # seconds


def base_runs(experiment: Experiment, results: Path, runs: Sequence[Run]) -> dict[str, Run]:
    """Return, by name, the measurements of untrained models: one for all runs that start from the same."""
    found: dict[str, Run] = {}
    for run in runs:
        name = base_key(run.recipe, experiment.evaluation)
        found.setdefault(name, Run("untrained model", 0, results / BASE / name, run.recipe))
    return found


def told_evaluation(experiment: Experiment, results: Path) -> dict[str, Any]:
    """Return the evaluation as workers are told of it: with the folders of the reward models that score answers."""
    answers = experiment.evaluation.get("answers")
    if not answers:
        return dict(experiment.evaluation)
    folders = {role: str(prerequisite_folder(results, answers[role]) / TRAIN) for role in SCORERS if answers.get(role)}
    return {**experiment.evaluation, "answers": {**answers, "scorers": folders}}


def job_of(experiment: Experiment, run: Run, results: Path) -> dict[str, Any]:
    """Return what the worker of a run is told beside its recipes."""
    base = base_key(run.recipe, experiment.evaluation)
    steps = [training.steps for training in run.trainings]
    return {
        "kind": "run",
        "experiment": experiment.name,
        "profile": experiment.profile,
        "variant": run.variant,
        "seed": run.seed,
        "base": base,
        "base_folder": str(results / BASE / base) if experiment.evaluation.get("answers") else None,
        "budget": asdict(experiment.budget),
        "steps": None if None in steps else sum(steps),
        "trainings": [
            {"name": training.name, "budget": asdict(training.budget), "steps": training.steps}
            for training in run.trainings
        ],
        "evaluation": told_evaluation(experiment, results),
        "processes": experiment.resources.processes,
        "keep_checkpoints": experiment.keep_checkpoints,
        "cwd": str(Path.cwd()),
    }


def execute(
    experiment: Experiment, results: Path, runs: Sequence[Run], launcher: Launcher, kept: Path | None = None
) -> bool:
    """Finish all runs; return whether all of them could be finished.

    Finished runs are left as they are, broken ones go on from their checkpoints. Whatever happens to one run, the
    others go on.

    Args:
        experiment: what is run.
        results: the results folder.
        runs: the planned ones.
        launcher: starts them.
        kept: a folder of finished runs, a small file each: what is there is not run again, what finishes is added.

    Raises:
        ResultsError: the results folder is of something else, or another `ledpo run` is at work in it; a kept run is
            of something else.
    """
    open_results(experiment, results)
    try:
        with locked(results, "(ledpo run)"):
            return _execute(experiment, results, runs, launcher, kept)
    except Locked as error:
        raise ResultsError(f"{error} is at work in {results}. Wait for it, or stop it first.") from None


def _execute(
    experiment: Experiment, results: Path, runs: Sequence[Run], launcher: Launcher, kept_in: Path | None
) -> bool:
    bases = base_runs(experiment, results, runs)
    told = {"kind": "base", "evaluation": told_evaluation(experiment, results), "cwd": str(Path.cwd())}
    after = _keeping(experiment, results, [*bases.values(), *runs], told, kept_in)
    open_bases = {f"untrained model {name}": run for name, run in bases.items() if not is_finished(run.folder)}
    open_runs = {run.name: run for run in runs if not is_finished(run.folder)}
    for run in open_bases.values():
        write_run(run, told)
    for run in open_runs.values():
        write_run(run, job_of(experiment, run, results))
    needed = _prerequisites(experiment, results, [*open_runs.values()], scores=bool(open_bases or open_runs))
    progress = Progress(runs, launcher.slots, experiment.seconds_per_run)
    kept = len(runs) - len(open_runs)
    tasks = len(open_bases) + len(open_runs)
    progress.note(
        f"{results}: {len(runs)} runs, {kept} finished before; up to {min(launcher.slots, max(1, tasks))} side by side."
    )
    first, then = dict(needed), {name: run.folder for name, run in (open_bases | open_runs).items()}
    stages = [first, then]
    if experiment.evaluation.get("answers"):  # the start's answers are what those of runs are compared with
        stages = [first, *({name: run.folder for name, run in part.items()} for part in (open_bases, open_runs))]
    done = True
    for stage in stages:
        own = [Task(name, folder, experiment.resources) for name, folder in stage.items()]
        done = (not own or _finish(experiment, results, own, launcher, progress, after)) and done
    if experiment.study is not None:
        done = _study(experiment, results, launcher, progress) and done
    return done


def _keeping(
    experiment: Experiment, results: Path, runs: Sequence[Run], base: Mapping[str, Any], kept_in: Path | None
) -> Callable[[], None]:
    """Restore what is kept, untrained models first; return what keeps all that has finished since."""
    if kept_in is None:
        return lambda: None
    data = read_results(results)["data_sha256"]
    jobs = [base if run.folder.parent.name == BASE else job_of(experiment, run, results) for run in runs]
    for run, job in zip(runs, jobs, strict=True):
        if not is_finished(run.folder):
            restore(kept_in, results, run, job, data)

    def keep_finished() -> None:
        for run, job in zip(runs, jobs, strict=True):
            if is_finished(run.folder) and not kept_file(kept_in, results, run).is_file():
                keep(kept_in, results, run, job)

    keep_finished()
    return keep_finished


def _prerequisites(experiment: Experiment, results: Path, runs: Sequence[Run], scores: bool) -> dict[str, Path]:
    """Write what open runs, or their measuring, need first and is not there; return name -> folder of it."""
    answers = experiment.evaluation.get("answers") or {} if scores else {}
    scored = [name for role, name in answers.items() if role in SCORERS]
    variants = [experiment.variant(name) for name in dict.fromkeys(run.variant for run in runs)]
    found = {}
    for one in experiment.prerequisites:
        folder = prerequisite_folder(results, one.name)
        if is_finished(folder) or not (one.name in scored or users_of(one, variants)):
            continue
        recipe = {**one.recipe, "output_dir": str(folder / TRAIN), "overwrite_output_dir": True, "save_strategy": "no"}
        write_recipe(folder, recipe)
        told = {"kind": "prerequisite", "name": one.name, "processes": experiment.resources.processes}
        write_json(folder / JOB, {**told, "cwd": str(Path.cwd())})
        found[f"{one.name} (needed first)"] = folder
    return found


def _study(experiment: Experiment, results: Path, launcher: Launcher, progress: Progress) -> bool:
    """Ask the finished runs what the study asks; return whether all of it could be done."""
    done = True
    trained = [run for run in runs_in(results, read_results(results)["recipes"]) if is_finished(run.folder)]
    for parts in study_of(experiment.study["kind"]).stages(experiment, results, trained):
        for part in parts:
            write_part(part.folder, part.job)
        tasks = [Task(part.name, part.folder, experiment.resources) for part in parts if not is_finished(part.folder)]
        progress.note(f"study: {len(parts)} parts, {len(parts) - len(tasks)} finished before.")
        done = _finish(experiment, results, tasks, launcher, progress) and done
    return done


def _finish(
    experiment: Experiment,
    results: Path,
    tasks: Sequence[Task],
    launcher: Launcher,
    progress: Progress,
    after: Callable[[], None] = lambda: None,
) -> bool:
    """Start the tasks as there is room, until all have ended; return whether all of them have their result.

    `after` is called whenever one has finished.
    """
    waiting, folders = list(tasks), {task.name: task.folder for task in tasks}
    at_work: set[str] = set()
    failed: set[str] = set()
    try:
        while waiting or at_work:
            while waiting and len(at_work) < launcher.slots:
                if not _has_disk(results, experiment.resources.disk_gb):
                    failed |= {task.name for task in waiting}
                    progress.note(_no_disk(results, experiment, [task.name for task in waiting]))
                    waiting.clear()
                    break
                task = waiting.pop(0)
                launcher.start(task)
                at_work.add(task.name)
                progress.note(f"started  {task.name}")
            time.sleep(POLL)
            for name, status in launcher.finished().items():
                at_work.discard(name)
                if is_finished(folders[name]):
                    progress.note(f"finished {name}")
                    after()
                else:
                    failed.add(name)
                    progress.note(_failure(name, folders[name], status))
            progress.show(at_work)
    finally:
        launcher.stop()
    progress.show(set(), now=True)
    return not failed


def _has_disk(results: Path, needed_gb: float) -> bool:
    return shutil.disk_usage(results).free >= needed_gb * 1e9


def _no_disk(results: Path, experiment: Experiment, names: Sequence[str]) -> str:
    free = shutil.disk_usage(results).free / 1e9
    return (
        f"NOT STARTED: {', '.join(names)}. A run needs {experiment.resources.disk_gb:g} GB of disk and {free:.2f} GB "
        f"are free in {results}. Free some and give the same command again: finished runs are kept."
    )


def _failure(name: str, folder: Path, status: int) -> str:
    """Return what there is to say of a run that did not finish: why, the end of its log, and what to do."""
    state = state_of(folder)
    why = state.get("error") or f"its worker ended with status {status} and left no result"
    lines = state.get("log_tail") or tail(folder / WORKER_LOG)
    shown = "".join(f"\n    | {line}" for line in lines[-12:])
    return f"FAILED   {name}: {why}{shown}\n    The other runs go on. Logs: {folder}. The same command tries it again."
