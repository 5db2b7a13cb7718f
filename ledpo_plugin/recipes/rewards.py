"""Checks: the rewards of the stages that train on rollouts. Nothing is loaded, but a function's module is imported."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ledpo_plugin.common.problem import Problem, problem, unknown
from ledpo_plugin.facts import DEFAULT_REWARD, REWARDS, either
from ledpo_plugin.modeling.adapters import CONFIG, WEIGHTS, below
from ledpo_plugin.rewards._function import FunctionProblem, load_function
from ledpo_plugin.rewards._reward_model import HEAD, without_head
from ledpo_plugin.rewards._runs import RunProblem, read_run, same_model

from .files import looks_local
from .reading import ADAPTER_TYPES, Reading, split_names

HOW = (
    f"set reward_model to {either(dict.fromkeys(reward.place for reward in REWARDS.values()))}, and "
    f"reward_model_type to {either(REWARDS)}"
)


def kinds_of(raw: Mapping[str, Any]) -> list[str]:
    """Return the kind of each reward that a recipe names, as far as the recipe can be understood."""
    count = len(split_names(raw.get("reward_model")))
    kinds = split_names(raw.get("reward_model_type")) or [DEFAULT_REWARD]
    return kinds * count if len(kinds) == 1 else kinds


def idle_in(raw: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return the keys of rewards that have no effect in a recipe, each with why and what to do."""
    kinds = kinds_of(raw)
    others = [reward for name, reward in REWARDS.items() if name not in kinds]
    return {key: (reward.without, "remove it") for reward in others for key in reward.keys}


def _judged_elsewhere(recipe: Reading) -> bool:
    """Whether the recipe is of another stage, or the check of types says already what is wrong."""
    values = (recipe.raw.get("reward_model"), recipe.raw.get("reward_model_type"))
    odd = any(value is not None and not isinstance(value, str) for value in values)
    return odd or recipe.stage is None or not recipe.stage.rollouts


def check_rewards(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem for everything that is wrong with the choice of rewards; it looks at no file."""
    if _judged_elsewhere(recipe):
        return
    raw, wheres = recipe.raw, recipe.names("reward_model")
    if not recipe.is_set("reward_model") or wheres == [""]:
        yield problem("reward_model", None, f"stage {recipe.stage.name} maximises rewards, and none is named", HOW)
        return
    if "" in wheres:
        why = "there is nothing between two commas"
        yield problem("reward_model", raw["reward_model"], why, "name a reward there, or remove the comma")
    kinds, count = split_names(raw.get("reward_model_type")), len(wheres)
    for kind in dict.fromkeys(kinds):
        if kind not in REWARDS:
            yield unknown("reward_model_type", kind, "kind of reward", REWARDS)
    if len(kinds) > 1 and len(kinds) != count:
        why = f"there are {len(kinds)} kinds for {_rewards(count)}"
        fix = "write one kind for all, or as many as reward_model has names"
        yield problem("reward_model_type", raw["reward_model_type"], why, fix)
        return
    yield from _check_weights(recipe, count)
    for kind, where in zip(kinds_of(raw), wheres, strict=True):
        if where and kind in _CHOICES:
            yield from _CHOICES[kind](recipe, where)
    yield from _check_effect(recipe)


def _rewards(count: int) -> str:
    return f"{count} reward{'' if count == 1 else 's'}"


def _check_weights(recipe: Reading, count: int) -> Iterator[Problem]:
    value = recipe.raw.get("reward_weights")
    if value is None:
        return
    texts = str(value).split(",")
    try:
        weights = [float(text) for text in texts]
    except ValueError:
        why = "a weight is not a number"
        yield problem("reward_weights", value, why, "write numbers, separated by commas, such as '1,0.5'")
        return
    if any(abs(weight) > 1e6 or weight != weight for weight in weights):
        yield problem("reward_weights", value, "a weight is no ordinary number", "write numbers such as '1,0.5'")
    elif len(weights) != count:
        why = f"there are {len(weights)} weights for {_rewards(count)}"
        yield problem("reward_weights", value, why, "write one weight per name in reward_model")
    elif not any(weights):
        why = "every weight is 0, so that all answers are worth the same"
        yield problem("reward_weights", value, why, "give one reward a weight other than 0")


def _check_effect(recipe: Reading) -> Iterator[Problem]:
    raw = recipe.raw
    for key, (why, fix) in idle_in(raw).items():
        if recipe.is_set(key):
            yield problem(key, raw[key], f"{key} has no effect: {why}", fix)
    if recipe.is_set("reward_model_adapters") and kinds_of(raw).count("full") > 1:
        why = "there are several reward models with weights of their own, and it is not said which it belongs to"
        fix = "merge the adapters into their model first (llamafactory-cli export), or keep one reward of type full"
        yield problem("reward_model_adapters", raw["reward_model_adapters"], why, fix)


def _choose_lora(recipe: Reading, where: str) -> Iterator[Problem]:
    kind = recipe.text("finetuning_type")
    if kind not in ADAPTER_TYPES:
        why = f"a reward of type lora is an adapter beside the policy's own, and finetuning_type {kind} has none"
        fix = "set finetuning_type: lora, or reward_model_type: full with reward_model set to the base model and "
        yield problem("reward_model_type", "lora", why, fix + f"reward_model_adapters: {where}")
    for key in ("use_unsloth", "use_kt"):
        if recipe.flag(key):
            why = f"{key} allows no adapter beside the policy's own, which a reward of type lora is"
            yield problem(key, True, why, f"remove {key}, or choose another reward_model_type")


def _choose_api(recipe: Reading, where: str) -> Iterator[Problem]:
    example = "write the whole URL, such as http://127.0.0.1:8000/v1/score/evaluation"
    try:
        url = urlsplit(where)
        host, secret = url.hostname, url.username or url.password
        _ = url.port
    except ValueError as error:
        yield problem("reward_model", where, f"this is no URL ({error})", example)
        return
    if url.scheme not in ("http", "https") or not host:
        why = f"a reward of type api is a server, and {where} is no URL that starts with http:// or https://"
        yield problem("reward_model", where, why, example)
    elif secret:
        shown = where.replace(url.netloc, url.netloc.rpartition("@")[2])
        why = "the URL holds a name or password, which would be written into the run's record"
        yield problem("reward_model", shown, why, "set the environment variable LEDPO_REWARD_API_KEY instead")


_CHOICES = {"lora": _choose_lora, "api": _choose_api}


# ---- what is on disk


def check_reward_files(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem for every reward whose folder, run or function is not what its kind needs."""
    if _judged_elsewhere(recipe) or not recipe.is_set("reward_model"):
        return
    wheres, kinds = recipe.names("reward_model"), kinds_of(recipe.raw)
    for kind, where in zip(kinds, wheres, strict=False):
        if where and kind in _FILES:
            yield from _FILES[kind](recipe, where)


def _local_folder(where: str) -> Problem | bool:
    """Return whether a name is a folder that is there, or the problem; False: it is a name on the hub."""
    if not looks_local(where):
        return False
    if where.startswith("~"):
        return problem("reward_model", where, "LLaMA-Factory does not expand ~", "write the whole path")
    if not os.path.isdir(where):
        return problem("reward_model", where, "there is no such folder", "write the path of a reward model's folder")
    return True


def _lora_files(recipe: Reading, where: str) -> Iterator[Problem]:
    found = _local_folder(where)
    if found is not True:
        yield from (found,) if found else ()
        return
    folder = Path(where)
    config = _json(folder / CONFIG)
    if config is None:
        whole = (folder / "config.json").is_file()
        why = f"the folder holds no readable {CONFIG}" + (": it is a whole model" if whole else "")
        fix = "set reward_model_type: full" if whole else "name the folder of an adapter trained with stage: rm"
        yield problem("reward_model", where, why, fix)
        return
    if not (folder / HEAD).is_file():
        why, fix = without_head(folder)
        yield problem("reward_model", where, f"the folder {why}", fix)
    if not (folder / WEIGHTS).is_file():
        why = f"the folder holds no {WEIGHTS}: adapters are read from safetensors only"
        yield problem("reward_model", where, why, "save the adapter as safetensors")
    kind, own = str(config.get("peft_type", "")).lower(), recipe.text("finetuning_type")
    if own in ADAPTER_TYPES and kind and kind != own:
        why = f"it is an adapter of kind {kind}, which cannot stand beside one of kind {own}"
        fix = f"set finetuning_type: {kind}" if kind in ADAPTER_TYPES else "train a reward model with finetuning_type: "
        yield problem("reward_model", where, why, fix if kind in ADAPTER_TYPES else fix + own)
    yield from _check_base(recipe, where, config.get("base_model_name_or_path"))


def _check_base(recipe: Reading, where: str, base: Any) -> Iterator[Problem]:
    """Yield a problem where an adapter would stand on other weights than it was trained on."""
    model = recipe.text("model_name_or_path")
    full = f"set reward_model_type: full, reward_model: {base} and reward_model_adapters: {where}"
    if isinstance(base, str) and base and model and not same_model(base, model):
        why = f"it was trained on {base}, and the policy's base is {model}"
        fix = f"{full}; or, if the two are the same model, write {model} into {CONFIG} as base_model_name_or_path"
        yield problem("reward_model", where, why, fix)
    merged = below(recipe.names("adapter_name_or_path"), recipe.flag("create_new_adapter"))
    if merged and recipe.text("finetuning_type") in ADAPTER_TYPES:
        why = f"the policy's base has {', '.join(merged)} merged into it, which the reward model's base had not"
        if recipe.flag("create_new_adapter"):
            full += ", or remove create_new_adapter to go on with the last adapter"
        yield problem("reward_model", where, why, full)


def _full_files(recipe: Reading, where: str) -> Iterator[Problem]:
    found = _local_folder(where)
    if found is not True:
        yield from (found,) if found else ()
        return
    folder, adapters = Path(where), recipe.names("reward_model_adapters")
    if not (folder / "config.json").is_file():
        adapter = (folder / CONFIG).is_file()
        why = "the folder holds no config.json" + (": it is an adapter" if adapter else "")
        fix = f"set reward_model_type: lora, or reward_model to its base model and reward_model_adapters: {where}"
        yield problem("reward_model", where, why, fix if adapter else "name the folder of a reward model")
        return
    head = Path(adapters[-1]) if adapters else folder
    key = "reward_model_adapters" if adapters else "reward_model"
    if adapters and looks_local(str(head)) and not (head / CONFIG).is_file():
        yield problem(key, str(head), f"there is no folder with {CONFIG}", "write the path of the folder of an adapter")
    elif looks_local(str(head)) and not (head / HEAD).is_file():
        why, fix = without_head(head)
        yield problem(key, str(head), f"the folder {why}", fix)
    yield from _check_tokens(recipe, where, where)


def _check_tokens(recipe: Reading, where: str, model: str) -> Iterator[Problem]:
    """Yield a problem where two local models have different tokens, as far as their files tell."""
    ours = _tokens(recipe.text("model_name_or_path"))
    theirs = _tokens(model)
    if ours is None or theirs is None:
        return
    odd = [token for token, number in ours.items() if theirs.get(token, number) != number]
    # A template may have added tokens to either of them since; they are compared when both are loaded.
    if odd or abs(len(ours) - len(theirs)) > 64:
        first = f", such as {odd[0]!r:.40} ({ours[odd[0]]} and {theirs[odd[0]]})" if odd else ""
        why = f"its tokenizer differs from the policy's: {len(ours)} and {len(theirs)} tokens{first}"
        fix = "serve it with llamafactory-cli api (stage: rm) and set reward_model_type: api, or train one on the "
        yield problem("reward_model", where, why, fix + "policy's base model")


def _tokens(model: str | None) -> dict[str, int] | None:
    """Return the tokens of a local fast tokenizer with their numbers; None where they cannot be read."""
    file = _json(Path(model or "") / "tokenizer.json") if model else None
    if file is None:
        return None
    try:
        vocabulary = file["model"]["vocab"]
        if isinstance(vocabulary, list):  # Unigram: [token, score] in order
            vocabulary = {item[0]: number for number, item in enumerate(vocabulary)}
        return {**vocabulary, **{item["content"]: item["id"] for item in file.get("added_tokens") or []}}
    except (KeyError, TypeError, IndexError):
        return None


def _implicit_files(recipe: Reading, where: str) -> Iterator[Problem]:
    if where.startswith("~"):
        yield problem("reward_model", where, "LLaMA-Factory does not expand ~", "write the whole path")
        return
    try:
        run = read_run(where)
    except RunProblem as found:
        yield problem("reward_model", where, found.why, found.fix)
        return
    for model in dict.fromkeys(name for name in (run.base, run.ref_model) if name):
        if looks_local(model) and not os.path.isdir(model):
            why = f"its model {model} is not there any more"
            yield problem("reward_model", where, why, "put it back, or start where that path leads to it")
    base = recipe.text("model_name_or_path")
    if base and not same_model(run.base, base):
        yield from _check_tokens(recipe, where, run.base)


def _function_files(recipe: Reading, where: str) -> Iterator[Problem]:
    try:
        load_function(where)
    except FunctionProblem as found:
        yield problem("reward_model", where, found.why, found.fix)


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


_FILES = {"lora": _lora_files, "full": _full_files, "implicit": _implicit_files, "function": _function_files}
