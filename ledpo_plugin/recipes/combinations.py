"""Which stage, loss, beta mode and host options go together, and which keys would have no effect."""

import os
from collections.abc import Iterator, Mapping, Sequence

from ledpo_plugin.common.problem import Problem, problem, unknown
from ledpo_plugin.facts import BETAS, LOSSES, Loss, either, has_head, is_learned, readers
from ledpo_plugin.hparams import ALTERNATE, FROZEN, ROLLOUT_STAGES, argument_fields
from ledpo_plugin.stages import STAGES, Stage

from .reading import HOST_DEFAULTS, Reading, split_names, switched_on

REFERENCE_KEYS = ("ref_model", "ref_model_adapters", "ref_model_quantization_bit")
PPO_KEYS = (
    *("ppo_buffer_size", "ppo_epochs", "ppo_score_norm", "ppo_target", "ppo_whiten_rewards"),
    *("reward_model", "reward_model_adapters", "reward_model_quantization_bit", "reward_model_type"),
)
WEIGHTS = ("pref_ftx", "pref_bco_weight", "dpo_label_smoothing")  # 0 switches them off and is always allowed

_REFUSED_VARIABLES = {
    "USE_MCA": "Megatron (MCA) has its own trainer, without the LEDPO stages",
    "USE_MEGATRON_BRIDGE": "Megatron Bridge has its own trainer, without the LEDPO stages",
    "USE_V1": "LLaMA-Factory's v1 has trainers of its own, without the LEDPO stages",
}


def check_stage(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem where the stage is none of the plugin's."""
    if recipe.stage is None:
        yield unknown("stage", recipe.raw.get("stage"), "stage", STAGES)


def check_loss(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem where `pref_loss` is unknown or is not a loss of this stage."""
    value, stage = recipe.raw.get("pref_loss"), recipe.stage
    if value is None or stage is None or value == stage.default_loss:
        return
    if not isinstance(value, str) or value not in LOSSES:
        known = [name for name, loss in LOSSES.items() if loss.data == "pairs"]
        yield unknown("pref_loss", value, "loss", known if stage.any_loss else [stage.default_loss])
    elif stage.data == "prompts":
        why = f"stage {stage.name} maximises rewards and trains on no preferences"
        yield problem("pref_loss", value, why, f"remove pref_loss, or set stage: {ALTERNATE}")
    elif not stage.any_loss:
        why = f"stage {stage.name} is the loss {stage.default_loss}; it trains no other"
        yield problem("pref_loss", value, why, f"remove pref_loss, or set stage: {stage_for(LOSSES[value])}")
    elif LOSSES[value].data != stage.loss_data:
        why = f"the loss {value} trains on single rated answers, stage {stage.name} on pairs"
        yield problem("pref_loss", value, why, f"set stage: {stage_for(LOSSES[value])} and remove pref_loss")


def stage_for(loss: Loss) -> str:
    """Return the stage that trains the loss: the one that lets recipes choose, else the loss's own."""
    return next(
        name
        for name, stage in STAGES.items()
        if loss.data == stage.data and (stage.any_loss or stage.default_loss == loss.name)
    )


def check_mode(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem where the loss does not admit the beta mode."""
    loss, mode = recipe.loss, recipe.mode
    if loss is None or mode is None or mode in loss.beta_modes:
        return
    admitted = [name for name in BETAS if name in loss.beta_modes]
    why = f"the loss {loss.name} does not admit beta_mode {mode}: {loss.refuses[BETAS[mode].kind]}"
    yield problem("beta_mode", mode, why, f"set beta_mode to {either(admitted)}, or choose another loss")


def check_smoothing(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem where label smoothing is asked of a loss that has none, or denied to one that needs it."""
    value, loss = recipe.number("dpo_label_smoothing"), recipe.loss
    if value is None or loss is None:
        return
    if value == 0 and loss.smoothing_needed:
        why = f"the loss {loss.name} {loss.smoothing_needed}, so 0 will not do"
        usual = loss.recommended["dpo_label_smoothing"]
        yield problem("dpo_label_smoothing", value, why, f"set it above 0 (usual: {usual:g}), or remove it")
    if value <= 0 or loss.label_smoothing:
        return
    able = [name for name, row in LOSSES.items() if row.label_smoothing]
    why = f"dpo_label_smoothing has no effect: the loss {loss.name} has no label smoothing"
    yield problem("dpo_label_smoothing", value, why, f"remove it, or use one of the losses {', '.join(able)}")


def check_head_source(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem where the head would read a reference model that is not loaded."""
    loss = recipe.loss
    wanted = has_head(recipe.mode) and recipe.raw.get("beta_head_source") == "reference"
    if wanted and loss is not None and not loss.needs_reference:
        why = f"the loss {loss.name} needs no reference model, so none is loaded"
        yield problem("beta_head_source", "reference", why, "set beta_head_source: policy")


def check_effect(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem for every key that would change nothing, so that nobody believes in it."""
    if recipe.stage is None or recipe.loss is None or recipe.mode is None:
        return
    idle = idle_keys(recipe.stage, recipe.loss, recipe.mode)
    if not recipe.is_set("ref_model"):
        without = ("no ref_model is set", "remove it, or set ref_model")
        idle = {**dict.fromkeys(REFERENCE_KEYS[1:], without), **idle}
    if recipe.flag("freeze_policy") and is_learned(recipe.mode):
        idle["pref_ftx"] = ("freeze_policy keeps the policy as it is", "remove pref_ftx or freeze_policy")
    for key, (why, fix) in idle.items():
        value = recipe.raw.get(key)
        if recipe.is_set(key) and not (key in WEIGHTS and value == 0):
            yield problem(key, value, f"{key} has no effect: {why}", fix)


def idle_keys(stage: Stage, loss: Loss, mode: str) -> dict[str, tuple[str, str]]:
    """Return the keys that have no effect under this stage, loss and mode, each with why and what to do."""
    idle = {}
    for key, modes in _mode_keys().items():
        if mode not in modes:
            able = [name for name in modes if name in loss.beta_modes]
            fix = f"remove it, or set beta_mode to {either(able)}" if able else "remove it"
            idle[key] = (f"beta_mode is {mode}, and it acts only with {either(modes)}", fix)
    for key, losses in readers().items():
        if loss.name not in losses:
            fix = f"remove it, or {_how_to_choose(stage, losses)}"
            idle[key] = (f"the loss is {loss.name}, and it acts only with {either(losses)}", fix)
    if not loss.needs_reference:
        why = f"the loss {loss.name} needs no reference model"
        idle |= dict.fromkeys((*REFERENCE_KEYS, "pref_bco_weight"), (why, "remove it"))
    idle |= {key: (why, "remove it") for key, why in loss.idle.items()}
    for key, field in argument_fields().items():
        stages = field.metadata.get("stages", (stage.name,))
        if stage.name not in stages:
            idle[key] = (f"it acts in {either(stages)}, and this is stage {stage.name}", "remove it")
        if field.metadata.get("data", loss.data) != loss.data:
            idle[key] = (f"it acts on pairs, and stage {stage.name} trains on single answers", "remove it")
    if loss.data == "unpaired":
        for_pairs = (f"it acts on pairs, and stage {stage.name} trains on single answers", "remove it")
        idle |= dict.fromkeys(("pref_bco_weight", "ld_alpha"), for_pairs)
    if stage.rollouts:
        idle |= _idle_in_rollouts(stage)
    else:
        idle |= dict.fromkeys(PPO_KEYS, (f"it acts in {either(ROLLOUT_STAGES)}", "remove it"))
    return idle


def _idle_in_rollouts(stage: Stage) -> dict[str, tuple[str, str]]:
    of_pairs = (f"it acts on preferences, and stage {stage.name} trains on rollouts", "remove it")
    mixed = (f"instructions cannot be mixed into stage {stage.name}", "remove it")
    idle = dict.fromkeys(("sft_dataset", "sft_ratio", "sft_ratio_by"), mixed)
    if stage.data == "prompts":
        idle |= dict.fromkeys(("pref_ftx", "pref_bco_weight", "ld_alpha"), of_pairs)
        idle |= {key: of_pairs for key, field in argument_fields().items() if field.metadata.get("data") == "pairs"}
    return idle


def _mode_keys() -> dict[str, tuple[str, ...]]:
    fields = argument_fields()
    return {key: field.metadata["modes"] for key, field in fields.items() if "modes" in field.metadata}


def _how_to_choose(stage: Stage, losses: Sequence[str]) -> str:
    needed = stage_for(LOSSES[losses[0]])
    if not STAGES[needed].any_loss:
        return f"set stage: {needed}"
    choice = f"pref_loss: {losses[0]}"
    return f"set {choice}" if stage.any_loss else f"set stage: {needed} and {choice}"


def check_frozen_policy(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem where a frozen policy equals its reference, so that every margin is zero for ever."""
    loss, mode = recipe.loss, recipe.mode
    if not recipe.flag("freeze_policy") or loss is None or not is_learned(mode) or not loss.needs_reference:
        return
    if recipe.is_set("resume_from_checkpoint") or _policy_weights(recipe) != _reference_weights(recipe):
        return
    why = "the frozen policy is the reference itself, so every margin is 0 and beta learns nothing"
    if recipe.text("finetuning_type") == "lora":
        fix = "set adapter_name_or_path to a trained adapter, without create_new_adapter, or set ref_model"
    else:
        fix = "set ref_model to the model that the policy was trained from"
    yield problem("freeze_policy", True, why, fix)


def _policy_weights(recipe: Reading) -> tuple[object, ...]:
    """Return what the policy starts as; a new adapter changes nothing yet, so it is left out."""
    return _weights(recipe, "model_name_or_path", "adapter_name_or_path")


def _reference_weights(recipe: Reading) -> tuple[object, ...]:
    """Return what the reference is made of: `ref_model`, else the model without the adapter in training."""
    if recipe.is_set("ref_model"):
        return _weights(recipe, "ref_model", "ref_model_adapters")
    weights = _policy_weights(recipe)
    if recipe.raw.get("reference_adapter") == FROZEN:
        return weights
    if recipe.text("finetuning_type") == "lora" and len(weights) > 1 and not recipe.flag("create_new_adapter"):
        return weights[:-1]  # the last adapter is trained and switched off; the ones before it are merged
    return weights


def _weights(recipe: Reading, model: str, adapters: str) -> tuple[str, ...]:
    names = (str(recipe.raw.get(model)), *split_names(recipe.raw.get(adapters)))
    return tuple(os.path.normpath(name) for name in names)


def check_evaluated_head(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem where a learned beta is evaluated without one that was learned."""
    trains = recipe.raw.get("do_train") not in (None, False)
    if trains or not is_learned(recipe.mode) or recipe.is_set("beta_head_path"):
        return
    why = "nothing is trained and no beta_head_path is given, so beta would be pref_beta everywhere"
    fix = "set beta_head_path to the run's folder, or beta_mode: fixed"
    yield problem("beta_mode", recipe.mode, why, fix)


def check_fill(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem where a cache is to be filled that is switched off."""
    if recipe.flag("fill_reference_cache") and recipe.flag("disable_reference_cache"):
        why = "disable_reference_cache keeps no cache that could be filled"
        yield problem("fill_reference_cache", True, why, "remove one of the two")


def check_pissa(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem where PiSSA changes the weights that the reference is read from."""
    loss = recipe.loss
    if recipe.flag("pissa_init") and loss is not None and loss.needs_reference:
        why = "PiSSA rewrites the base weights, so without the adapter they are not the reference model"
        yield problem("pissa_init", True, why, "remove pissa_init, or choose a loss without a reference model")


def check_batch(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem where a beta that compares pairs with each other would see one of them a step."""
    value = recipe.raw.get("per_device_train_batch_size")
    size = (
        HOST_DEFAULTS["per_device_train_batch_size"] if value is None else recipe.number("per_device_train_batch_size")
    )
    batchwise = recipe.mode is not None and BETAS[recipe.mode].batchwise
    if batchwise and size is not None and size >= 1 and size * processes(recipe.environ) < 2:
        why = f"{recipe.mode} compares the pairs of one step over all processes, and there is only one pair"
        yield problem("per_device_train_batch_size", value, why, "set per_device_train_batch_size: 2 or more")


def processes(environ: Mapping[str, str]) -> int:
    """Return how many processes train together, as far as the environment tells."""
    if "WORLD_SIZE" in environ:
        return _count(environ["WORLD_SIZE"])
    if switched_on(environ, "FORCE_TORCHRUN"):
        return _count(environ.get("NPROC_PER_NODE")) * _count(environ.get("NNODES"))
    return 1


def _count(text: object) -> int:
    usable = isinstance(text, str) and text.isascii() and text.isdigit() and len(text) <= 6
    return max(1, int(text)) if usable else 1


def check_backends(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem for every environment variable that chooses a trainer without the LEDPO stages."""
    for name, why in _REFUSED_VARIABLES.items():
        if switched_on(recipe.environ, name):
            yield problem(name, recipe.environ.get(name), why, f"unset the environment variable {name}")


def check_precision(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem where DeepSpeed's fp16 would scale the loss out of sight of beta's own optimizer."""
    if recipe.flag("fp16") and recipe.is_set("deepspeed") and is_learned(recipe.mode):
        why = "DeepSpeed scales the fp16 loss inside its engine, so beta's own gradients cannot be unscaled"
        yield problem("fp16", True, why, "set bf16: true instead of fp16, or train without deepspeed")


def check_adapter_kind(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem where an adapter is given to a kind of fine-tuning that has none."""
    kind = recipe.text("finetuning_type")
    if recipe.is_set("adapter_name_or_path") and kind in ("oft", "freeze", "full"):
        value = recipe.raw.get("adapter_name_or_path")
        why = f"an adapter goes with finetuning_type: lora, and this recipe says {kind}"
        yield problem("adapter_name_or_path", value, why, "set finetuning_type: lora, or merge the adapter first")


def check_optimizers(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem where an optimizer of LLaMA-Factory's meets LoRA or another one."""
    chosen = [key for key in ("use_galore", "use_apollo", "use_badam") if recipe.flag(key)]
    if len(chosen) > 1:
        yield problem(chosen[1], True, f"{chosen[0]} is an optimizer, too, and there can be one", "remove one of them")
    if chosen and recipe.text("finetuning_type") == "lora":
        why = f"{chosen[0]} is an optimizer of whole weights, and finetuning_type is lora"
        yield problem(chosen[0], True, why, f"set finetuning_type: full, or remove {chosen[0]}")
