"""Checks of an experiment's recipes: each by itself, against each other, against the budget and the held-out data."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ledpo_plugin.common.problem import Problem, unknown
from ledpo_plugin.recipes.check import check_recipe, is_plugin_recipe, resolve_recipe
from ledpo_plugin.recipes.files import DATA_CONFIG, DATA_KEYS
from ledpo_plugin.recipes.reading import split_names

from .budget import Budget, BudgetProblem, budget_keys, steps_of
from .experiment import Phase, Prerequisite, Variant
from .links import named_in, place_of
from .problems import Found

FREE_KEYS = ("output_dir",)  # differ between the recipes of any two variants


def check_recipes(
    variants: Sequence[Variant],
    prerequisites: Sequence[Prerequisite],
    host_keys: Mapping[str, Any],
    environ: Mapping[str, str],
    with_files: bool,
    found: Found,
) -> None:
    """Check every recipe of every variant by itself; what earlier trainings will leave need not be there yet."""
    needed = [place_of(one.recipe) for one in prerequisites]
    for variant in variants:
        places = list(needed)
        for phase in variant.phases:
            if phase.recipe:
                _check_recipe(phase, places, host_keys, environ, with_files, found)
            places.append(place_of(phase.recipe))


def _check_recipe(
    phase: Phase,
    places: Sequence[str],
    host_keys: Mapping[str, Any],
    environ: Mapping[str, str],
    with_files: bool,
    found: Found,
) -> None:
    recipe, path = phase.recipe, phase.path
    if not is_plugin_recipe(recipe):
        why = "an experiment compares LEDPO stages: only they say what they use and keep to budgets"
        found.say(f"{path} stage", recipe.get("stage"), why, "use the LEDPO stage of the same loss")
        return
    later = {key for place in places if place for key in named_in(recipe, place)}
    problems = check_recipe(recipe, host_keys, environ, with_files=with_files and not later)
    if with_files and later:
        there = check_recipe(recipe, host_keys, environ, with_files=True)
        problems += [one for one in there if one not in problems and one.key not in later]
    found.problems += [Problem(f"{path} {one.key}", one.value, one.message) for one in problems]
    if recipe.get("do_train") is not True:
        found.say(f"{path} do_train", recipe.get("do_train"), "it trains nothing", "set it to true")


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the keys in which two recipes differ; where output goes is no difference."""
    keys = [*one, *(key for key in other if key not in one)]
    return [key for key in keys if key not in FREE_KEYS and one.get(key) != other.get(key)]


def check_differences(variants: Sequence[Variant], baseline: Any, found: Found) -> None:
    """Check that recipes differ only where the experiment says so, and that no two are alike."""
    by_name = {variant.name: variant for variant in variants}
    for variant in variants:
        if variant.compares_to == variant.name:
            found.say(f"variants.{variant.name}.compares_to", variant.name, "it is itself", "name another variant")
            continue
        for phase in variant.phases:
            _check_declared(variant, phase, like(variant, phase, by_name), found)
    for place, variant in enumerate(variants):
        for earlier in variants[:place]:
            if variant.recipe and _all_alike(variant, earlier):
                why = f"it trains the same as variant {earlier.name}"
                found.say(f"variants.{variant.name}", str(variant.path), why, "change it, or leave one of the two out")
    if baseline in by_name and by_name[baseline].changes:
        why = "the baseline is what the others are compared to, and changes nothing"
        found.say(f"variants.{baseline}.changes", list(by_name[baseline].changes), why, "remove it")


def like(variant: Variant, phase: Phase, by_name: Mapping[str, Variant]) -> Phase | None:
    """Return the recipe that a phase is to be like: of the variant that it has its name from, else of the other one."""
    other = by_name.get(phase.name) or by_name.get(variant.compares_to)
    return other.phases[0] if other is not None and other.name != variant.name else None


def _check_declared(variant: Variant, phase: Phase, other: Phase | None, found: Found) -> None:
    if other is None or not phase.recipe or not other.recipe:
        return
    for key in differences(phase.recipe, other.recipe):
        if key not in variant.changes:
            why = (
                f"{other.path.name} has {other.recipe.get(key)!r}, and variants.{variant.name}.changes does not "
                f"declare the difference"
            )
            fix = f"give both the same value, or add {key} to variants.{variant.name}.changes"
            found.say(f"{phase.path} {key}", phase.recipe.get(key), why, fix)


def _all_alike(one: Variant, other: Variant) -> bool:
    """Whether two variants train the same."""
    if len(one.phases) != len(other.phases):
        return False
    pairs = zip(one.phases, other.phases, strict=True)
    return not any(differences(_resolved(a.recipe), _resolved(b.recipe)) for a, b in pairs)


def _resolved(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the recipe with what it leaves out, so that writing a default down makes no difference."""
    try:
        return resolve_recipe(recipe)
    except (KeyError, TypeError, ValueError):
        return recipe


def check_budget(variants: Sequence[Variant], budget: Budget, parts: int | None, processes: int, found: Found) -> None:
    """Check that every recipe meets its share of the budget exactly and says so itself."""
    for phase in (phase for variant in variants for phase in variant.phases):
        if phase.recipe:
            _check_budget(phase, budget.part(phase.share), parts, processes, found)


def _check_budget(phase: Phase, budget: Budget, parts: int | None, processes: int, found: Found) -> None:
    recipe, path = phase.recipe, phase.path
    try:
        wanted = budget_keys(budget, recipe, processes)
        steps = steps_of(budget, recipe, processes)
    except BudgetProblem as error:
        key, value, why, fix = error.args
        found.say(f"{path} {key}", value, why, fix)
        return
    for key, value in wanted.items():
        if recipe.get(key) != value:
            why = f"the budget of {budget.amount:g} {budget.unit} is {key}: {value:g} for this recipe"
            found.say(f"{path} {key}", recipe.get(key), why, f"set {key}: {value:g}")
    for key in ("budget_tokens", "budget_flops"):
        if key not in wanted and recipe.get(key) is not None:
            why = f"the experiment's budget is one of {budget.unit}"
            found.say(f"{path} {key}", recipe[key], why, f"remove {key}")
    if budget.unit == "examples" and recipe.get("dataloader_drop_last") is not True:
        why = "the last step of an epoch may be smaller than the others, and the budget would not be met"
        place, value = f"{path} dataloader_drop_last", recipe.get("dataloader_drop_last")
        found.say(place, value, why, "set dataloader_drop_last: true")
    if steps is not None and parts is not None and steps % parts:
        why = f"{steps} steps cannot be cut into {parts} equal parts"
        found.say("checkpoints", parts, f"of {path.name}, {why}", "choose a divisor of the steps")


def check_data(
    variants: Sequence[Variant], evaluation: Mapping[str, Any], where: str, with_files: bool, found: Found
) -> None:
    """Check the held-out data sets against the registries of the recipes' `dataset_dir`."""
    if not with_files:
        return
    for folder, known in registries(variants):
        for kind, name in held_out(evaluation):
            entry = known.get(name)
            if entry is None:
                found.problems.append(unknown(f"{where}.evaluation.{kind}", name, f"data set in {folder}", known))
            elif isinstance(entry, Mapping) and (entry.get("ranking") is True) != (kind != "instructions"):
                is_of = "pairs" if entry.get("ranking") is True else "single answers"
                why = f"it is a data set of {is_of}"
                found.say(f"{where}.evaluation.{kind}", name, why, "name one of the other kind")


def registries(variants: Sequence[Variant]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every `dataset_dir` of the recipes with its registry; one that cannot be read is said of the recipes."""
    for folder in dict.fromkeys(variant.recipe.get("dataset_dir") or "data" for variant in variants if variant.recipe):
        try:
            yield folder, read_registry(Path(folder) / DATA_CONFIG)
        except (OSError, ValueError):
            continue


def held_out_names(evaluation: Mapping[str, Any]) -> list[str]:
    """Return the names of an evaluation's data sets."""
    return [name for _, name in held_out(evaluation)]


def data_names(variants: Sequence[Variant], evaluation: Mapping[str, Any]) -> set[str]:
    """Return the names of all data sets that recipes are trained on or an experiment is measured by."""
    recipes = [phase.recipe for variant in variants for phase in variant.phases]
    trained = {name for recipe in recipes for key in DATA_KEYS for name in split_names(recipe.get(key))}
    return trained | set(held_out_names(evaluation))


def held_out(evaluation: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what of an evaluation names a data set, and the name."""
    for kind in ("pairs", "instructions"):
        names = evaluation.get(kind)
        for name in names if isinstance(names, list) else ():
            yield kind, name
    for kind in ("generations", "answers"):
        part = evaluation.get(kind)
        if isinstance(part, Mapping) and isinstance(part.get("prompts"), str):
            yield f"{kind}.prompts", part["prompts"]


def read_registry(path: Path) -> dict[str, Any]:
    """Return a `dataset_info.json`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a JSON object.
    """
    known = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(known, dict):
        raise ValueError(f"{path} is not a JSON object")
    return known
