"""Checks and defaults of the stages that train on rollouts, but for their rewards."""

import importlib.util
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ledpo_plugin.common.problem import Problem, problem
from ledpo_plugin.facts import BETAS, has_head, is_learned
from ledpo_plugin.hparams import ALTERNATE, PPO, argument_fields
from ledpo_plugin.stages import Stage

from .reading import HOST_DEFAULTS, Reading, recommended

GROUPS = ("rloo", "grpo")  # compare the answers of a prompt with each other
GROUP = 4  # answers of a prompt where they are compared
HOST_PPO = {"ppo_epochs": 4, "ppo_buffer_size": 1}
ONLY_GAE = ("gae_gamma", "gae_lambda", "ppo_value_clip", "ppo_value_coef", "value_lr_ratio", "ppo_whiten_rewards")
ONLY_ADAPTIVE = ("ppo_target", "kl_horizon")
CONTEXT = ("max_position_embeddings", "n_positions", "seq_length")


def rollout_defaults(raw: Mapping[str, Any], stage: Stage, mode: str) -> dict[str, Any]:
    """Return the values of what a recipe leaves out, where they depend on other keys; nothing for other stages."""
    if not stage.rollouts:
        return {}
    estimator = raw.get("advantage_estimator") or argument_fields()["advantage_estimator"].default
    control = raw.get("kl_control") or ("beta" if has_head(mode) else "fixed")
    grouped = estimator in GROUPS or raw.get("rollout_pairs") is True
    found = {
        "num_generations": GROUP if grouped else 1,
        "kl_control": control,
        "kl_estimator": "k3" if estimator == "grpo" else "k1",
        "kl_coef": 0.04 if estimator == "grpo" else 0.05,
    }
    if control == "beta":
        found["kl_coef"] = raw.get("pref_beta")  # of the whole recipe, with what was recommended filled in
    if has_head(mode):
        found["beta_head_source"] = "reference"
    return found


def idle_in(raw: Mapping[str, Any], stage: Stage, mode: str) -> dict[str, tuple[str, str]]:
    """Return the keys that have no effect with what a recipe of such a stage chooses, each with why and what to do."""
    defaults = rollout_defaults(raw, stage, mode)
    if not defaults:
        return {}
    estimator = raw.get("advantage_estimator") or "gae"
    control = defaults["kl_control"]
    idle = {}
    if estimator != "gae":
        idle |= dict.fromkeys(ONLY_GAE, (f"advantage_estimator is {estimator}, which has no value head", "remove it"))
    if control != "adaptive":
        fix = "remove it, or set kl_control: adaptive"
        idle |= dict.fromkeys(ONLY_ADAPTIVE, (f"kl_control is {control}, and it acts only with adaptive", fix))
    if stage.name == PPO and BETAS[mode].kind == "constant":
        why = f"beta_mode is {mode}, and no preference loss is trained; the weight of the KL is kl_coef"
        idle["pref_beta"] = (why, "remove it, or set kl_coef")
    if stage.name == PPO and raw.get("rollout_pairs") is not True:
        keys = ("beta_lr_ratio", "beta_penalty", "beta_center", "dpo_label_smoothing")
        idle |= dict.fromkeys(keys, ("the beta head is not trained", "remove it, or set rollout_pairs: true"))
    return idle


def check_rollouts(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem for what cannot work in a stage that trains on rollouts."""
    if recipe.stage is None or not recipe.stage.rollouts or recipe.mode is None:
        return
    yield from _check_effect(recipe)
    yield from _check_kind_of_run(recipe)
    yield from _check_loss(recipe)
    yield from _check_groups(recipe)
    yield from _check_drawing(recipe)
    yield from _check_kl(recipe)
    yield from _check_schedule(recipe)
    yield from _check_backend(recipe)


def _check_effect(recipe: Reading) -> Iterator[Problem]:
    for key, (why, fix) in idle_in(recipe.raw, recipe.stage, recipe.mode).items():
        value = recipe.raw.get(key)
        if recipe.is_set(key) and not (key == "dpo_label_smoothing" and value == 0):
            yield problem(key, value, f"{key} has no effect: {why}", fix)


def _check_kind_of_run(recipe: Reading) -> Iterator[Problem]:
    if recipe.stage.name == PPO and not recipe.flag("do_train"):
        why = "stage ledpo_ppo evaluates only while it trains"
        fix = "set do_train: true, or evaluate a trained run with ledpo eval"
        yield problem("do_train", recipe.raw.get("do_train"), why, fix)
    for key in ("streaming", "freeze_policy"):
        if recipe.flag(key):
            why = {
                "streaming": "rollouts draw prompts from data of known size, and streamed data has none",
                "freeze_policy": "freeze_policy keeps the policy as it is, and rollouts are there to change it",
            }[key]
            yield problem(key, True, why, f"remove {key}")
    if recipe.stage.data == "prompts" and recipe.is_set("tokenized_path"):
        why = "prompts are cut out of the data by the plugin, which tokenized data on disk would go past"
        yield problem("tokenized_path", recipe.raw.get("tokenized_path"), why, "remove tokenized_path")


def _check_loss(recipe: Reading) -> Iterator[Problem]:
    loss, mode = recipe.loss, recipe.mode
    if recipe.stage.name == ALTERNATE and loss is not None and not loss.needs_reference:
        why = f"the PPO phases hold on to a reference, and the loss {loss.name} would train without one"
        yield problem("pref_loss", loss.name, why, "choose a loss with a reference, such as sigmoid")
    if recipe.stage.name == PPO and not BETAS[mode].before_answers:
        why = f"beta_mode {mode} decides beta from pairs of answers, and rollouts have none"
        yield problem("beta_mode", mode, why, "set beta_mode: head, or remove beta_mode")
    elif recipe.stage.name == PPO and BETAS[mode].kind == "scheduled":
        why = f"beta_mode {mode} changes beta in a preference loss, and stage {PPO} trains on none"
        yield problem("beta_mode", mode, why, f"remove beta_mode, or set stage: {ALTERNATE}")


def _whole(recipe: Reading, key: str) -> int | None:
    defaults = {**HOST_DEFAULTS, **HOST_PPO, "gradient_accumulation_steps": 1}
    value = recipe.raw.get(key)
    value = defaults.get(key) if value is None else value
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 1 else None


def _group(recipe: Reading) -> int | None:
    if recipe.raw.get("num_generations") is not None:
        return _whole(recipe, "num_generations")
    return rollout_defaults(recipe.raw, recipe.stage, recipe.mode)["num_generations"]


def _check_groups(recipe: Reading) -> Iterator[Problem]:
    keys = ("per_device_train_batch_size", "gradient_accumulation_steps", "ppo_buffer_size")
    parts, group = [_whole(recipe, key) for key in keys], _group(recipe)
    estimator = recipe.raw.get("advantage_estimator") or "gae"
    if group is None or None in parts:
        return
    if group < 2 and (estimator in GROUPS or recipe.flag("rollout_pairs")):
        what = "rollout_pairs" if recipe.flag("rollout_pairs") else f"advantage_estimator {estimator}"
        why = f"{what} compares the answers of a prompt with each other, and there is only one"
        yield problem("num_generations", group, why, "set num_generations: 2 or more")
    answers = parts[0] * parts[1] * parts[2]
    if answers % group:
        product = " * ".join(keys)
        small = f"a rollout has {answers} answers ({product}), " + (
            "fewer than" if answers < group else "which cannot be split into groups of"
        )
        why = f"{small} num_generations: {group}"
        yield problem("num_generations", group, why, f"make {product} a multiple of {group}")


def _check_drawing(recipe: Reading) -> Iterator[Problem]:
    raw = recipe.raw
    if raw.get("do_sample") is False and (_group(recipe) or 1) > 1:
        why = "without sampling all answers of a prompt are the same, so that there is nothing to compare"
        yield problem("do_sample", False, why, "remove do_sample, or set num_generations: 1 with gae")
    if (recipe.number("num_beams") or 1) > 1:
        why = "answers of a beam search are no draws from the policy, so that nothing can be learned from them"
        yield problem("num_beams", raw.get("num_beams"), why, "remove num_beams")
    cutoff = recipe.number("cutoff_len") or 2048
    new = recipe.number("max_new_tokens") or recommended(raw, recipe.loss, recipe.mode)["max_new_tokens"]
    context = _context(recipe.text("model_name_or_path"))
    if context is not None and cutoff + new > context and "rope_scaling" not in raw:
        why = f"a prompt of cutoff_len: {cutoff:g} and an answer of max_new_tokens: {new:g} are longer than the "
        why += f"model's context of {context}"
        fix = f"set cutoff_len and max_new_tokens to {context} together at most"
        yield problem("max_new_tokens", raw.get("max_new_tokens"), why, fix)


def _context(model: str | None) -> int | None:
    """Return the tokens that a local model can attend to, where its configuration says so."""
    try:
        config = json.loads((Path(model or "") / "config.json").read_text(encoding="utf-8"))
        config = config.get("text_config") or config
    except (OSError, ValueError, AttributeError):
        return None
    found = [config[key] for key in CONTEXT if isinstance(config.get(key), int)]
    return found[0] if found else None


def _check_kl(recipe: Reading) -> Iterator[Problem]:
    raw, mode = recipe.raw, recipe.mode
    control = raw.get("kl_control") or rollout_defaults(raw, recipe.stage, mode)["kl_control"]
    if control == "beta" and not (is_learned(mode) and BETAS[mode].before_answers):
        why = f"beta_mode {mode} has no beta(x) that could weigh the KL of a prompt"
        yield problem("kl_control", "beta", why, "set beta_mode: head, or kl_control: fixed or adaptive")
        return
    if recipe.stage.name == PPO and is_learned(mode):
        if control != "beta" and not recipe.flag("rollout_pairs"):
            why = f"beta(x) decides nothing here: kl_control is {control}"
            yield problem("beta_mode", mode, why, "set kl_control: beta, or remove beta_mode")
        if not recipe.is_set("beta_head_path") and not recipe.flag("rollout_pairs"):
            why = "no trained beta head is given and none is trained along, so that beta(x) is the same for all prompts"
            yield problem("beta_head_path", None, why, "set beta_head_path to a LEDPO run, or rollout_pairs: true")
    if recipe.is_set("beta_head_path"):
        yield from _check_head_scale(recipe)


def _check_head_scale(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem where a head would be read on another scale than it was trained on."""
    path = recipe.text("beta_head_path") or ""
    try:
        stored = json.loads((Path(path) / "beta_head.json").read_text(encoding="utf-8"))
        beta0, own = float(stored["beta0"]), stored["arguments"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # the check of files says so
    beta = recipe.pref_beta()
    if beta is not None and beta != beta0:
        why = f"the head in {path} was trained around pref_beta: {beta0:g}, and would be read around {beta:g}"
        yield problem("pref_beta", recipe.raw.get("pref_beta"), why, f"set pref_beta: {beta0:g}")
        return
    for key in ("beta_min", "beta_max"):
        if recipe.raw.get(key) is not None and own.get(key) is not None and recipe.raw[key] != own[key]:
            why = f"the head in {path} was trained with {key}: {own[key]:g}"
            yield problem(key, recipe.raw[key], why, f"set {key}: {own[key]:g}, or remove it if that is its default")


def _check_schedule(recipe: Reading) -> Iterator[Problem]:
    from ledpo_plugin.rl.sampler import Schedule

    if recipe.stage.name != ALTERNATE:
        return
    text = recipe.raw.get("alternate_schedule")
    text = argument_fields()["alternate_schedule"].default if text is None else text
    try:
        schedule = Schedule.read(str(text))
    except ValueError as error:
        yield problem("alternate_schedule", text, str(error), "write for example '4:4'")
        return
    epochs, buffer = _whole(recipe, "ppo_epochs"), _whole(recipe, "ppo_buffer_size")
    if epochs and buffer and schedule.ppo % (epochs * buffer):
        why = f"a rollout is used for {epochs * buffer} steps (ppo_epochs * ppo_buffer_size), and a PPO phase has "
        why += f"{schedule.ppo}, so that a rollout of an older policy would be left over for the next phase"
        fix = f"make the second number a multiple of {epochs * buffer}, or lower ppo_epochs"
        yield problem("alternate_schedule", text, why, fix)


def check_backend_installed(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem if what shall generate the answers is not on this machine."""
    if _by_vllm(recipe) and importlib.util.find_spec("vllm") is None:
        why = "vLLM is not installed here"
        yield problem("rollout_backend", "vllm", why, "pip install vllm, or set rollout_backend: hf")


def _by_vllm(recipe: Reading) -> bool:
    generates = recipe.stage is not None and recipe.stage.rollouts
    return generates and recipe.raw.get("rollout_backend") == "vllm"


def _check_backend(recipe: Reading) -> Iterator[Problem]:
    if _by_vllm(recipe) and recipe.text("finetuning_type") != "lora":
        why = "vLLM gets the policy's weights as a LoRA adapter"
        yield problem("rollout_backend", "vllm", why, "set finetuning_type: lora, or rollout_backend: hf")
