"""Every wrong recipe is refused before anything loads, with the reason and the fix; every right one passes."""

import json
import pickle
import random
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ledpo_plugin.facts import BETAS, LOSSES, is_learned
from ledpo_plugin.hparams import LedpoArguments, argument_fields
from ledpo_plugin.recipes.check import (
    CHECKS,
    Problem,
    RecipeError,
    added_values,
    arguments_to_recipe,
    check_recipe,
    check_stock_recipe,
    is_plugin_recipe,
    resolve_recipe,
)
from ledpo_plugin.stages import STAGES

GONE = type("Gone", (), {"__repr__": lambda self: "left out"})()  # as a change: the key is taken out of the recipe


@pytest.fixture(scope="module")
def host_keys() -> dict[str, Any]:
    """Every recipe key of the real LLaMA-Factory and of the plugin, with its type."""
    from llamafactory.hparams import (
        DataArguments,
        FinetuningArguments,
        GeneratingArguments,
        ModelArguments,
        TrainingArguments,
    )

    classes = (ModelArguments, DataArguments, TrainingArguments, FinetuningArguments, GeneratingArguments)
    keys: dict[str, Any] = {}
    for arguments in (*classes, LedpoArguments):
        keys |= typing.get_type_hints(arguments)
    return keys


@pytest.fixture(autouse=True)
def packages_installed(monkeypatch):
    """Recipes are right or wrong whatever optional packages this machine has; test_recipe_packages.py asks."""
    monkeypatch.setattr("ledpo_plugin.recipes.packages.installed", lambda package: True)


PAIR_COLUMNS = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
DATA_SETS = {
    "pairs": {"file_name": "pairs.json", "ranking": True, "columns": PAIR_COLUMNS},
    "more_pairs": {"file_name": "folder", "ranking": True, "columns": PAIR_COLUMNS},
    "hub_pairs": {"hf_hub_url": "someone/pairs", "ranking": True, "columns": PAIR_COLUMNS},
    "answers": {"file_name": "answers.json", "columns": {"messages": "messages", "kto_tag": "label"}},
    "instructions": {"file_name": "answers.json"},
    "lost": {"file_name": "lost.json", "ranking": True, "columns": PAIR_COLUMNS},
    "lost_script": {"script_url": "lost.py", "ranking": True, "columns": PAIR_COLUMNS},
    "image": {"file_name": "image.png", "ranking": True, "columns": PAIR_COLUMNS},
    "hollow": {"file_name": "hollow", "ranking": True, "columns": PAIR_COLUMNS},
    "nowhere": {"ranking": True, "columns": PAIR_COLUMNS},
    "columnless": {"file_name": "pairs.json", "ranking": True},
    "broken": ["pairs.json"],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A folder of stand-ins for models, adapters, a head and data; nothing in it is ever loaded."""
    root = tmp_path_factory.mktemp("recipes")
    files = {
        **dict.fromkeys(("model/config.json", "other/config.json"), "{}"),
        **dict.fromkeys(("adapter/adapter_config.json", "adapter/inner/adapter_config.json"), "{}"),
        **dict.fromkeys(("head/beta_head.safetensors", "head/beta_head.json", "half_head/beta_head.json"), "{}"),
        **dict.fromkeys(("data/pairs.json", "data/answers.json", "data/folder/pairs.jsonl"), "[]"),
        **dict.fromkeys(("data/image.png", "a_file", "ds.json", "no_json/dataset_info.json"), "not JSON"),
        "data/dataset_info.json": json.dumps(DATA_SETS),
        "listed/dataset_info.json": "[]",
        "tokenized/train/data.arrow": "",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for name in ("empty", "data/hollow"):
        (root / name).mkdir()
    return root


BASE = {
    "stage": "ledpo",
    "model_name_or_path": "{root}/model",
    "do_train": True,
    "finetuning_type": "lora",
    "dataset": "pairs",
    "dataset_dir": "{root}/data",
    "template": "chatml",
    "cutoff_len": 512,
    "output_dir": "{root}/out",
    "per_device_train_batch_size": 2,
    "learning_rate": 5e-6,
    "num_train_epochs": 1,
    "report_to": "none",
}
KTO = {"stage": "ledpo_kto", "dataset": "answers"}
FIXED = {"beta_mode": "fixed"}
SIMPO = {"pref_loss": "simpo"}


def recipe_of(root: Path, change: dict[Any, Any]) -> dict[Any, Any]:
    """Return the good base recipe with the change, and `{root}` in its texts replaced."""
    merged = {key: value for key, value in {**BASE, **change}.items() if value is not GONE}
    filled = ((k, v.replace("{root}", str(root)) if isinstance(v, str) else v) for k, v in merged.items())
    return dict(filled)


@dataclass(frozen=True)
class Bad:
    """One way to get a recipe wrong: the change, and the one problem that must come of it."""

    name: str
    change: dict[Any, Any]
    key: str
    why: str
    fix: str
    environ: dict[str, str] = field(default_factory=dict)


def ranged(key: str, value: Any, rule: str, change: dict[str, Any] | None = None) -> Bad:
    """Return the case of a number outside its bounds."""
    return Bad(f"{key}={value}", {key: value, **(change or {})}, key, f"{key} must be {rule}", f"value {rule}")


def idle(key: str, value: Any, change: dict[str, Any], why: str, fix: str) -> Bad:
    """Return the case of a key that has no effect."""
    where = "-".join(str(item) for item in change.values())
    return Bad(f"{key} idle {where}", {key: value, **change}, key, f"{key} has no effect: {why}", fix)


UNKNOWN = (
    Bad("key near", {"beta_mod": "head"}, "beta_mod", "no such recipe key", "write beta_mode."),
    Bad("key far", {"zzqqxx": 1}, "zzqqxx", "no such recipe key", "remove it, or set ALLOW_EXTRA_ARGS=1"),
    Bad("key number", {7: "x"}, "7", "no such recipe key", "remove it"),
    Bad("key case", {"Pref_Beta": 0.1}, "Pref_Beta", "no such recipe key", "write pref_beta."),
    Bad("stage", {"stage": "ledpo_impo"}, "stage", "Unknown stage 'ledpo_impo'", "set stage: ledpo_simpo"),
    Bad("stage case", {"stage": "LEDPO"}, "stage", "Unknown stage 'LEDPO'", "set stage: ledpo."),
    Bad("loss", {"pref_loss": "sigmid"}, "pref_loss", "Did you mean 'sigmoid'?", "set pref_loss: sigmoid."),
    Bad("loss type", {"pref_loss": ["ipo"]}, "pref_loss", "Unknown loss ['ipo']", "set pref_loss"),
    Bad("mode", {"beta_mode": "gloabl"}, "beta_mode", "Did you mean 'global'?", "set beta_mode: global."),
    Bad(
        "activation",
        {"beta_head_activation": "gelu"},
        "beta_head_activation",
        "Unknown head activation 'gelu'",
        "set beta_head_activation",
    ),
    Bad(
        "head source",
        {"beta_head_source": "refrence"},
        "beta_head_source",
        "Did you mean 'reference'?",
        "set beta_head_source: reference.",
    ),
    Bad(
        "ppl power",
        {"beta_mode": "ppl", "beta_ppl_power": 2},
        "beta_ppl_power",
        "Available: -1, 1",
        "set beta_ppl_power to one of the available",
    ),
)

MIXED = {"sft_dataset": "instructions", "sft_ratio": 0.5}
MIXTURE = (
    Bad(
        "instructions alone", {"sft_dataset": "instructions"}, "sft_dataset", "its share of each step, is 0", "set sft"
    ),
    Bad("share alone", {"sft_ratio": 0.5}, "sft_ratio", "no data set of them is named", "set sft_dataset"),
    Bad(
        "share of 1", {**MIXED, "sft_ratio": 1.0}, "sft_ratio", "must be at least 0 and at most 0.99", "choose a value"
    ),
    Bad("uneven share", {**MIXED, "sft_ratio": 0.3}, "sft_ratio", "are 0.6, not a whole number", "a multiple of 10"),
    Bad(
        "no preference left",
        {**MIXED, "sft_ratio": 0.75, "gradient_accumulation_steps": 2},
        "sft_ratio",
        "none would be left for preferences",
        "set per_device_train_batch_size to 4 or more",
    ),
    Bad(
        "share of tokens, one at a time",
        {**MIXED, "sft_ratio_by": "tokens", "per_device_train_batch_size": 1},
        "per_device_train_batch_size",
        "at least one preference",
        "set per_device_train_batch_size: 2 or more",
    ),
    Bad("unit", {**MIXED, "sft_ratio_by": "token"}, "sft_ratio_by", "Did you mean 'tokens'?", "set sft_ratio_by"),
    Bad(
        "streamed mixture",
        {**MIXED, "streaming": True, "max_steps": 5},
        "sft_ratio",
        "streamed data has none",
        "remove",
    ),
    Bad("instructions in pairs", {**MIXED, "sft_dataset": "pairs"}, "sft_dataset", "data set is of pairs", "stage sft"),
    Bad(
        "rated instructions", {**MIXED, "sft_dataset": "answers"}, "sft_dataset", "of single rated answers", "stage sft"
    ),
    Bad(
        "no such instructions", {**MIXED, "sft_dataset": "nosuch"}, "sft_dataset", "defines no such data set", "define"
    ),
    Bad("budget cut short", {"budget_tokens": 1e6}, "budget_tokens", "the schedule linear has to know it", "constant"),
    Bad(
        "budget of nothing", {"budget_flops": 0, "lr_scheduler_type": "constant"}, "budget_flops", "at least 1", "value"
    ),
)

TYPES = (
    Bad("float text", {"pref_beta": "1e-3"}, "pref_beta", "must be a number, not text", "write 0.001 without"),
    Bad("float word", {"pref_beta": "small"}, "pref_beta", "must be a number, not text", "write a number"),
    Bad("float bool", {"pref_beta": True}, "pref_beta", "must be a number, not true", "write a number"),
    Bad("float list", {"pref_beta": [0.1]}, "pref_beta", "must be a number, not a list", "write a number"),
    Bad("float nan", {"pref_beta": float("nan")}, "pref_beta", "not a finite number", "write an ordinary"),
    Bad("float inf", {"learning_rate": float("inf")}, "learning_rate", "not a finite", "write an ordinary"),
    Bad("float huge", {"pref_ftx": 10**400}, "pref_ftx", "too large", "write an ordinary number"),
    Bad("int float", {"cutoff_len": 512.0}, "cutoff_len", "whole number, not a number with", "write 512."),
    Bad("int part", {"cutoff_len": 51.5}, "cutoff_len", "whole number, not a number with a", "write a whole"),
    Bad("int bool", {"lora_rank": True}, "lora_rank", "must be a whole number, not true", "write a whole number"),
    Bad("int text", {"lora_rank": "8"}, "lora_rank", "must be a whole number, not text", "write 8 without quotes"),
    Bad("int null", {"cutoff_len": None}, "cutoff_len", "not empty", "or remove the key"),
    Bad("bool text", {"bf16": "yes"}, "bf16", "must be true or false, not text", "write true without quotes"),
    Bad("bool int", {"bf16": 0}, "bf16", "must be true or false, not a whole number", "write false"),
    Bad("str int", {"template": 3}, "template", "must be text, not a whole number", "in quotes: '3'"),
    Bad("str list", {"output_dir": ["a"]}, "output_dir", "must be text, not a list", "write text"),
    Bad("literal", {"finetuning_type": "loar"}, "finetuning_type", "one of lora, oft, freeze, full", "write lora"),
    Bad("enum", {"lr_scheduler_type": "cosin"}, "lr_scheduler_type", "must be one of linear", "write cosine"),
    Bad("enum no", {"save_strategy": False}, "save_strategy", "one of no, steps", "write 'no' in quotes"),
    Bad("list", {"label_names": [1]}, "label_names", "must be a list of texts", "write a list of texts"),
    Bad("plugin bool", {"beta_center": "true"}, "beta_center", "must be true or false", "write true without"),
    Bad("plugin text", {"beta_mode": 3}, "beta_mode", "must be text, not a whole number", "in quotes: '3'"),
)

RANGES = (
    ranged("pref_beta", 0, "above 0"),
    ranged("pref_beta", -0.1, "above 0"),
    ranged("pref_ftx", -1, "at least 0"),
    ranged("pref_bco_weight", -0.5, "at least 0"),
    ranged("dpo_label_smoothing", 0.5, "at least 0 and below 0.5"),
    ranged("dpo_label_smoothing", -0.1, "at least 0 and below 0.5"),
    ranged("simpo_gamma", -1, "at least 0", SIMPO),
    ranged("kto_chosen_weight", 0, "above 0", KTO),
    ranged("kto_rejected_weight", -2.0, "above 0", KTO),
    ranged("ld_alpha", 1.5, "at least 0 and at most 1"),
    ranged("learning_rate", 0, "above 0"),
    ranged("cutoff_len", 7, "at least 8"),
    ranged("lora_rank", 0, "at least 1"),
    ranged("per_device_train_batch_size", 0, "at least 1"),
    ranged("per_device_eval_batch_size", 0, "at least 1"),
    ranged("gradient_accumulation_steps", 0, "at least 1"),
    ranged("num_train_epochs", 0, "above 0"),
    ranged("max_samples", 0, "at least 1"),
    ranged("warmup_ratio", 1.1, "at least 0 and at most 1"),
    ranged("beta_penalty", -0.1, "at least 0"),
    ranged("beta_lr_ratio", 0, "above 0"),
    ranged("beta_ppl_epsilon", 1.0, "at least 0 and at most 0.99", {"beta_mode": "ppl"}),
    ranged("beta_dpo_filter", 0.95, "at least 0 and at most 0.9", {"beta_mode": "beta_dpo"}),
    ranged("epsilon_dpo_epsilon", 0, "above 0 and at most 0.5", {"beta_mode": "epsilon_dpo"}),
    ranged("mallows_phi", 0, "above 0", {"beta_mode": "mallows"}),
    ranged("alphapo_alpha", 6, "at least -5 and at most 5", {"pref_loss": "alphapo"}),
    Bad("val_size part", {"val_size": 1.5}, "val_size", "a share of the data", "choose a share such as 0.1"),
    Bad("val_size low", {"val_size": -0.1}, "val_size", "a share of the data", "choose a share such as 0.1"),
    Bad("widths zero", {"beta_head_widths": "64,0"}, "beta_head_widths", "whole numbers above 0", "'256,64'"),
    Bad("widths word", {"beta_head_widths": "wide"}, "beta_head_widths", "whole numbers above 0", "'256,64'"),
    Bad("widths int", {"beta_head_widths": -8}, "beta_head_widths", "whole numbers above 0", "'256,64'"),
    Bad(
        "beta_min above",
        {"pref_beta": 0.1, "beta_min": 0.2},
        "beta_min",
        "beta_min must be below pref_beta, which is 0.1, where",
        "choose a value below 0.1",
    ),
    Bad(
        "beta_max below the recommended",
        {"beta_max": 0.1},
        "beta_max",
        "above pref_beta, which is 0.1 (recommended for this loss)",
        "choose a value above 0.1",
    ),
)

COMBINATIONS = (
    Bad("hinge head", {"pref_loss": "hinge", "beta_mode": "head"}, "beta_mode", "hinge is zero", "to fixed, or"),
    Bad("ipo global", {"stage": "ledpo_ipo", "beta_mode": "global"}, "beta_mode", "ipo is zero", "to fixed, or"),
    Bad("exo beta_dpo", {"pref_loss": "exo_pair", "beta_mode": "beta_dpo"}, "beta_mode", "sigmoid loss", "head"),
    Bad("kto mallows", {**KTO, "beta_mode": "mallows"}, "beta_mode", "for the sigmoid loss only", "fixed, global"),
    Bad(
        "ipo stage, simpo loss",
        {"stage": "ledpo_ipo", **SIMPO},
        "pref_loss",
        "stage ledpo_ipo is the loss ipo; it trains no other",
        "remove pref_loss, or set stage: ledpo.",
    ),
    Bad("kto in ledpo", {"pref_loss": "kto"}, "pref_loss", "single rated answers", "set stage: ledpo_kto"),
    Bad(
        "pair loss in kto",
        {**KTO, "pref_loss": "kto_pair"},
        "pref_loss",
        "stage ledpo_kto is the loss kto",
        "remove pref_loss",
    ),
    Bad(
        "reference source",
        {**SIMPO, "beta_mode": "head", "beta_head_source": "reference"},
        "beta_head_source",
        "the loss simpo needs no reference model, so none is loaded",
        "set beta_head_source: policy",
    ),
    Bad(
        "no smoothing",
        {"pref_loss": "hinge", "dpo_label_smoothing": 0.1},
        "dpo_label_smoothing",
        "the loss hinge has no label smoothing",
        "remove it, or use one of the losses sigmoid, robust",
    ),
    Bad(
        "needs smoothing",
        {"pref_loss": "exo_pair", "dpo_label_smoothing": 0},
        "dpo_label_smoothing",
        "exo_pair takes the logarithm",
        "set it above 0 (usual: 0.001)",
    ),
    idle("beta_penalty", 0.1, FIXED, "beta_mode is fixed", "set beta_mode to global, head or ppl"),
    idle("beta_min", 0.01, {"stage": "ledpo_hinge"}, "beta_mode is fixed", "remove it."),
    idle("beta_center", True, {"beta_mode": "global"}, "beta_mode is global", "set beta_mode to head or ppl"),
    idle("beta_head_activation", "relu", {"beta_mode": "ppl"}, "beta_mode is ppl", "set beta_mode to head"),
    idle("freeze_policy", True, FIXED, "beta_mode is fixed", "set beta_mode to global, head or ppl"),
    idle("beta_dpo_alpha", 0.6, {}, "beta_mode is head", "set beta_mode to beta_dpo"),
    idle("discopop_tau", 0.1, {}, "the loss is sigmoid", "set pref_loss: discopop"),
    idle("simpo_gamma", 0.5, {}, "the loss is sigmoid, and it acts only with simpo", "set pref_loss: simpo"),
    idle("simpo_gamma", 0.5, {"stage": "ledpo_orpo"}, "the loss is orpo", "set stage: ledpo and pref_loss: simpo"),
    idle("kto_chosen_weight", 2, {}, "the loss is sigmoid, and it acts only with kto", "set stage: ledpo_kto"),
    idle("pref_bco_weight", 1, SIMPO, "the loss simpo needs no reference model", "remove it"),
    idle("pref_bco_weight", 1, {"pref_loss": "bco_pair"}, "the loss bco_pair is the BCO loss already", "remove it"),
    idle("pref_bco_weight", 1, KTO, "it acts on pairs", "remove it"),
    idle("ld_alpha", 0.5, KTO, "it acts on pairs", "remove it"),
    idle("ref_model", "{root}/other", SIMPO, "the loss simpo needs no reference model", "remove it"),
    idle("ref_model_adapters", "{root}/adapter", {}, "no ref_model is set", "remove it, or set ref_model"),
    idle("ppo_epochs", 4, {}, "it acts in ledpo_ppo or ledpo_alternate", "remove it"),
    idle("compute_accuracy", True, {}, "it belongs to stage sft", "remove compute_accuracy"),
    idle(
        "pref_ftx",
        0.1,
        {"freeze_policy": True, "adapter_name_or_path": "{root}/adapter"},
        "freeze_policy keeps the policy as it is",
        "remove pref_ftx or freeze_policy",
    ),
    Bad("frozen new adapter", {"freeze_policy": True}, "freeze_policy", "every margin is 0", "adapter_name_or_path"),
    Bad(
        "frozen merged adapter",
        {"freeze_policy": True, "adapter_name_or_path": "{root}/adapter", "create_new_adapter": True},
        "freeze_policy",
        "the frozen policy is the reference itself",
        "without create_new_adapter",
    ),
    Bad(
        "frozen full",
        {"freeze_policy": True, "finetuning_type": "full"},
        "freeze_policy",
        "every margin is 0",
        "set ref_model to the model",
    ),
    Bad(
        "frozen with itself as reference",
        {"freeze_policy": True, "finetuning_type": "full", "ref_model": "{root}/model/"},
        "freeze_policy",
        "the frozen policy is the reference itself",
        "set ref_model",
    ),
    Bad(
        "fill without a cache",
        {"fill_reference_cache": True, "disable_reference_cache": True},
        "fill_reference_cache",
        "keeps no cache that could be filled",
        "remove one of the two",
    ),
    Bad("pissa", {"pissa_init": True}, "pissa_init", "PiSSA rewrites the base weights", "remove pissa_init"),
    Bad(
        "beta_dpo alone",
        {"beta_mode": "beta_dpo", "per_device_train_batch_size": 1},
        "per_device_train_batch_size",
        "there is only one pair",
        "per_device_train_batch_size: 2",
    ),
    Bad("mca", {"use_mca": True}, "use_mca", "without the LEDPO stages", "remove use_mca"),
    Bad("mca env", {}, "USE_MCA", "without the LEDPO stages", "unset the environment", {"USE_MCA": "1"}),
    Bad("bridge env", {}, "USE_MEGATRON_BRIDGE", "own trainer", "unset the environment", {"USE_MEGATRON_BRIDGE": "1"}),
    Bad("v1 env", {}, "USE_V1", "trainers of its own", "unset the environment variable USE_V1", {"USE_V1": "true"}),
    Bad("bridge", {"use_megatron_bridge": True}, "use_megatron_bridge", "own trainer", "remove use_megatron_bridge"),
    Bad("hyper", {"use_hyper_parallel": True}, "use_hyper_parallel", "serves only stage sft", "remove use_hyper"),
    Bad("generate", {"predict_with_generate": True}, "predict_with_generate", "serves only stage sft", "remove"),
    Bad("packing", {"packing": True}, "packing", "are not packed", "remove packing"),
    Bad("neat packing", {"neat_packing": True}, "neat_packing", "are not packed", "remove neat_packing"),
    Bad("prompt", {"train_on_prompt": True}, "train_on_prompt", "stay masked", "remove train_on_prompt"),
    Bad("history", {"mask_history": True}, "mask_history", "serves only stage sft", "remove mask_history"),
    Bad(
        "a learned beta evaluated without its head",
        {"do_train": False, "dataset": GONE, "do_eval": True, "eval_dataset": "pairs", "beta_mode": "head"},
        "beta_mode",
        "no beta_head_path is given",
        "set beta_head_path to the run's folder",
    ),
    Bad("fp16", {"fp16": True, "deepspeed": "{root}/ds.json"}, "fp16", "cannot be unscaled", "bf16: true"),
    Bad(
        "adapter in full tuning",
        {"finetuning_type": "full", "adapter_name_or_path": "{root}/adapter"},
        "adapter_name_or_path",
        "goes with finetuning_type: lora",
        "set finetuning_type: lora",
    ),
)

FILES = (
    Bad("no model", {"model_name_or_path": GONE}, "model_name_or_path", "no model is named", "set model_name_or"),
    Bad("lost model", {"model_name_or_path": "{root}/x"}, "model_name_or_path", "no such folder", "write the path"),
    Bad("lost near", {"model_name_or_path": "./x"}, "model_name_or_path", "no such folder", "write the path"),
    Bad("home model", {"model_name_or_path": "~/x"}, "model_name_or_path", "not expand ~", "write the whole path"),
    Bad("empty model", {"model_name_or_path": "{root}/empty"}, "model_name_or_path", "no config.json", "folder of a"),
    Bad("lost reference", {"ref_model": "{root}/x"}, "ref_model", "no such folder", "write the path"),
    Bad(
        "second adapter",
        {"adapter_name_or_path": "{root}/adapter, {root}/empty"},
        "adapter_name_or_path",
        "holds no adapter_config.json",
        "folder of an adapter",
    ),
    Bad("lost head", {"beta_head_path": "head_of_nothing"}, "beta_head_path", "no such folder", "trained beta head"),
    Bad(
        "half a head",
        {"beta_head_path": "{root}/half_head"},
        "beta_head_path",
        "holds no beta_head.safetensors",
        "folder of a trained beta head",
    ),
    Bad("deepspeed", {"deepspeed": "{root}/x.json"}, "deepspeed", "no such file", "a DeepSpeed JSON file"),
    Bad("output file", {"output_dir": "{root}/a_file"}, "output_dir", "this is a file", "the path of a folder"),
    Bad(
        "lost checkpoint",
        {"resume_from_checkpoint": "{root}/x"},
        "resume_from_checkpoint",
        "no such folder",
        "or remove resume_from_checkpoint",
    ),
    Bad("no data", {"dataset": GONE}, "dataset", "no dataset is named", "names from dataset_info.json"),
    Bad("lost folder", {"dataset_dir": "{root}/x"}, "dataset_dir", "no such folder", "holds dataset_info.json"),
    Bad("no info", {"dataset_dir": "{root}/empty"}, "dataset_dir", "holds no dataset_info.json", "put a dataset"),
    Bad("bad info", {"dataset_dir": "{root}/no_json"}, "dataset_dir", "is not valid JSON", "repair"),
    Bad("listed info", {"dataset_dir": "{root}/listed"}, "dataset_dir", "is not a JSON object", "repair"),
    Bad("undefined near", {"dataset": "pairs,pair"}, "dataset", "defines no such data set", "write pairs."),
    Bad("undefined far", {"dataset": "qqq"}, "dataset", "defines no such data set", "define it in"),
    Bad("undefined eval", {"eval_dataset": "qqq"}, "eval_dataset", "defines no such data set", "define it in"),
    Bad("lost file", {"dataset": "lost"}, "dataset", "lost.json does not exist", "put the file there"),
    Bad("lost script", {"dataset": "lost_script"}, "dataset", "lost.py does not exist", "put the script there"),
    Bad("odd file", {"dataset": "image"}, "dataset", "does not read the type of file", "use one of the types arrow"),
    Bad("hollow folder", {"dataset": "hollow"}, "dataset", "is empty", "put the data files there"),
    Bad("no file", {"dataset": "nowhere"}, "dataset", "names no file and no hub", "add file_name"),
    Bad("broken entry", {"dataset": "broken"}, "dataset", "is not a JSON object", "repair"),
    Bad("not pairs", {"dataset": "instructions"}, "dataset", "no 'ranking': true", "choose a data set of pairs"),
    Bad("eval not pairs", {"eval_dataset": "answers"}, "eval_dataset", "no 'ranking': true", "a data set of pairs"),
    Bad("no columns", {"dataset": "columnless"}, "dataset", "which columns are chosen", "add 'columns'"),
    Bad("pairs in kto", {**KTO, "dataset": "pairs"}, "dataset", "this data set is of pairs", "a kto_tag column"),
    Bad("no tag", {**KTO, "dataset": "instructions"}, "dataset", "has no kto_tag", "add 'columns': {'kto_tag'"),
    Bad("val twice", {"val_size": 0.1, "eval_dataset": "pairs"}, "val_size", "eval_dataset already", "remove val"),
    Bad("no eval data", {"eval_strategy": "steps"}, "eval_strategy", "no evaluation data", "set val_size or"),
)

BAD = (*UNKNOWN, *MIXTURE, *TYPES, *RANGES, *COMBINATIONS, *FILES)


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_bad_recipe_is_refused_with_reason_and_fix(bad, root, host_keys):
    recipe = recipe_of(root, bad.change)
    problems = check_recipe(recipe, host_keys, bad.environ)
    assert [found.key for found in problems] == [bad.key], "\n".join(map(str, problems))
    why, _, fix = problems[0].message.partition(" Fix: ")
    assert bad.why in why
    assert bad.fix in fix
    assert problems[0].message.endswith(".")


def test_each_bad_input_is_a_case_of_its_own():
    assert len({bad.name for bad in BAD}) == len(BAD) >= 60


def test_base_recipe_is_good(root, host_keys):
    assert check_recipe(recipe_of(root, {}), host_keys, {}) == []


def test_all_problems_are_reported_at_once(root, host_keys):
    change = {
        "pref_beta": -1,
        "lora_rank": "8",
        "beta_mod": "head",
        "pref_loss": "hinge",
        "beta_mode": "head",
        "packing": True,
        "dataset": "lost",
        "model_name_or_path": GONE,
    }
    problems = check_recipe(recipe_of(root, change), host_keys, {"USE_V1": "1"})
    expected = {"pref_beta", "lora_rank", "beta_mod", "beta_mode", "packing", "dataset", "model_name_or_path"}
    assert {found.key for found in problems} == {*expected, "USE_V1"}
    lines = str(RecipeError(problems)).splitlines()
    assert lines[0] == "The recipe has 8 problems; nothing was loaded or trained."
    assert len(lines) == 9
    sentence = "pref_beta must be above 0. Fix: choose a value above 0 (usual: 0.1)."
    assert any(line.endswith(f". pref_beta: -1 -> {sentence}") for line in lines)
    assert [line.split(".")[0] for line in lines[1:]] == [str(number) for number in range(1, 9)]


def test_error_keeps_its_problems_between_processes():
    error = RecipeError([Problem("pref_beta", None, "why. Fix: what.")])
    copy = pickle.loads(pickle.dumps(error))
    assert copy.problems == error.problems
    assert "1. pref_beta: (not set) -> why. Fix: what." in str(copy)


def good_combinations() -> list[dict[str, Any]]:
    """Return every stage with every loss and beta mode that it admits, and each with the mode left out."""
    rows = []
    for stage in STAGES.values():
        if stage.rollouts:
            continue  # tests/recipes/test_rl_recipe.py
        losses = [row for row in LOSSES.values() if row.data == stage.data and stage.any_loss]
        for loss in losses or [LOSSES[stage.default_loss]]:
            for mode in (*BETAS, GONE):
                if mode is GONE or mode in loss.beta_modes:
                    data = "pairs" if stage.data == "pairs" else "answers"
                    rows.append({"stage": stage.name, "pref_loss": loss.name, "beta_mode": mode, "dataset": data})
    return rows


@pytest.mark.parametrize("change", good_combinations(), ids=lambda c: "-".join(map(str, list(c.values())[:3])))
def test_good_combination_passes_before_and_after_resolution(change, root, host_keys):
    recipe = recipe_of(root, {**change, "learning_rate": GONE})
    assert check_recipe(recipe, host_keys, {}) == []
    resolved = resolve_recipe(recipe)
    assert check_recipe(resolved, host_keys, {}) == []
    assert resolve_recipe(resolved) == resolved
    loss = LOSSES[change["pref_loss"]]
    assert resolved["beta_mode"] in loss.beta_modes
    for key, value in {**loss.recommended, **BETAS[resolved["beta_mode"]].recommended}.items():
        assert resolved[key] == pytest.approx(value * (10 if key == "learning_rate" else 1))
    assert ("beta_min" in resolved) == is_learned(resolved["beta_mode"])


GOOD = {
    "ints for floats": {"pref_beta": 1, "learning_rate": 1},
    "null is left out": {"pref_beta": None, "beta_mode": None, "ref_model": None, "resume_from_checkpoint": None},
    "weights switched off": {**SIMPO, "pref_ftx": 0, "pref_bco_weight": 0.0, "dpo_label_smoothing": 0},
    "false switches": {**FIXED, "beta_center": False, "freeze_policy": False, "packing": False},
    "lists": {"dataset": ["pairs", "more_pairs"], "lora_target": ["q_proj", "v_proj"], "report_to": ["none"]},
    "hub names": {"model_name_or_path": "Qwen/Qwen3-0.6B", "dataset": "hub_pairs"},
    "online data": {"dataset_dir": "ONLINE", "dataset": "someone/pairs"},
    "remote data": {"dataset_dir": "REMOTE:someone/pairs", "dataset": "pairs"},
    "data in memory": {"dataset_dir": {"pairs": {}}},
    "tokenized data": {"tokenized_path": "{root}/tokenized", "dataset": "qqq"},
    "deepspeed in place": {"deepspeed": {"zero_optimization": {"stage": 2}}, "bf16": True},
    "deepspeed fp16, fixed": {**FIXED, "deepspeed": "{root}/ds.json", "fp16": True},
    "evaluation": {"val_size": 0.1, "eval_strategy": "steps", "eval_steps": 10, "load_best_model_at_end": True},
    "number of examples": {"val_size": 50},
    "evaluation only": {
        "do_train": False,
        "dataset": GONE,
        "do_eval": True,
        "eval_dataset": "pairs",
        "beta_mode": "fixed",
    },
    "resume": {"resume_from_checkpoint": True},
    "one width": {"beta_head_widths": 128},
    "widths": {"beta_head_widths": "256, 64"},
    "head": {"beta_head_path": "{root}/head"},
    "nested adapter": {"adapter_name_or_path": "{root}/adapter", "adapter_folder": "inner"},
    "frozen with an adapter": {"freeze_policy": True, "adapter_name_or_path": "{root}/adapter"},
    "frozen with two adapters": {"freeze_policy": True, "adapter_name_or_path": "{root}/adapter,{root}/adapter"},
    "frozen with a reference": {"freeze_policy": True, "finetuning_type": "full", "ref_model": "{root}/other"},
    "frozen without reference": {"freeze_policy": True, **SIMPO, "beta_mode": "global"},
    "pissa without reference": {**SIMPO, "pissa_init": True},
    "label smoothing": {"dpo_label_smoothing": 0.2, "pref_ftx": 0.1, "pref_bco_weight": 0.5, "ld_alpha": 0.5},
    "kto weights": {**KTO, "kto_chosen_weight": 1.3, "pref_ftx": 0.1},
    "bounds": {"pref_beta": 0.1, "beta_min": 0.05, "beta_max": 0.2},
    "unsloth": {"use_unsloth": True, "use_kt": True},
}


@pytest.mark.parametrize("name", GOOD)
def test_good_recipe_passes(name, root, host_keys):
    recipe = recipe_of(root, GOOD[name])
    assert check_recipe(recipe, host_keys, {}) == []
    assert check_recipe(resolve_recipe(recipe), host_keys, {}) == []


def test_environment_decides(root, host_keys):
    assert check_recipe(recipe_of(root, {"zzqqxx": 1}), host_keys, {"ALLOW_EXTRA_ARGS": "1"}) == []
    alone = recipe_of(root, {"beta_mode": "beta_dpo", "per_device_train_batch_size": 1})
    assert check_recipe(alone, host_keys, {"WORLD_SIZE": "2"}) == []
    assert check_recipe(alone, host_keys, {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2"}) == []
    assert len(check_recipe(alone, host_keys, {"WORLD_SIZE": "many"})) == 1


def test_every_bounded_or_chosen_plugin_key_is_checked(root, host_keys):
    for key, fact in argument_fields().items():
        if "low" in fact.metadata or "choices" in fact.metadata:
            value = fact.metadata["low"] - 1 if "low" in fact.metadata else type(fact.metadata["choices"][0])(9)
            found = check_recipe(recipe_of(root, {key: value}), host_keys, {})
            assert key in [problem.key for problem in found], key


STOCK = (
    ({"stage": "dpo", "beta_mode": "head"}, "beta_mode", "belongs to the LEDPO stages", "set stage: ledpo,"),
    ({"stage": GONE, "freeze_policy": True}, "freeze_policy", "this is stage sft", "remove freeze_policy"),
    ({"stage": "dpo", "pref_loss": "discopop"}, "pref_loss", "would train another", "set stage: ledpo."),
    ({"stage": "kto", "pref_loss": "kto"}, "pref_loss", "would train another", "set stage: ledpo_kto."),
    ({"stage": "lepdo"}, "stage", "Unknown stage 'lepdo'", "set stage: ledpo."),
)


@pytest.mark.parametrize("change, key, why, fix", STOCK)
def test_plugin_keys_are_refused_under_a_stock_stage(change, key, why, fix, root, host_keys):
    problems = check_stock_recipe(recipe_of(root, change), host_keys)
    assert [found.key for found in problems] == [key]
    assert why in problems[0].message
    assert fix in problems[0].message


@pytest.mark.parametrize("stage", ["pt", "sft", "rm", "ppo", "dpo", "kto"])
def test_stock_recipe_is_left_alone(stage, root, host_keys):
    recipe = recipe_of(root, {"stage": stage, "pref_loss": "orpo", "freeze_policy": False, "beta_mode": None})
    assert not is_plugin_recipe(recipe)
    assert check_stock_recipe(recipe, host_keys) == []


@pytest.mark.parametrize(
    "raw, expected",
    [({"stage": name}, True) for name in (*STAGES, "LEDPO", "ledpo_dop", " Ledpo-ipo")]
    + [({"stage": name}, False) for name in ("dpo", "lepdo", None, 3, ["ledpo"])]
    + [({}, False), (None, False), (["--stage", "ledpo"], False)],
)
def test_is_plugin_recipe(raw, expected):
    assert is_plugin_recipe(raw) is expected


def test_resolution_of_the_shortest_recipe():
    raw = {"stage": "ledpo", "model_name_or_path": "m"}
    resolved = resolve_recipe(raw)
    assert raw == {"stage": "ledpo", "model_name_or_path": "m"}, "the recipe itself must stay as it is"
    assert added_values(raw, resolved) == {
        "pref_loss": "sigmoid",
        "beta_mode": "head",
        "pref_beta": LOSSES["sigmoid"].recommended["pref_beta"],
        "dpo_label_smoothing": 0.0,
        "learning_rate": 5e-6,  # ten times the recommended rate of full fine-tuning
        "beta_min": 0.01,
        "beta_max": 1.0,
        "beta_head_source": "reference",
        "beta_penalty": 0.05,
        "beta_lr_ratio": 5.0,
        "beta_head_widths": "128",
        "beta_head_activation": "exp_tanh",
    }


@pytest.mark.parametrize(
    "raw, expected",
    [
        ({"stage": "ledpo", "finetuning_type": "full"}, {"learning_rate": 5e-7}),
        ({"stage": "ledpo", "finetuning_type": "oft"}, {"learning_rate": 5e-6}),
        ({"stage": "ledpo", "learning_rate": 1e-3}, {"learning_rate": 1e-3}),
        ({"stage": "ledpo", "pref_beta": 0.3}, {"pref_beta": 0.3, "beta_min": 0.03, "beta_max": 3.0}),
        ({"stage": "ledpo", "pref_beta": None}, {"pref_beta": 0.1}),
        ({"stage": "ledpo", "beta_min": 0.05}, {"beta_min": 0.05, "beta_max": 1.0}),
        ({"stage": "ledpo", "pref_loss": "simpo"}, {"beta_head_source": "policy", "beta_mode": "head"}),
        ({"stage": "ledpo", "pref_loss": "hinge"}, {"beta_mode": "fixed", "beta_min": None, "beta_penalty": None}),
        ({"stage": "ledpo_simpo"}, {"pref_loss": "simpo", "beta_mode": "fixed", "pref_beta": 2.0, "simpo_gamma": 1.0}),
        ({"stage": "ledpo_kto"}, {"pref_loss": "kto", "kto_chosen_weight": 1.0, "beta_mode": "fixed"}),
        ({"stage": "ledpo", "pref_loss": "discopop"}, {"discopop_tau": 0.05, "cpo_alpha": None}),
        ({"stage": "ledpo", "beta_mode": "beta_dpo"}, {"beta_dpo_alpha": 0.6, "beta_head_source": None}),
        ({"stage": "ledpo", "beta_head_widths": 64}, {"beta_head_widths": "64"}),
    ],
    ids=str,
)
def test_resolution(raw, expected):
    resolved = resolve_recipe(raw)
    assert {key: resolved.get(key) for key in expected} == expected


@pytest.mark.parametrize("raw", [{"stage": "ledpo_dop"}, {"stage": "ledpo", "pref_loss": "kto"}])
def test_resolution_refuses_what_it_cannot_understand(raw):
    with pytest.raises(KeyError, match="No LEDPO stage and loss"):
        resolve_recipe(raw)


def test_arguments_to_recipe_reads_values_as_yaml_would():
    line = "--stage ledpo --pref_beta 0.1 --plot_loss --pref-ftx=1e-3 --packing false --ref_model null"
    line += " --pissa_iter -1 --report_to wandb tensorboard --save_strategy no --no_use_fast_tokenizer"
    assert arguments_to_recipe(line.split()) == {
        "stage": "ledpo",
        "pref_beta": 0.1,
        "plot_loss": True,
        "pref_ftx": 1e-3,
        "packing": False,
        "ref_model": None,
        "pissa_iter": -1,
        "report_to": ["wandb", "tensorboard"],
        "save_strategy": "no",
        "use_fast_tokenizer": False,
    }


def test_arguments_to_recipe_reads_values_as_their_keys_types(host_keys):
    line = "--output_dir 12 --bf16 yes --max_steps 5 --pref_beta 1 --label_names labels --dataset=true --x_y 3"
    assert arguments_to_recipe(line.split(), host_keys) == {
        "output_dir": "12",
        "bf16": True,
        "max_steps": 5,
        "pref_beta": 1,
        "label_names": ["labels"],
        "dataset": "true",
        "x_y": 3,
    }


ODD_VALUES = (
    *(None, True, False, 0, -1, 3, 2**70, 10**400, 0.5, -0.0, float("nan"), float("inf"), "", " ", "1e-3", "no"),
    *("~", "~/x", "/", "\0", "\ud800", "a" * 5000, "a,b,,", "../..", "head", "kto", "simpo", "ledpo_kto", "①"),
    *([], [1], ["a"], [None], [[]], {}, {"a": 1}, {1: 2}, (), b"x", object(), float, 1j, {"x"}),
)


def test_no_recipe_makes_the_check_raise(root, host_keys):
    rng = random.Random(20)
    ours = [*argument_fields(), *BASE, "pref_loss", "pref_beta", "ref_model", "adapter_name_or_path", "val_size"]
    everything = [*host_keys, "", 3, None, ("a",), *ours * 8]
    for _ in range(200):
        change = {rng.choice(everything): rng.choice(ODD_VALUES) for _ in range(rng.randint(1, 12))}
        recipe = recipe_of(root, change)
        environ = {name: rng.choice(("1", "", "x")) for name in ("WORLD_SIZE", "USE_MCA", "FORCE_TORCHRUN")}
        problems = check_recipe(recipe, host_keys, environ)
        assert all(isinstance(found, Problem) and " Fix: " in found.message for found in problems)
        assert str(RecipeError(problems)).count("\n") >= len(problems)
        assert all(isinstance(found, Problem) for found in check_stock_recipe(recipe, host_keys))
        if not problems:
            resolve_recipe(recipe)


@pytest.mark.parametrize("raw", [None, [], "stage: ledpo", 3])
def test_what_is_no_mapping_is_refused(raw, host_keys):
    assert [found.key for found in check_recipe(raw, host_keys, {})] == ["recipe"]
    assert check_stock_recipe(raw, host_keys) == []


def test_every_check_says_what_it_is_for():
    assert all(check.__doc__ and check.__doc__.startswith("Yield a problem") for check in CHECKS)
