"""`ledpo run`, `ledpo status`, `ledpo report`, `ledpo prepare`, and experiments under `ledpo validate`."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ledpo_plugin.experiments.definition.experiment import Experiment, folder_of, is_experiment
from ledpo_plugin.experiments.definition.problems import ExperimentError
from ledpo_plugin.experiments.reading import examine, profiles_of, read_experiment
from ledpo_plugin.experiments.results.store import EXPERIMENT, ResultsError, read_results, runs_in, states_of
from ledpo_plugin.readiness import host_keys


def run(args: argparse.Namespace) -> int:
    """Run an experiment, or what of it is open; end in a report. Exit status 1 if any run failed."""
    from ledpo_plugin.experiments.running.background import terminated_as_interrupted

    with terminated_as_interrupted():
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    from ledpo_plugin.experiments.definition.plan import plan, results_folder
    from ledpo_plugin.experiments.running.engine import execute
    from ledpo_plugin.experiments.running.estimates import dry_run
    from ledpo_plugin.experiments.running.launchers import LAUNCHERS
    from ledpo_plugin.experiments.running.tasks import NotEnough

    experiment = _prepared(args.experiment, args.profile, prepare=not args.dry_run)
    results = results_folder(experiment.name, experiment.profile, args.results)
    runs = plan(experiment, results, only=_names(args.only), seeds=_numbers(args.seeds))
    kept = Path(args.keep) if args.keep else None
    if args.dry_run:
        try:
            slots = LAUNCHERS["local"](experiment.resources, jobs=args.jobs).slots
        except NotEnough as error:
            print(f"This machine alone could not run it: {error}")
            slots = 1
        print(dry_run(experiment, results, runs, slots, kept))
        return 0
    launcher = LAUNCHERS[args.launcher](experiment.resources, jobs=args.jobs, address=args.ray_address)
    done = execute(experiment, results, runs, launcher, kept)
    _report(results)
    return 0 if done else 1


def _prepared(path: str, profile: str, prepare: bool) -> Experiment:
    """Return the experiment, checked without files first, with them once they were made."""
    keys = host_keys()
    experiment = read_experiment(path, profile, host_keys=keys)
    if experiment.prepare is None or not prepare:
        return experiment
    from ledpo_plugin.experiments.data import hh, prepare_offline
    from ledpo_plugin.experiments.data.prepare import WORKDIR
    from ledpo_plugin.experiments.definition.checks import data_names

    hh.require(data_names(experiment.variants, experiment.evaluation), WORKDIR / "experiments")
    prepare_offline()
    return read_experiment(path, profile, host_keys=keys, with_files=True)


def status(args: argparse.Namespace) -> int:
    """Show the state of every run of an experiment or results folder; exit status 1 if one failed."""
    from ledpo_plugin.experiments.running.overview import overview
    from ledpo_plugin.experiments.running.progress import line_of

    found = overview(_results_of(args.experiment, args.profile, args.results))
    print(f"{found.results}: {found.title} (profile {found.profile})")
    for run_, state in zip(found.runs, found.states, strict=True):
        print("  " + line_of(run_, state))
    print(found.summary())
    for name, state in found.further.items():
        error = str(state.get("error") or "").splitlines()
        print(f"  {name:<39} {state['phase']:<12} {error[0][:100] if error else ''}".rstrip())
    return 1 if found.count("failed") else 0


def report(args: argparse.Namespace) -> int:
    """Write the report of what is finished so far, or anew from the results.json of an earlier one."""
    beside = [Path(folder) for folder in args.beside or ()]
    _report(_results_of(args.experiment, args.profile, args.results), not args.no_samples, beside)
    return 0


def _report(results: Path, samples: bool = True, beside: Sequence[Path] = ()) -> None:
    from ledpo_plugin.experiments.reporting import NUMBERS, rewrite_report, write_report

    if not (results / EXPERIMENT).is_file() and (results / NUMBERS).is_file():
        paths = rewrite_report(results, samples=samples, beside=beside)
    else:
        kept = read_results(results)
        runs = runs_in(results, kept["recipes"])
        paths = write_report(results, kept["definition"], states_of(runs), samples=samples, beside=beside)
    for path in paths:
        print(path)


def _results_of(path: str, profile: str, given: str | None) -> Path:
    """Return the results folder that was named itself, or by its experiment."""
    from ledpo_plugin.experiments.definition.plan import results_folder

    if given:
        return Path(given)
    if is_experiment(path):
        folder = results_folder(folder_of(path).resolve().name, profile)
        if not folder.is_dir():
            raise ResultsError(f"{folder} does not exist: nothing of {path} was run with profile {profile} yet.")
        return folder
    return Path(path)


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str | None) -> list[int] | None:
    names = _names(text)
    try:
        return None if names is None else [int(name) for name in names]
    except ValueError:
        raise ValueError(f"--seeds {text}: seeds are whole numbers, separated by commas, such as 1,2,3.") from None


def prepare(args: argparse.Namespace) -> int:
    """Make the models and data sets of the offline profiles."""
    from ledpo_plugin.experiments.data import prepare_offline

    prepare_offline(Path(args.workdir), hh_file=Path(args.hh) if args.hh else None)
    return 0


# ---- validation


def experiments_and_recipes(paths: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """Return the experiments and the recipes outside of experiments that files and folders name.

    Raises:
        ValueError: a folder holds neither; a path does not exist.
    """
    experiments: list[Path] = []
    recipes: list[Path] = []
    for path in map(Path, paths):
        if is_experiment(path):
            experiments.append(folder_of(path))
        elif path.is_dir():
            inside = sorted(entry.parent for entry in path.rglob("experiment.yaml"))
            loose = [
                recipe
                for recipe in sorted(path.rglob("*.yaml"))
                if not any(folder in recipe.parents for folder in inside) and _looks_like_a_recipe(recipe)
            ]
            if not inside and not loose:
                raise ValueError(f"{path} holds no recipe and no experiment.")
            experiments += inside
            recipes += loose
        else:
            recipes.append(path)
    return experiments, recipes


def _looks_like_a_recipe(path: Path) -> bool:
    from ledpo_plugin.common.files import read_yaml

    try:
        raw = read_yaml(path)
    except (OSError, ValueError):
        return True  # to be reported
    return isinstance(raw, dict) and ("stage" in raw or "model_name_or_path" in raw)


def validate_experiment(folder: Path, keys: Mapping[str, Any], with_files: bool | None = None) -> tuple[bool, str]:
    """Return whether an experiment can run under all of its profiles, and what there is to say."""
    lines, good = [], True
    try:
        profiles = profiles_of(folder)
    except ExperimentError as error:
        return False, str(error)
    for profile in profiles:
        experiment, problems = examine(folder, profile, host_keys=keys, with_files=with_files)
        if problems:
            good = False
            lines.append(str(ExperimentError(f"{folder} (profile {profile})", problems)))
        else:
            count = len(experiment.variants) * len(experiment.seeds)
            lines.append(f"{folder} (profile {profile}): good, {len(experiment.variants)} variants, {count} runs")
    return good, "\n".join(lines)
