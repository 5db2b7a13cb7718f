"""Whether the adapter that a recipe starts from is part of its reference, and whether the recipe says so."""

import json
from collections.abc import Iterator
from pathlib import Path

from ledpo_plugin.common.problem import Problem, problem
from ledpo_plugin.facts import BETAS
from ledpo_plugin.host.arguments import DRAWN
from ledpo_plugin.hparams import FROZEN
from ledpo_plugin.reference.adapter import undecided

from .reading import Reading

KEY = "reference_adapter"


def check_reference_adapter(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem where `reference_adapter` cannot act, or is needed and not set."""
    if recipe.stage is None or recipe.loss is None or recipe.mode is None:
        return
    if recipe.is_set(KEY):
        yield from _check_set(recipe)
        return
    starts_from_one = recipe.is_set("adapter_name_or_path") and recipe.text("finetuning_type") == "lora"
    why = why_unmerged(recipe)
    if why is None or not (starts_from_one and recipe.flag("do_train") and _has_reference(recipe)):
        return
    if not recipe.is_set("ref_model"):
        message, _, fix = undecided(why, recipe.flag("create_new_adapter")).partition(" Fix: ")
        yield problem("adapter_name_or_path", recipe.raw.get("adapter_name_or_path"), message, fix)


def check_drawn_weights(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem where weights drawn at random while loading would be others in a reference that is loaded, too.

    With LoRA the reference is the same model with its adapter switched off. Everything else loads it anew, where
    LLaMA-Factory 0.9.5 stops at the second reading of new tokens ('list' object has no attribute 'split').
    """
    drawn = [key for key in DRAWN if recipe.is_set(key)]
    if not drawn or recipe.stage is None or recipe.loss is None or recipe.mode is None or not _has_reference(recipe):
        return
    kind = recipe.text("finetuning_type")
    if recipe.is_set("ref_model"):
        apart = "the reference is ref_model"
    elif not recipe.flag("do_train"):
        apart = "without training the reference is loaded anew"
    elif kind != "lora":
        apart = f"with finetuning_type: {kind} the reference is the model, loaded a second time"
    else:
        return
    why = f"it has weights drawn at random while the model loads, and {apart}, which would have others"
    fix = "save the model with its new weights first and name that, without this key"
    yield problem(drawn[0], recipe.raw.get(drawn[0]), why, fix + ("" if kind == "lora" else ", or use LoRA"))


def _check_set(recipe: Reading) -> Iterator[Problem]:
    value = recipe.raw.get(KEY)
    if recipe.text("finetuning_type") != "lora" or not recipe.is_set("adapter_name_or_path"):
        why = f"{KEY} is about the adapter that training goes on with, and this recipe names none"
        yield problem(KEY, value, why, "set finetuning_type: lora and adapter_name_or_path, or remove it")
        return
    if not _has_reference(recipe):
        yield problem(KEY, value, f"the loss {recipe.loss.name} needs no reference model", f"remove {KEY}")
    if recipe.is_set("ref_model"):
        yield problem(KEY, value, "the reference is ref_model already", f"remove {KEY} or ref_model")
    if recipe.flag("create_new_adapter"):
        why = "create_new_adapter merges the adapter into the base, where it can, so that the reference has it already"
        if value == FROZEN:
            why += "; where it cannot, it is ignored"
        yield problem(KEY, value, why, f"remove {KEY} or create_new_adapter")
    if value == FROZEN and recipe.flag("use_kt"):
        why = "KTransformers keeps the adapters of experts outside of PEFT, where no second copy can be put to work"
        yield problem(KEY, value, why, "merge the adapter (llamafactory-cli export) and name the merged model")
    if value == FROZEN and recipe.flag("do_eval") and not recipe.flag("do_train"):
        why = "without training the policy is that adapter itself, so that every margin would be 0"
        yield problem(KEY, value, why, f"set do_train: true, or remove {KEY}")


def _has_reference(recipe: Reading) -> bool:
    return recipe.loss.needs_reference or BETAS[recipe.mode].needs_reference or recipe.stage.rollouts


def why_unmerged(recipe: Reading) -> str | None:
    """Return which key keeps the host from merging an adapter into the base; None where none is seen to."""
    if recipe.raw.get("quantization_bit") is not None:
        return f"quantization_bit: {recipe.raw['quantization_bit']}"
    for key in ("use_unsloth", "use_kt"):
        if recipe.flag(key):
            return f"{key}: true"
    if _zero_stage(recipe.raw.get("deepspeed")) == 3:
        return "deepspeed with ZeRO-3"
    return None


def _zero_stage(config: object) -> object:
    """Return the ZeRO stage of a DeepSpeed configuration, a mapping or a file; None where it cannot be read."""
    if isinstance(config, str):
        try:
            config = json.loads(Path(config).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
    zero = config.get("zero_optimization") if isinstance(config, dict) else None
    return zero.get("stage") if isinstance(zero, dict) else None
