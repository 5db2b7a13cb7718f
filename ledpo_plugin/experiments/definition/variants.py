"""The recipes of an experiment's folder: those of its variants, phase by phase, and of what they need first."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ledpo_plugin.common.files import read_yaml
from ledpo_plugin.common.problem import unknown

from .experiment import Phase, Prerequisite, Variant
from .links import named_in, place_of
from .problems import Found

OF_VARIANT = ("label", "changes", "compares_to", "note", "phases")
OF_PREREQUISITE = ("label", "note")
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


def read_variants(
    top: Mapping[str, Any], own: Mapping[str, Any], recipes: Path, where: str, found: Found
) -> list[Variant]:
    """Return the variants of a profile.

    Args:
        top: experiment.yaml.
        own: the profile's part of it.
        recipes: the folder of the profile's recipes.
        where: the profile's key.
        found: takes the problems.
    """
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
        if not _good_name(key, name, "variants", found):
            continue
        entry = found.mapping(declared[name] or {}, key, OF_VARIANT)
        compares_to = entry.get("compares_to") or (None if name == baseline else baseline)
        if compares_to is not None and compares_to not in chosen:
            found.problems.append(unknown(f"{key}.compares_to", compares_to, "variant", chosen))
        variants.append(
            Variant(
                name=name,
                label=str(entry.get("label") or name),
                changes=found.names(entry.get("changes"), f"{key}.changes"),
                compares_to=compares_to,
                note=str(entry.get("note") or ""),
                phases=_phases(name, entry.get("phases"), key, recipes, found),
            )
        )
    return variants


def _phases(variant: str, value: Any, key: str, recipes: Path, found: Found) -> tuple[Phase, ...]:
    """Return the trainings of a variant: one with its own name, or those that `phases` gives shares of the budget."""
    if value is None:
        path = recipes / f"{variant}.yaml"
        return (Phase("", 1.0, path, read_recipe(path, key, found)),)
    key = f"{key}.phases"
    phases = []
    for name, share in found.mapping(value, key).items():
        if not _good_name(f"{key}.{name}", name, "phases", found):
            continue
        good = isinstance(share, int | float) and not isinstance(share, bool) and 0 < share < 1
        if not good:
            why = "a phase's share of the variant's budget is expected here"
            found.say(f"{key}.{name}", share, why, "write a number between 0 and 1; all of them add up to 1")
        path = recipes / f"{variant}.{name}.yaml"
        phases.append(Phase(name, float(share) if good else 0.5, path, read_recipe(path, f"{key}.{name}", found)))
    if len(phases) < 2:
        why = "phases are trainings one after the other, and there are fewer than two"
        found.say(key, value, why, "write {one: 0.5, two: 0.5}, or remove phases")
    elif abs(sum(phase.share for phase in phases) - 1) > 1e-9:
        found.say(key, value, "the phases' shares do not add up to 1", "change one of them")
    return tuple(phases) or (Phase("", 1.0, recipes / f"{variant}.yaml", {}),)


def _good_name(key: str, name: Any, what: str, found: Found) -> bool:
    if isinstance(name, str) and NAME.fullmatch(name):
        return True
    found.say(key, name, "it becomes the name of a file", f"use a-z, 0-9, _ and - in names of {what}")
    return False


def read_prerequisites(
    top: Mapping[str, Any], used: Mapping[str, Any], variants: Sequence[Variant], recipes: Path, found: Found
) -> list[Prerequisite]:
    """Return what runs of these variants, or their measuring, need first.

    Args:
        top: experiment.yaml.
        used: what the evaluation names one for (`reward`, `judge`) and the name.
        variants: of the profile.
        recipes: the folder of the profile's recipes.
        found: takes the problems.
    """
    declared = found.mapping(top.get("prerequisites") or {}, "prerequisites")
    for key, name in used.items():
        if name not in declared:
            found.problems.append(unknown(key, name, "prerequisite", declared))
    made = []
    for name, value in declared.items():
        key = f"prerequisites.{name}"
        if not _good_name(key, name, "prerequisites", found):
            continue
        if name in (top.get("variants") or {}):
            found.say(key, name, "there is a variant of the same name", "give it another name")
        entry = found.mapping(value or {}, key, OF_PREREQUISITE)
        path = recipes / f"{name}.yaml"
        if not path.is_file() and name not in used.values():
            continue  # of other profiles
        recipe = read_recipe(path, key, found)
        label, note = str(entry.get("label") or name), str(entry.get("note") or "")
        one = Prerequisite(name, label, note, path, recipe)
        if name in used.values() or users_of(one, variants):
            made.append(one)
    return made


def users_of(prerequisite: Prerequisite, variants: Sequence[Variant]) -> list[str]:
    """Return the variants whose recipes name what a prerequisite leaves."""
    place = place_of(prerequisite.recipe)
    return [
        variant.name for variant in variants if place and any(named_in(phase.recipe, place) for phase in variant.phases)
    ]


def read_recipe(path: Path, key: str, found: Found) -> dict[str, Any]:
    """Return a recipe; an empty one, and a problem said, where it cannot be read."""
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
