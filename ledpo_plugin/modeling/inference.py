"""A trained run at inference: its model by the host's loaders, and its beta(x) of prompts."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import set_seed

from ledpo_plugin.betas import BETAS, BetaFeatures
from ledpo_plugin.common.run_record import read_record
from ledpo_plugin.facts import either, has_head, known_before_answers
from ledpo_plugin.host.contract import host_api
from ledpo_plugin.host.data import templates_kept
from ledpo_plugin.hparams import FROZEN

from .adapters import below, names_of
from .forward import forward_rows
from .head_file import HeadFileError, build_strategy, load_config, load_head, progress_of
from .padding import unanswered_prompts

# Recipe keys that decide which tokens a prompt becomes, and where a model is found.
PROMPT_ARGUMENTS = ("default_system", "tool_format", "enable_thinking", "preserve_thinking")
MODEL_ARGUMENTS = ("cache_dir", "model_revision", "adapter_folder", "use_fast_tokenizer", "mixture_of_depths")
TOKEN_ARGUMENTS = (
    *("resize_vocab", "split_special_tokens", "add_tokens", "add_special_tokens"),
    *("new_special_tokens_config", "init_special_tokens"),
)
# What PEFT saves of embeddings that rows were added to: as they were when training started.
STARTED_FROM = ".original_module.weight"
HOST_SEED = 42  # of a recipe that names none


def inference_arguments(recipe: Mapping[str, Any], trust_remote_code: bool, **own: Any) -> dict[str, Any]:
    """Return the host's arguments for inference with a run's model.

    Args:
        recipe: of the run.
        trust_remote_code: never from the recipe: a run's folder may be somebody else's.
        own: model_name_or_path, template, and what else differs from the recipe.
    """
    keys = (*PROMPT_ARGUMENTS, *MODEL_ARGUMENTS, *TOKEN_ARGUMENTS)
    kept = {key: recipe[key] for key in keys if recipe.get(key) is not None}
    dtype = "float32" if not torch.cuda.is_available() else "auto"
    return kept | own | {"trust_remote_code": trust_remote_code, "infer_dtype": dtype}


def load_for_inference(arguments: dict[str, Any]):
    """Return model (in evaluation mode), tokenizer and template by the host's loaders."""
    host = host_api()
    model_args, data_args, finetuning_args, _ = host.get_infer_args(arguments)
    tokenizer = host.load_tokenizer(model_args)["tokenizer"]
    with templates_kept():
        template = copy.copy(host.get_template(tokenizer, data_args))
    return host.load_model(tokenizer, model_args, finetuning_args).eval(), tokenizer, template


def load_start(arguments: dict[str, Any], recipe: Mapping[str, Any], run: Path):
    """Return what `load_for_inference` does, with the rows of new tokens that the run started from.

    They were drawn while training loaded the model. A run saves them beside its adapter; without one they are drawn
    again by the same seed.
    """
    if any(recipe.get(key) for key in TOKEN_ARGUMENTS):
        set_seed(HOST_SEED if recipe.get("seed") is None else recipe["seed"])
    loaded = load_for_inference(arguments)
    model, weights = loaded[0], run / "adapter_model.safetensors"
    if weights.is_file():
        with safe_open(weights, "pt") as saved, torch.no_grad():
            for name in saved.keys():  # noqa: SIM118  (it is no mapping)
                if name.endswith(STARTED_FROM):
                    own = model.get_submodule(name.removesuffix(STARTED_FROM).removeprefix("base_model.model."))
                    own.weight.copy_(saved.get_tensor(name))
    return loaded


def _load_model(run: Path, record: dict[str, Any], source: str, trust_remote_code: bool):
    """Load the model whose hidden state the head reads, with its tokenizer and template, by the host's loaders."""
    own: dict[str, Any] = {"model_name_or_path": record["model_name_or_path"], "template": record["template"]}
    recipe = record["recipe"]
    lora = (run / "adapter_config.json").is_file()
    adapters = below(recipe.get("adapter_name_or_path"), bool(recipe.get("create_new_adapter")))
    if source == "policy":
        if lora:
            adapters = [*adapters, str(run)]
        else:
            own["model_name_or_path"], adapters = str(run), []
    elif record.get("ref_model"):
        own["model_name_or_path"], adapters = record["ref_model"], names_of(recipe.get("ref_model_adapters"))
    elif recipe.get("reference_adapter") == FROZEN:
        adapters = names_of(recipe.get("adapter_name_or_path"))
    if adapters:
        own["adapter_name_or_path"] = ",".join(adapters)
    arguments = inference_arguments(recipe, trust_remote_code, **own)
    return load_for_inference(arguments) if source == "policy" else load_start(arguments, recipe, run)


@torch.no_grad()
def beta_of_prompts(
    run_dir: str | Path, prompts: Sequence[str], batch_size: int = 8, trust_remote_code: bool = False
) -> list[dict[str, Any]]:
    """Return one `{"prompt", "beta", "prompt_tokens"}` per prompt, by the head in `run_dir`.

    Raises:
        FileNotFoundError, HeadFileError: `run_dir` is not a run, or its head cannot be read or does not fit.
        ValueError: the run's beta is not a function of the prompt.
    """
    run = Path(run_dir)
    config = load_config(run)
    mode, beta0 = config["beta_mode"], config["beta0"]
    if not BETAS[mode].before_answers:
        raise ValueError(
            f"beta_mode {mode} decides beta from the answers of a batch, not from the prompt alone: there is no "
            f"beta(x) to print. Runs with beta_mode {either(known_before_answers())} have one."
        )
    strategy = build_strategy(config).eval()
    load_head(run, strategy, config)
    if not has_head(mode):
        features = BetaFeatures(size=1, training=False, progress=progress_of(run))
        beta = strategy(features).beta.item() if prompts else beta0
        return [{"prompt": prompt, "beta": beta} for prompt in prompts]
    record = read_record(run)
    source = config["arguments"]["beta_head_source"]
    model, tokenizer, template = _load_model(run, record, source, trust_remote_code)
    if model.config.get_text_config().hidden_size != config["hidden_size"]:
        raise HeadFileError(f"The head in {run} reads {config['hidden_size']} numbers, the model gives another width.")
    strategy.to(model.device)
    rows = []
    for start in range(0, len(prompts), batch_size):
        part = list(prompts[start : start + batch_size])
        ids = [encode_prompt(prompt, tokenizer, template) for prompt in part]
        output = forward_rows(model, pad_prompts(ids, tokenizer, model.device), wants=strategy.needs)
        features = BetaFeatures(
            size=len(part),
            hidden=output.hidden,
            prompt_nll=output.prompt_nll,
            training=False,
            progress=progress_of(run),
        )
        for prompt, tokens, beta in zip(part, ids, strategy(features).beta.tolist(), strict=True):
            rows.append({"prompt": prompt, "beta": beta, "prompt_tokens": len(tokens)})
    return rows


def encode_prompt(prompt: str, tokenizer, template) -> list[int]:
    """Return the tokens of a prompt of one turn, as training writes them before the response."""
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": ""}]
    return template.encode_oneturn(tokenizer, messages)[0]


def pad_prompts(ids: list[list[int]], tokenizer, device) -> dict[str, torch.Tensor]:
    """Return prompts as `unanswered_prompts` does, padded with the tokenizer's own token, on a device."""
    batch = unanswered_prompts(ids, tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0)
    return {name: values.to(device) for name, values in batch.items()}
