"""From an experiment's folder to an `Experiment`; everything that is wrong with it is said at once, before it runs."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ledpo_plugin.common.files import read_yaml
from ledpo_plugin.common.problem import Problem, unknown
from ledpo_plugin.experiments.definition.budget import COUNTED, UNITS, Budget
from ledpo_plugin.experiments.definition.checks import check_budget, check_data, check_differences, check_recipes
from ledpo_plugin.experiments.definition.experiment import FILE, Experiment, Resources, Variant, folder_of
from ledpo_plugin.experiments.definition.metrics import SCORERS, known_metrics
from ledpo_plugin.experiments.definition.phase_checks import check_phases, check_prerequisites
from ledpo_plugin.experiments.definition.problems import ExperimentError, Found
from ledpo_plugin.experiments.definition.variants import read_prerequisites, read_variants
from ledpo_plugin.experiments.studies.checks import check_study

NEEDED = ("name", "title", "question", "status", "baseline", "variants", "profiles")
TOP = (*NEEDED, "prerequisites")
OF_PROFILE = (
    "variants",
    "prepare",
    "seeds",
    "budget",
    "checkpoints",
    "checkpoint_steps",
    "resources",
    "evaluation",
    "seconds_per_run",
    "keep_checkpoints",
    "prediction",
    "study",
)
OF_EVALUATION = ("pairs", "instructions", "generations", "answers", "primary", "secondary", "target", "equivalence")
OF_GENERATIONS = ("prompts", "count", "max_new_tokens")
OF_ANSWERS = (*OF_GENERATIONS, "seed", *SCORERS)
OF_TARGET = ("metric", "at_least")
STATUSES = ("planned", "run")
PREPARATIONS = ("offline",)


def read_experiment(
    path: str | Path,
    profile: str,
    *,
    host_keys: Mapping[str, Any],
    environ: Mapping[str, str] | None = None,
    with_files: bool | None = None,
) -> Experiment:
    """Return an experiment under one of its profiles.

    Args:
        path: its folder, or its experiment.yaml.
        profile: name of one of its profiles.
        host_keys: every recipe key that the host and the plugin take, with its type annotation.
        environ: the environment variables of the runs; left out: this process's.
        with_files: whether models, data and packages must be there; left out: unless `ledpo run` will make them first.

    Raises:
        ExperimentError: it cannot run as it is; every problem is listed.
    """
    experiment, problems = examine(path, profile, host_keys=host_keys, environ=environ, with_files=with_files)
    if problems:
        raise ExperimentError(f"{folder_of(path)} (profile {profile})", problems)
    return experiment


def profiles_of(path: str | Path) -> list[str]:
    """Return the names of an experiment's profiles.

    Raises:
        ExperimentError: the file cannot be read or has none.
    """
    raw, found = _read(folder_of(path))
    profiles = raw.get("profiles") if isinstance(raw, Mapping) else None
    if not isinstance(profiles, Mapping) or not profiles:
        if not found.problems:
            found.say("profiles", profiles, "there is none", "add profiles: with cpu: below it")
        raise ExperimentError(str(folder_of(path)), found.problems)
    return list(profiles)


def examine(
    path: str | Path,
    profile: str,
    *,
    host_keys: Mapping[str, Any],
    environ: Mapping[str, str] | None = None,
    with_files: bool | None = None,
) -> tuple[Experiment | None, list[Problem]]:
    """Return an experiment, or None, and everything that is wrong with it; arguments as of `read_experiment`."""
    folder = folder_of(path)
    raw, found = _read(folder)
    if raw is None:
        return None, found.problems
    top = found.mapping(raw, "", TOP, NEEDED)
    _check_top(top, folder, found)
    profiles = found.mapping(top.get("profiles") or {}, "profiles")
    if profile not in profiles:
        found.problems.append(unknown("--profile", profile, "profile", profiles))
        return None, found.problems
    where = f"profiles.{profile}"
    own = found.mapping(profiles[profile], where, OF_PROFILE, ("seeds", "budget", "evaluation"))
    seeds = _seeds(own.get("seeds"), f"{where}.seeds", found)
    budget = _budget(own.get("budget"), f"{where}.budget", found)
    resources = _resources(own.get("resources"), f"{where}.resources", found)
    seconds, keep = _check_profile(own, where, found)
    evaluation = _evaluation(own.get("evaluation"), f"{where}.evaluation", found)
    variants = read_variants(top, own, folder / profile, where, found)
    parts, every = _checkpoints(own, where, budget, variants, found)
    prerequisites = read_prerequisites(top, scorers_of(evaluation, where), variants, folder / profile, found)
    environ = dict(os.environ if environ is None else environ)
    if resources.processes > 1:
        environ |= {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": str(resources.processes)}
    if with_files is None:
        with_files = own.get("prepare") is None
    check_phases(variants, found)
    check_prerequisites(prerequisites, variants, evaluation, host_keys, with_files, found)
    check_recipes(variants, prerequisites, host_keys, environ, with_files, found)
    check_differences(variants, top.get("baseline"), found)
    if budget is not None:
        check_budget(variants, budget, parts, resources.processes, found)
    check_data(variants, evaluation, where, with_files, found)
    study = own.get("study")
    if study is not None:
        study = check_study(study, f"{where}.study", folder, variants, seeds, with_files, found)
    if found.problems:
        return None, found.problems
    return (
        Experiment(
            folder=folder,
            name=top["name"],
            title=top["title"],
            question=top["question"],
            status=top["status"],
            baseline=top["baseline"],
            profile=profile,
            variants=tuple(variants),
            prerequisites=tuple(prerequisites),
            seeds=seeds,
            budget=budget,
            checkpoints=parts,
            checkpoint_steps=every,
            resources=resources,
            evaluation=evaluation,
            prepare=own.get("prepare"),
            seconds_per_run=seconds,
            keep_checkpoints=keep,
            study=study,
            raw={**{key: value for key, value in top.items() if key != "profiles"}, "profile": own},
        ),
        [],
    )


def _read(folder: Path) -> tuple[Any, Found]:
    found = Found()
    path = folder / FILE
    if not path.is_file():
        found.say("experiment", str(folder), f"there is no {FILE} in it", "name the folder of an experiment")
        return None, found
    try:
        return read_yaml(path), found
    except (OSError, ValueError) as error:
        found.say(FILE, str(path), f"it cannot be read ({error})", "repair the file")
        return None, found


def _check_top(top: Mapping[str, Any], folder: Path, found: Found) -> None:
    name = top.get("name")
    if name and name != folder.resolve().name:
        found.say("name", name, f"the folder is {folder.resolve().name}", "give both the same name")
    for key in ("title", "question", "baseline"):
        if top.get(key) is not None and not isinstance(top[key], str):
            found.say(key, top[key], "a text is expected here", f"write {key} as a text")
    if top.get("status") is not None and top["status"] not in STATUSES:
        found.problems.append(unknown("status", top["status"], "status", STATUSES))


def _check_profile(own: Mapping[str, Any], where: str, found: Found) -> tuple[float | None, bool]:
    """Check the keys of a profile that have one value; return seconds_per_run and keep_checkpoints."""
    seconds = own.get("seconds_per_run")
    seconds = None if seconds is None else found.number(seconds, f"{where}.seconds_per_run", float, 0)
    if own.get("prepare") is not None and own["prepare"] not in PREPARATIONS:
        found.problems.append(unknown(f"{where}.prepare", own["prepare"], "preparation", PREPARATIONS))
    keep = own.get("keep_checkpoints", False)
    if not isinstance(keep, bool):
        found.say(f"{where}.keep_checkpoints", keep, "true or false is expected here", "write true or false")
    prediction = own.get("prediction")
    if prediction is not None and not (isinstance(prediction, str) and prediction.strip()):
        why = "a text is expected here: what is expected of the result, written before any run"
        found.say(f"{where}.prediction", prediction, why, "write it as a text, or remove it")
    return seconds, keep


def _seeds(value: Any, key: str, found: Found) -> tuple[int, ...]:
    if value in (None, []):
        return ()  # said by the check of what is missing
    whole = isinstance(value, list) and all(isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in value)
    if not whole:
        found.say(key, value, "a list of whole numbers of 0 or more is expected here", "write [1, 2, 3]")
        return ()
    if len(set(value)) != len(value):
        found.say(key, value, "a seed is given twice, and the same run would count twice", "give each seed once")
    return tuple(value)


def _budget(value: Any, key: str, found: Found) -> Budget | None:
    if value is None:
        return None
    given = found.mapping(value, key, UNITS)
    if len(given) != 1:
        found.say(key, value, f"a budget is one of {', '.join(UNITS)}", "write for example {examples: 96}")
        return None
    unit, amount = next(iter(given.items()))
    if unit not in UNITS:
        return None
    amount = found.number(amount, f"{key}.{unit}", int if unit != "flops" else float)
    return None if amount is None else Budget(unit, amount)


def _checkpoints(
    own: Mapping[str, Any], where: str, budget: Budget | None, variants: Sequence[Variant], found: Found
) -> tuple[int | None, int | dict[str, int] | None]:
    parts, every = own.get("checkpoints"), own.get("checkpoint_steps")
    if (parts is None) == (every is None):
        why = "a profile says by exactly one of checkpoints and checkpoint_steps when the policy is measured"
        found.say(f"{where}.checkpoints", parts, why, "set checkpoints: 4, or checkpoint_steps")
        return None, None
    if parts is not None and budget is not None and budget.unit not in COUNTED:
        why = f"with a budget of {budget.unit} the number of steps, to be cut into parts, is not known before"
        found.say(f"{where}.checkpoints", parts, why, "set checkpoint_steps instead")
    if parts is not None:
        return found.number(parts, f"{where}.checkpoints"), None
    key = f"{where}.checkpoint_steps"
    if not isinstance(every, Mapping):
        return None, found.number(every, key)
    recipes = [phase.path.stem for variant in variants for phase in variant.phases]
    given = found.mapping(every, key, recipes, recipes)
    numbers = {name: found.number(value, f"{key}.{name}") for name, value in given.items() if name in recipes}
    return None, {name: number for name, number in numbers.items() if number is not None}


def _resources(value: Any, key: str, found: Found) -> Resources:
    given = found.mapping(value or {}, key, [item.name for item in fields(Resources)])
    good: dict[str, Any] = {}
    for name, low, kind in (("cpus", 1, int), ("gpus", 0, float), ("memory_gb", 0, float), ("disk_gb", 0, float)):
        if name in given:
            number = found.number(given[name], f"{key}.{name}", kind, low)
            good |= {} if number is None else {name: number}
    gpus = good.get("gpus", 0)
    if gpus > 1 and gpus != int(gpus):
        why = "a run takes whole GPUs, or a share of a single one"
        found.say(f"{key}.gpus", gpus, why, f"write {math.ceil(gpus)}, or a share such as 0.5 (two runs on one GPU)")
    return Resources(**good)


def _evaluation(value: Any, key: str, found: Found) -> dict[str, Any]:
    given = found.mapping(value or {}, key, OF_EVALUATION, ("pairs", "primary") if value else ())
    for kind in ("pairs", "instructions", "secondary"):
        names = found.names(given.get(kind), f"{key}.{kind}")
        if len(set(names)) != len(names):
            found.say(f"{key}.{kind}", given[kind], "a name is given twice", "give each name once")
    if given.get("generations") is not None:
        part = found.mapping(given["generations"], f"{key}.generations", OF_GENERATIONS, OF_GENERATIONS)
        for name in ("count", "max_new_tokens"):
            if part.get(name) is not None:
                found.number(part[name], f"{key}.generations.{name}")
    if given.get("answers") is not None:
        _answers(given["answers"], f"{key}.answers", found)
    known = known_metrics(given)
    target = given.get("target")
    if target is not None:
        target = found.mapping(target, f"{key}.target", OF_TARGET, OF_TARGET)
        if target.get("at_least") is not None:
            found.number(target["at_least"], f"{key}.target.at_least", float, -1e300)
    if given.get("equivalence") is not None:
        _margins(given, f"{key}.equivalence", found)
    secondary = given.get("secondary")
    wanted = [("primary", given.get("primary")), ("target.metric", (target or {}).get("metric"))]
    wanted += [("secondary", name) for name in (secondary if isinstance(secondary, list) else ())]
    for place, name in wanted:
        if name is not None and name not in known:
            found.problems.append(unknown(f"{key}.{place}", name, "metric", known))
    return given


def _margins(given: Mapping[str, Any], key: str, found: Found) -> None:
    """Say what is wrong with the margins of equivalence: of metrics that are compared, above 0."""
    secondary = given.get("secondary")
    compared = [given.get("primary"), *(secondary if isinstance(secondary, list) else ())]
    margins = found.mapping(given["equivalence"], key)
    for name, margin in margins.items():
        if name not in compared:
            found.problems.append(unknown(key, name, "metric that is compared (primary or secondary)", compared))
        elif found.number(margin, f"{key}.{name}", float, 0) == 0:
            why = "no difference at all can ever be shown; a margin is the largest difference that does not matter"
            found.say(f"{key}.{name}", margin, why, "write for example 0.03, in the metric's own unit")


def _answers(value: Any, key: str, found: Found) -> None:
    given = found.mapping(value, key, OF_ANSWERS, OF_GENERATIONS)
    for name, low in (("count", 1), ("max_new_tokens", 1), ("seed", 0)):
        if given.get(name) is not None:
            found.number(given[name], f"{key}.{name}", int, low)
    if given.get("judge") is not None and given.get("judge") == given.get("reward"):
        why = "the judge is the reward model itself, which says nothing that the reward does not say"
        found.say(f"{key}.judge", given["judge"], why, "train another one on other pairs, or remove judge")


def scorers_of(evaluation: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the keys by which an evaluation names reward models, and the names."""
    answers = evaluation.get("answers")
    given = answers if isinstance(answers, Mapping) else {}
    return {f"{where}.evaluation.answers.{role}": given[role] for role in SCORERS if given.get(role) is not None}
