"""Checks of an experiment's recipes: each by itself, against each other, against the budget and the held-out data."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ledpo_plugin._recipe_files import DATA_CONFIG
from ledpo_plugin._recipe_problem import Problem, unknown
from ledpo_plugin.recipe import check_recipe, is_plugin_recipe, resolve_recipe

from .budget import Budget, BudgetProblem, budget_keys, steps_of
from .definition import Variant
from .problems import Found

FREE_KEYS = ("output_dir",)  # differ between the recipes of any two variants


def check_recipes(
    variants: Sequence[Variant],
    host_keys: Mapping[str, Any],
    environ: Mapping[str, str],
    with_files: bool,
    found: Found,
) -> None:
    """Check every variant's recipe by itself."""
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


def check_differences(variants: Sequence[Variant], baseline: Any, found: Found) -> None:
    """Check that recipes differ only where the experiment says so, and that no two are alike."""
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


def check_budget(variants: Sequence[Variant], budget: Budget, parts: int | None, processes: int, found: Found) -> None:
    """Check that every recipe meets the budget exactly and says so itself."""
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


def held_out(evaluation: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what of an evaluation names a data set, and the name."""
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
    known = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(known, dict):
        raise ValueError(f"{path} is not a JSON object")
    return known
