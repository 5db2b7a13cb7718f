"""Whether the model, adapter, data and output that a recipe names are there, before anything is loaded."""

import json
import os
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ledpo_plugin.common.problem import Problem, problem
from ledpo_plugin.stages import Stage

from .reading import Reading, split_names
from .rows import check_rows, kind_of, look_at_rows

DATA_CONFIG = "dataset_info.json"
DATA_KEYS = ("dataset", "eval_dataset", "sft_dataset", "prompt_dataset")
DATA_TYPES = ("arrow", "csv", "json", "jsonl", "parquet", "txt")
HEAD_FILES = ("beta_head.safetensors", "beta_head.json")
_HUB_KEYS = ("hf_hub_url", "ms_hub_url", "om_hub_url")


def check_models(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem where no model is named or a local one is not there."""
    if recipe.raw.get("model_name_or_path") in (None, ""):
        fix = "set model_name_or_path to a model's folder or its hub name"
        yield problem("model_name_or_path", None, "no model is named", fix)
    for key in ("model_name_or_path", "ref_model"):
        value = recipe.text(key)
        if value:
            yield from _check_folder(key, value, ("config.json",), "a model")


def check_reference_model(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem where a local `ref_model` has other tokens than the model, or a row too few for them."""
    model, other = recipe.text("model_name_or_path"), recipe.text("ref_model")
    ours, theirs = (_tokens(folder) if folder else None for folder in (model, other))
    if not ours:
        return
    fix = "name a model with the same tokenizer, such as one that was trained from the same base"
    # A template may add tokens that one of the two has already: only what is in both and differs is sure to stay so.
    places = {number: token for token, number in ours.items()}
    odd = sorted(
        token
        for token, number in (theirs or {}).items()
        if ours.get(token, number) != number or places.get(number, token) != token
    )
    if odd:
        why = f"it has another tokenizer than {model}: {len(odd)} tokens differ, such as {odd[0]!r:.60}"
        yield problem("ref_model", other, why, fix)
        return
    rows = _read_json(os.path.join(other, "config.json")).get("vocab_size") if other else None
    if isinstance(rows, int) and rows <= max(ours.values()):
        why = f"its vocabulary of {rows} is too small for the tokens of {model}, which go up to {max(ours.values())}"
        yield problem("ref_model", other, why, fix)


def _tokens(folder: str) -> dict[str, int]:
    """Return the tokens that a folder's tokenizer.json holds, each with its id; none where there is no such file."""
    found = _read_json(os.path.join(folder, "tokenizer.json"))
    model, added = found.get("model"), found.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    tokens = dict(vocabulary) if isinstance(vocabulary, dict) else {}
    tokens |= {item.get("content"): item.get("id") for item in added or () if isinstance(item, dict)}
    return {token: number for token, number in tokens.items() if isinstance(token, str) and isinstance(number, int)}


def _read_json(path: str) -> Mapping[str, Any]:
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def check_adapters(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem for every local adapter that is not there."""
    inside = recipe.text("adapter_folder") or ""
    for key, folder in (("adapter_name_or_path", inside), ("ref_model_adapters", "")):
        for name in split_names(recipe.text(key)):
            yield from _check_folder(key, name, (os.path.join(folder, "adapter_config.json"),), "an adapter")


def check_beta_head(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem where the folder of a trained head holds none."""
    path = recipe.text("beta_head_path")
    if path is not None:
        yield from _check_folder("beta_head_path", path, HEAD_FILES, "a trained beta head", always_local=True)


def _check_folder(
    key: str, path: str, files: tuple[str, ...], what: str, always_local: bool = False
) -> Iterator[Problem]:
    if not (always_local or looks_local(path)):
        return
    if path.startswith("~"):
        yield problem(key, path, "LLaMA-Factory does not expand ~", "write the whole path")
    elif not os.path.isdir(path):
        yield problem(key, path, "there is no such folder", f"write the path of the folder of {what}")
    else:
        missing = [name for name in files if not os.path.isfile(os.path.join(path, name))]
        if missing:
            why = f"the folder holds no {' and no '.join(missing)}"
            yield problem(key, path, why, f"write the path of the folder of {what}")


def looks_local(name: str) -> bool:
    """Whether the name is meant as a path, not as a name on a model hub."""
    if name.startswith(("./", "../", "~")) or name in (".", "..") or os.path.isabs(name) or os.path.isdir(name):
        return True
    first, separator, _ = name.replace("\\", "/").partition("/")
    return bool(separator) and os.path.isdir(first)


def check_paths(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem for an output folder that is a file, and for a missing DeepSpeed file or checkpoint."""
    output = recipe.text("output_dir")
    if output and os.path.isfile(output):
        yield problem("output_dir", output, "this is a file", "write the path of a folder, new or empty")
    config = recipe.text("deepspeed")
    if config and not config.lstrip().startswith("{") and not os.path.isfile(config):
        yield problem("deepspeed", config, "there is no such file", "write the path of a DeepSpeed JSON file")
    checkpoint = recipe.text("resume_from_checkpoint")
    if checkpoint is not None and not os.path.isdir(checkpoint):
        fix = "write the path of a checkpoint folder, or remove resume_from_checkpoint"
        yield problem("resume_from_checkpoint", checkpoint, "there is no such folder", fix)


def check_data_choice(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem where the data for training or evaluation is missing or given twice."""
    has_data, has_eval = recipe.is_set("dataset"), recipe.is_set("eval_dataset")
    share = recipe.number("val_size") or 0
    if recipe.flag("do_train") and not has_data:
        fix = f"set dataset to one or more names from {DATA_CONFIG}"
        yield problem("dataset", recipe.raw.get("dataset"), "do_train is true and no dataset is named", fix)
    if share > 0 and (has_eval or not has_data):
        why = "there is an eval_dataset already" if has_eval else "there is no dataset to take a share of"
        yield problem("val_size", share, why, "remove val_size" + ("" if has_eval else ", or set dataset"))
    if not has_eval and share <= 0:
        yield from _check_evaluation(recipe)


def _check_evaluation(recipe: Reading) -> Iterator[Problem]:
    for key in ("eval_strategy", "do_eval"):
        value = recipe.raw.get(key)
        if value is True or value in ("steps", "epoch"):
            yield problem(key, value, "there is no evaluation data", "set val_size or eval_dataset")
            return


def check_data(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem for every data set that is undefined, has no file or is of the wrong kind."""
    folder = recipe.text("dataset_dir")
    wanted = {key: recipe.names(key) for key in DATA_KEYS if recipe.is_set(key)}
    if folder is None or folder == "ONLINE" or folder.startswith("REMOTE:") or not any(wanted.values()):
        return
    if _is_filled_folder(recipe.text("tokenized_path")):
        return  # the host then loads the tokenised data and reads nothing else
    known, found = _read_data_config(folder)
    if found is not None:
        yield found
        return
    for key, names in wanted.items():
        for name in dict.fromkeys(names):
            yield from _check_dataset(recipe, key, name, known, folder)


def _is_filled_folder(path: str | None) -> bool:
    try:
        return path is not None and len(os.listdir(path)) > 0
    except (OSError, ValueError):
        return False


def _read_data_config(folder: str) -> tuple[Mapping[str, Any], Problem | None]:
    path = os.path.join(folder, DATA_CONFIG)
    if not os.path.isdir(folder):
        fix = f"set dataset_dir to the folder that holds {DATA_CONFIG}"
        return {}, problem("dataset_dir", folder, "there is no such folder", fix)
    if not os.path.isfile(path):
        fix = f"put a {DATA_CONFIG} there, or set dataset_dir to the folder that holds it"
        return {}, problem("dataset_dir", folder, f"the folder holds no {DATA_CONFIG}", fix)
    try:
        known = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return {}, problem("dataset_dir", folder, f"{DATA_CONFIG} is not valid JSON ({error})", f"repair {path}")
    if not isinstance(known, dict):
        why = f"{DATA_CONFIG} is not a JSON object of data sets by name"
        return {}, problem("dataset_dir", folder, why, f"repair {path}")
    return known, None


def _check_dataset(recipe: Reading, key: str, name: str, known: Mapping[str, Any], folder: str) -> Iterator[Problem]:
    if name not in known:
        near = get_close_matches(name, list(known), n=1, cutoff=0.5)
        fix = f"write {near[0]}" if near else f"define it in {os.path.join(folder, DATA_CONFIG)}"
        yield problem(key, name, f"{DATA_CONFIG} defines no such data set", fix)
        return
    entry = known[name]
    if not isinstance(entry, dict):
        why = f"its entry in {DATA_CONFIG} is not a JSON object"
        yield problem(key, name, why, f"repair {os.path.join(folder, DATA_CONFIG)}")
        return
    found = list(_check_data_file(key, name, entry, folder))
    if key == "sft_dataset":
        found += _check_instructions(key, name, entry)
    elif recipe.stage is not None and recipe.stage.data != "prompts" and key != "prompt_dataset":
        found += _check_data_kind(key, name, entry, recipe.stage)
    yield from found or check_rows(recipe, key, name, entry, folder)


def data_notes(recipe: Reading) -> list[str]:
    """Return a sentence for every data set of a good recipe of which training will drop rows."""
    folder = recipe.text("dataset_dir")
    if folder is None or not os.path.isdir(folder) or _is_filled_folder(recipe.text("tokenized_path")):
        return []
    known, _ = _read_data_config(folder)
    named = {(name, kind_of(recipe, key)): None for key in DATA_KEYS for name in recipe.names(key)}
    looks = [look_at_rows(name, known[name], folder, kind) for name, kind in named if isinstance(known.get(name), dict)]
    return [look.note for look in looks if look.note]


def _check_data_file(key: str, name: str, entry: Mapping[str, Any], folder: str) -> Iterator[Problem]:
    if any(hub in entry for hub in _HUB_KEYS):
        return
    if "script_url" in entry:
        path = os.path.join(folder, str(entry["script_url"]))
        if not os.path.exists(path):
            yield problem(key, name, f"its script {path} does not exist", "put the script there")
        return
    if "cloud_file_name" in entry:
        return
    if not isinstance(entry.get("file_name"), str):
        why = f"its entry in {DATA_CONFIG} names no file and no hub"
        yield problem(key, name, why, "add file_name to the entry")
        return
    yield from _check_data_path(key, name, os.path.join(folder, entry["file_name"]))


def _check_data_path(key: str, name: str, path: str) -> Iterator[Problem]:
    try:
        files = [path] if os.path.isfile(path) else os.listdir(path)
    except (OSError, ValueError):
        yield problem(key, name, f"its data file {path} does not exist", "put the file there, or correct file_name")
        return
    if not files:
        yield problem(key, name, f"its data folder {path} is empty", "put the data files there")
    odd = [file for file in files if os.path.splitext(file)[1][1:] not in DATA_TYPES]
    if odd:
        why = f"LLaMA-Factory does not read the type of file {odd[0]}"
        yield problem(key, name, why, f"use one of the types {', '.join(DATA_TYPES)}")


def _check_instructions(key: str, name: str, entry: Mapping[str, Any]) -> Iterator[Problem]:
    columns = entry.get("columns")
    rated = isinstance(columns, dict) and columns.get("kto_tag")
    if entry.get("ranking") is True or rated:
        kind = "of single rated answers" if rated else "of pairs"
        why = f"instructions are trained on as they are, and this data set is {kind}"
        yield problem(key, name, why, "choose a data set as for stage sft")


def _lists_both(columns: Mapping[str, Any]) -> bool:
    """Whether the entry is of older alpaca data, whose output is a list of the better and the worse answer."""
    return bool(columns.get("response")) and not (columns.get("chosen") or columns.get("rejected"))


def _check_data_kind(key: str, name: str, entry: Mapping[str, Any], stage: Stage) -> Iterator[Problem]:
    columns = entry.get("columns")
    columns = columns if isinstance(columns, dict) else {}
    ranking = entry.get("ranking") is True
    if stage.data == "pairs":
        if not ranking:
            why = f"stage {stage.name} trains on pairs, and this data set has no 'ranking': true"
            fix = "choose a data set of pairs, or add 'ranking': true and its columns to the entry"
            yield problem(key, name, why, fix)
        elif not ((columns.get("chosen") and columns.get("rejected")) or _lists_both(columns)):
            why = "its entry does not say which columns are chosen and rejected"
            fix = (
                "add 'columns': {'chosen': ..., 'rejected': ...} to the entry, or {'response': ...} for a list of both"
            )
            yield problem(key, name, why, fix)
    elif ranking:
        why = f"stage {stage.name} trains on single rated answers, and this data set is of pairs"
        yield problem(key, name, why, "choose a data set with a kto_tag column, or set stage: ledpo")
    elif not columns.get("kto_tag"):
        why = f"stage {stage.name} needs to know which answers are good, and this data set has no kto_tag"
        yield problem(key, name, why, "add 'columns': {'kto_tag': ...} to its entry")
