"""Checks of what starts from what another training left: the phases of a variant, and what runs need first."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ledpo_plugin.recipes.files import looks_local
from ledpo_plugin.recipes.reading import split_names

from .checks import held_out_names
from .experiment import Phase, Prerequisite, Variant
from .links import place_of
from .problems import Found

# What must be the same in all phases: each goes on with the weights of the one before, and all are measured alike.
SAME = (
    *("template", "default_system", "cutoff_len", "finetuning_type", "quantization_bit", "bf16", "fp16"),
    *("lora_rank", "lora_alpha", "lora_target", "use_rslora", "use_dora", "additional_target"),
    *("oft_rank", "oft_block_size", "oft_target"),
)
ADAPTERS = ("lora", "oft")


def check_phases(variants: Sequence[Variant], found: Found) -> None:
    """Check that every phase goes on from the one before, and is held to the model that the variant starts from."""
    for variant in variants:
        if len(variant.phases) > 1 and all(phase.recipe for phase in variant.phases):
            for before, phase in zip(variant.phases, variant.phases[1:], strict=False):
                _check_phase(variant.phases[0], before, phase, found)


def _check_phase(first: Phase, before: Phase, phase: Phase, found: Found) -> None:
    recipe, place = phase.recipe, place_of(before.recipe)
    adapter = (recipe.get("finetuning_type") or "lora") in ADAPTERS
    key = "adapter_name_or_path" if adapter else "model_name_or_path"
    if not place:
        found.say(f"{before.path} output_dir", None, "the next phase goes on from it", "set output_dir")
        return
    wanted = _with_last(first.recipe.get(key), place) if adapter else place
    if recipe.get(key) != wanted:
        why = f"the phase goes on from what {before.path.name} leaves, which is its output_dir"
        found.say(f"{phase.path} {key}", recipe.get(key), why, f"set {key}: {wanted}")
    if recipe.get("create_new_adapter"):
        why = "a second adapter would make the first phase's end the reference, in place of the variant's start"
        found.say(f"{phase.path} create_new_adapter", True, why, "remove it: training goes on with the same adapter")
    start = first.recipe.get("model_name_or_path")
    own = recipe.get("model_name_or_path") if adapter else recipe.get("ref_model")
    if own != start:
        key = "model_name_or_path" if adapter else "ref_model"
        why = "the reference is the model that the variant starts from, in all of its phases"
        found.say(f"{phase.path} {key}", own, why, f"set {key}: {start}")
    for key in SAME:
        if recipe.get(key) != first.recipe.get(key):
            why = f"{first.path.name} has {first.recipe.get(key)!r}, and the phases train the same weights"
            found.say(f"{phase.path} {key}", recipe.get(key), why, "give both the same value")


def _with_last(adapters: Any, place: str) -> str:
    """Return the adapters that a phase starts from: those under the variant's own, which is the last."""
    names = split_names(adapters)
    return ",".join([*names[:-1], place])


def check_prerequisites(
    prerequisites: Sequence[Prerequisite],
    variants: Sequence[Variant],
    evaluation: Mapping[str, Any],
    host_keys: Mapping[str, Any],
    with_files: bool,
    found: Found,
) -> None:
    """Check the recipes of what runs need first, which are of LLaMA-Factory's own stage rm."""
    held_out = set(held_out_names(evaluation))
    places = [place_of(phase.recipe) for variant in variants for phase in variant.phases if phase.recipe]
    for one in prerequisites:
        recipe = one.recipe
        if not recipe:
            continue
        if recipe.get("stage") != "rm":
            why = "a prerequisite is a reward model, which LLaMA-Factory trains with its stage rm"
            found.say(f"{one.path} stage", recipe.get("stage"), why, "set stage: rm")
        if recipe.get("do_train") is not True:
            found.say(f"{one.path} do_train", recipe.get("do_train"), "it trains nothing", "set it to true")
        for key in recipe:
            if key not in host_keys:
                found.say(f"{one.path} {key}", recipe[key], "there is no such recipe key", "remove or correct it")
        if not place_of(recipe) or place_of(recipe) in places:
            why = "recipes name what it leaves by its output_dir, which must be one of its own"
            found.say(f"{one.path} output_dir", recipe.get("output_dir"), why, "set output_dir to a folder of its own")
        places.append(place_of(recipe))
        for name in split_names(recipe.get("dataset")):
            if name in held_out:
                why = "it is trained on, and the runs are measured on it"
                found.say(f"{one.path} dataset", name, why, "train on other data, or measure on other data")
        _check_there(one, with_files, found)


def _check_there(one: Prerequisite, with_files: bool, found: Found) -> None:
    model = one.recipe.get("model_name_or_path")
    if not isinstance(model, str) or not model:
        found.say(
            f"{one.path} model_name_or_path", model, "no model is named", "set it to a model's folder or hub name"
        )
    elif with_files and looks_local(model) and not (Path(model) / "config.json").is_file():
        found.say(f"{one.path} model_name_or_path", model, "there is no such model", "write the path of a model")
