"""From an experiment's folder to an `Experiment`; everything that is wrong with it is said at once, before it runs."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ledpo_plugin._recipe_problem import Problem, problem, unknown
from ledpo_plugin.recipe import check_recipe, is_plugin_recipe, resolve_recipe

from .budget import COUNTED, UNITS, Budget, BudgetProblem, budget_keys, steps_of
from .definition import FILE, Experiment, Resources, Variant, folder_of, read_yaml
from .metrics import known_metrics

TOP = ("name", "title", "question", "status", "baseline", "variants", "profiles")
OF_VARIANT = ("label", "changes", "compares_to", "note")
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
)
OF_EVALUATION = ("pairs", "instructions", "generations", "primary", "secondary", "target")
OF_GENERATIONS = ("prompts", "count", "max_new_tokens")
OF_TARGET = ("metric", "at_least")
STATUSES = ("planned", "run")
PREPARATIONS = ("offline",)
FREE_KEYS = ("output_dir",)  # differ between the recipes of any two variants
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


class ExperimentError(ValueError):
    """An experiment that must not run; its text lists every problem, numbered."""

    def __init__(self, where: str, problems: Iterable[Problem]) -> None:
        self.where, self.problems = where, tuple(problems)
        super().__init__(where, self.problems)

    def __str__(self) -> str:
        count = f"{len(self.problems)} problem{'' if len(self.problems) == 1 else 's'}"
        lines = [f"{self.where} has {count}; nothing was run."]
        return "\n".join(lines + [f"{number}. {found}" for number, found in enumerate(self.problems, start=1)])


@dataclass
class _Found:
    problems: list[Problem] = field(default_factory=list)

    def say(self, key: str, value: Any, why: str, fix: str) -> None:
        self.problems.append(problem(key, value, why, fix))

    def mapping(self, value: Any, key: str, known: Sequence[str] | None = None, needed: Sequence[str] = ()) -> dict:
        """Return a mapping's known entries; say what is unknown or missing."""
        if not isinstance(value, Mapping):
            self.say(key, value, "a mapping of keys to values is expected here", f"write {key}: with lines below it")
            return {}
        if known is not None:
            for name in value:
                if name not in known:
                    self.problems.append(unknown(f"{key}.{name}" if key else str(name), name, "key", known))
        for name in needed:
            if value.get(name) in (None, "", [], {}):
                where = f"{key}.{name}" if key else name
                self.say(where, value.get(name), "it is missing or empty", f"give {where} a value")
        return dict(value)

    def names(self, value: Any, key: str) -> tuple[str, ...]:
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.say(key, value, "a list of names is expected here", "write [name, name]")
            return ()
        return tuple(value)

    def number(self, value: Any, key: str, kind: type = int, low: float = 1) -> Any | None:
        good = isinstance(value, int | float) and not isinstance(value, bool) and value >= low
        if not good or (kind is int and value != int(value)):
            what = "a whole number" if kind is int else "a number"
            self.say(key, value, f"{what} of {low:g} or more is expected here", f"set {key} to one")
            return None
        return kind(value)


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
        with_files: whether models and data must be there; left out: unless `ledpo run` will make them first.

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
    top = found.mapping(raw, "", TOP, TOP)
    _check_top(top, folder, found)
    profiles = found.mapping(top.get("profiles") or {}, "profiles")
    if profile not in profiles:
        found.problems.append(unknown("--profile", profile, "profile", profiles))
        return None, found.problems
    where = f"profiles.{profile}"
    own = found.mapping(profiles[profile], where, OF_PROFILE, ("seeds", "budget", "evaluation"))
    seeds = _seeds(own.get("seeds"), f"{where}.seeds", found)
    budget = _budget(own.get("budget"), f"{where}.budget", found)
    parts, every = _checkpoints(own, where, budget, found)
    resources = _resources(own.get("resources"), f"{where}.resources", found)
    seconds = own.get("seconds_per_run")
    seconds = None if seconds is None else found.number(seconds, f"{where}.seconds_per_run", float, 0)
    if own.get("prepare") is not None and own["prepare"] not in PREPARATIONS:
        found.problems.append(unknown(f"{where}.prepare", own["prepare"], "preparation", PREPARATIONS))
    keep = own.get("keep_checkpoints", False)
    if not isinstance(keep, bool):
        found.say(f"{where}.keep_checkpoints", keep, "true or false is expected here", "write true or false")
    evaluation = _evaluation(own.get("evaluation"), f"{where}.evaluation", found)
    variants = _variants(top, own, folder / profile, where, found)
    environ = dict(os.environ if environ is None else environ)
    if resources.processes > 1:
        environ |= {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": str(resources.processes)}
    if with_files is None:
        with_files = own.get("prepare") is None
    _check_recipes(variants, host_keys, environ, with_files, found)
    _check_differences(variants, top.get("baseline"), found)
    if budget is not None:
        _check_budget(variants, budget, parts, resources.processes, found)
    _check_data(variants, evaluation, where, with_files, found)
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
            seeds=seeds,
            budget=budget,
            checkpoints=parts,
            checkpoint_steps=every,
            resources=resources,
            evaluation=evaluation,
            prepare=own.get("prepare"),
            seconds_per_run=seconds,
            keep_checkpoints=keep,
            raw={**{key: value for key, value in top.items() if key != "profiles"}, "profile": own},
        ),
        [],
    )


def _read(folder: Path) -> tuple[Any, _Found]:
    found = _Found()
    path = folder / FILE
    if not path.is_file():
        found.say("experiment", str(folder), f"there is no {FILE} in it", "name the folder of an experiment")
        return None, found
    try:
        return read_yaml(path), found
    except (OSError, ValueError) as error:
        found.say(FILE, str(path), f"it cannot be read ({error})", "repair the file")
        return None, found


def _check_top(top: Mapping[str, Any], folder: Path, found: _Found) -> None:
    name = top.get("name")
    if name and name != folder.resolve().name:
        found.say("name", name, f"the folder is {folder.resolve().name}", "give both the same name")
    for key in ("title", "question", "baseline"):
        if top.get(key) is not None and not isinstance(top[key], str):
            found.say(key, top[key], "a text is expected here", f"write {key} as a text")
    if top.get("status") is not None and top["status"] not in STATUSES:
        found.problems.append(unknown("status", top["status"], "status", STATUSES))


def _seeds(value: Any, key: str, found: _Found) -> tuple[int, ...]:
    if value in (None, []):
        return ()  # said by the check of what is missing
    whole = isinstance(value, list) and all(isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in value)
    if not whole:
        found.say(key, value, "a list of whole numbers of 0 or more is expected here", "write [1, 2, 3]")
        return ()
    if len(set(value)) != len(value):
        found.say(key, value, "a seed is given twice, and the same run would count twice", "give each seed once")
    return tuple(value)


def _budget(value: Any, key: str, found: _Found) -> Budget | None:
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
    own: Mapping[str, Any], where: str, budget: Budget | None, found: _Found
) -> tuple[int | None, int | None]:
    parts, every = own.get("checkpoints"), own.get("checkpoint_steps")
    if (parts is None) == (every is None):
        why = "a profile says by exactly one of checkpoints and checkpoint_steps when the policy is measured"
        found.say(f"{where}.checkpoints", parts, why, "set checkpoints: 4, or checkpoint_steps")
        return None, None
    if parts is not None and budget is not None and budget.unit not in COUNTED:
        why = f"with a budget of {budget.unit} the number of steps, to be cut into parts, is not known before"
        found.say(f"{where}.checkpoints", parts, why, "set checkpoint_steps instead")
    key = "checkpoints" if every is None else "checkpoint_steps"
    number = found.number(own[key], f"{where}.{key}")
    return (number, None) if every is None else (None, number)


def _resources(value: Any, key: str, found: _Found) -> Resources:
    given = found.mapping(value or {}, key, [item.name for item in fields(Resources)])
    good: dict[str, Any] = {}
    for name, low, kind in (("cpus", 1, int), ("gpus", 0, int), ("memory_gb", 0, float), ("disk_gb", 0, float)):
        if name in given:
            number = found.number(given[name], f"{key}.{name}", kind, low)
            good |= {} if number is None else {name: number}
    return Resources(**good)


def _evaluation(value: Any, key: str, found: _Found) -> dict[str, Any]:
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
    known = known_metrics(given)
    target = given.get("target")
    if target is not None:
        target = found.mapping(target, f"{key}.target", OF_TARGET, OF_TARGET)
        if target.get("at_least") is not None:
            found.number(target["at_least"], f"{key}.target.at_least", float, -1e300)
    secondary = given.get("secondary")
    wanted = [("primary", given.get("primary")), ("target.metric", (target or {}).get("metric"))]
    wanted += [("secondary", name) for name in (secondary if isinstance(secondary, list) else ())]
    for place, name in wanted:
        if name is not None and name not in known:
            found.problems.append(unknown(f"{key}.{place}", name, "metric", known))
    return given


def _variants(
    top: Mapping[str, Any], own: Mapping[str, Any], recipes: Path, where: str, found: _Found
) -> list[Variant]:
    declared = found.mapping(top.get("variants") or {}, "variants")
    chosen = found.names(own.get("variants"), f"{where}.variants") or tuple(declared)
    for name in chosen:
        if name not in declared:
            found.problems.append(unknown(f"{where}.variants", name, "variant", declared))
    baseline = top.get("baseline")
    if isinstance(baseline, str) and declared and baseline not in declared:
        found.problems.append(unknown("baseline", baseline, "variant", declared))
    elif isinstance(baseline, str) and declared and baseline not in chosen:
        why = "the baseline is not among this profile's variants"
        found.say(f"{where}.variants", list(chosen), why, f"add {baseline}")
    variants = []
    for name in (name for name in declared if name in chosen):
        key = f"variants.{name}"
        if not isinstance(name, str) or not NAME.fullmatch(name):
            found.say(key, name, "it becomes the name of a file", "use a-z, 0-9, _ and - in names of variants")
            continue
        entry = found.mapping(declared[name] or {}, key, OF_VARIANT)
        compares_to = entry.get("compares_to") or (None if name == baseline else baseline)
        if compares_to is not None and compares_to not in chosen:
            found.problems.append(unknown(f"{key}.compares_to", compares_to, "variant", chosen))
        path = recipes / f"{name}.yaml"
        variants.append(
            Variant(
                name=name,
                label=str(entry.get("label") or name),
                changes=found.names(entry.get("changes"), f"{key}.changes"),
                compares_to=compares_to,
                note=str(entry.get("note") or ""),
                path=path,
                recipe=_recipe(path, key, found),
            )
        )
    return variants


def _recipe(path: Path, key: str, found: _Found) -> dict[str, Any]:
    where = f"{path.parent.name}/{path.name}"
    if not path.is_file():
        there = sorted(other.stem for other in path.parent.glob("*.yaml"))
        fix = f"write it, or take the variant out of this profile; recipes there: {', '.join(there) or 'none'}"
        found.say(key, where, "there is no such recipe", fix)
        return {}
    try:
        recipe = read_yaml(path)
    except (OSError, ValueError) as error:
        found.say(key, where, f"it cannot be read ({error})", "repair the file")
        return {}
    if not isinstance(recipe, dict):
        found.say(key, where, "a recipe is a mapping of keys to values", "write lines such as 'stage: ledpo'")
        return {}
    return recipe


def _check_recipes(
    variants: Sequence[Variant],
    host_keys: Mapping[str, Any],
    environ: Mapping[str, str],
    with_files: bool,
    found: _Found,
) -> None:
    for variant in variants:
        if not variant.recipe:
            continue
        if not is_plugin_recipe(variant.recipe):
            why = "an experiment compares LEDPO stages: only they say what they use and keep to budgets"
            found.say(f"{variant.path} stage", variant.recipe.get("stage"), why, "use the LEDPO stage of the same loss")
            continue
        for one in check_recipe(variant.recipe, host_keys, environ, with_files=with_files):
            found.problems.append(Problem(f"{variant.path} {one.key}", one.value, one.message))
        if variant.recipe.get("do_train") is not True:
            found.say(f"{variant.path} do_train", variant.recipe.get("do_train"), "it trains nothing", "set it to true")


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the keys in which two recipes differ; where output goes is no difference."""
    keys = [*one, *(key for key in other if key not in one)]
    return [key for key in keys if key not in FREE_KEYS and one.get(key) != other.get(key)]


def _check_differences(variants: Sequence[Variant], baseline: Any, found: _Found) -> None:
    by_name = {variant.name: variant for variant in variants}
    for variant in variants:
        other = by_name.get(variant.compares_to)
        if variant.compares_to == variant.name:
            found.say(f"variants.{variant.name}.compares_to", variant.name, "it is itself", "name another variant")
        elif other is not None and variant.recipe and other.recipe:
            undeclared = [key for key in differences(variant.recipe, other.recipe) if key not in variant.changes]
            for key in undeclared:
                why = (
                    f"{other.path.name} has {other.recipe.get(key)!r}, and variants.{variant.name}.changes does not "
                    f"declare the difference"
                )
                fix = f"give both the same value, or add {key} to variants.{variant.name}.changes"
                found.say(f"{variant.path} {key}", variant.recipe.get(key), why, fix)
    for place, variant in enumerate(variants):
        for earlier in variants[:place]:
            if variant.recipe and not differences(_resolved(variant.recipe), _resolved(earlier.recipe)):
                why = f"it trains the same as variant {earlier.name}"
                found.say(f"variants.{variant.name}", str(variant.path), why, "change it, or leave one of the two out")
    if baseline in by_name and by_name[baseline].changes:
        why = "the baseline is what the others are compared to, and changes nothing"
        found.say(f"variants.{baseline}.changes", list(by_name[baseline].changes), why, "remove it")


def _resolved(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the recipe with what it leaves out, so that writing a default down makes no difference."""
    try:
        return resolve_recipe(recipe)
    except (KeyError, TypeError, ValueError):
        return recipe


def _check_budget(
    variants: Sequence[Variant], budget: Budget, parts: int | None, processes: int, found: _Found
) -> None:
    for variant in variants:
        if not variant.recipe:
            continue
        try:
            wanted = budget_keys(budget, variant.recipe, processes)
            steps = steps_of(budget, variant.recipe, processes)
        except BudgetProblem as error:
            key, value, why, fix = error.args
            found.say(f"{variant.path} {key}", value, why, fix)
            continue
        for key, value in wanted.items():
            if variant.recipe.get(key) != value:
                why = f"the budget of {budget.amount:g} {budget.unit} is {key}: {value:g} for this recipe"
                found.say(f"{variant.path} {key}", variant.recipe.get(key), why, f"set {key}: {value:g}")
        for key in ("budget_tokens", "budget_flops"):
            if key not in wanted and variant.recipe.get(key) is not None:
                why = f"the experiment's budget is one of {budget.unit}"
                found.say(f"{variant.path} {key}", variant.recipe[key], why, f"remove {key}")
        if budget.unit == "examples" and variant.recipe.get("dataloader_drop_last") is not True:
            why = "the last step of an epoch may be smaller than the others, and the budget would not be met"
            place, value = f"{variant.path} dataloader_drop_last", variant.recipe.get("dataloader_drop_last")
            found.say(place, value, why, "set dataloader_drop_last: true")
        if steps is not None and parts is not None and steps % parts:
            why = f"{steps} steps cannot be cut into {parts} equal parts"
            found.say("checkpoints", parts, f"of {variant.path.name}, {why}", "choose a divisor of the steps")


def _check_data(
    variants: Sequence[Variant], evaluation: Mapping[str, Any], where: str, with_files: bool, found: _Found
) -> None:
    """Check the held-out data sets against the registries of the recipes' `dataset_dir`."""
    if not with_files:
        return
    from ledpo_plugin._recipe_files import DATA_CONFIG

    for folder in dict.fromkeys(variant.recipe.get("dataset_dir") or "data" for variant in variants if variant.recipe):
        try:
            known = read_registry(Path(folder) / DATA_CONFIG)
        except (OSError, ValueError):
            continue  # said of the recipes
        for kind, name in _held_out(evaluation):
            entry = known.get(name)
            if entry is None:
                found.problems.append(unknown(f"{where}.evaluation.{kind}", name, f"data set in {folder}", known))
            elif isinstance(entry, Mapping) and (entry.get("ranking") is True) != (kind != "instructions"):
                is_of = "pairs" if entry.get("ranking") is True else "single answers"
                why = f"it is a data set of {is_of}"
                found.say(f"{where}.evaluation.{kind}", name, why, "name one of the other kind")


def _held_out(evaluation: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for kind in ("pairs", "instructions"):
        names = evaluation.get(kind)
        for name in names if isinstance(names, list) else ():
            yield kind, name
    generations = evaluation.get("generations")
    if isinstance(generations, Mapping) and isinstance(generations.get("prompts"), str):
        yield "generations.prompts", generations["prompts"]


def read_registry(path: Path) -> dict[str, Any]:
    """Return a `dataset_info.json`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a JSON object.
    """
    import json

    known = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(known, dict):
        raise ValueError(f"{path} is not a JSON object")
    return known
