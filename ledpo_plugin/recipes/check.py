"""Recipes: everything that is wrong with one, said at once before anything loads, and what it leaves to us.

Nothing here imports LLaMA-Factory. What must be known of it, the recipe keys with their types, is passed in.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin

from ledpo_plugin.common.problem import Problem, RecipeError, problem, unknown
from ledpo_plugin.facts import LOSSES, has_head, is_learned
from ledpo_plugin.host.supported import is_plugin_recipe
from ledpo_plugin.hparams import argument_fields
from ledpo_plugin.stages import STAGES

from . import combinations, files, host_keys, mixture, packages, ranges, reference, rewards, rollouts, streaming, types
from .reading import Reading, loss_of, mode_of, read, recommended, rounded, stage_of, switched_on

__all__ = [
    "CHECKS",
    "Problem",
    "RecipeError",
    "added_values",
    "arguments_to_recipe",
    "check_recipe",
    "check_stock_recipe",
    "is_plugin_recipe",
    "resolve_recipe",
]

SPREAD = 10  # how far beta may be learned away from pref_beta, as a factor, where the recipe gives no bounds


def check_recipe(
    raw: Mapping[str, Any], host_keys: Mapping[str, Any], environ: Mapping[str, str], *, with_files: bool = True
) -> list[Problem]:
    """Return every problem of a recipe of one of the plugin's stages; it loads no model and no data.

    Args:
        raw: the recipe as read from YAML or the command line.
        host_keys: every recipe key that the host and the plugin take, with its type annotation.
        environ: the environment variables of the run.
        with_files: False leaves out whether models, adapters, data and packages are there.
    """
    if not isinstance(raw, Mapping):
        return [problem("recipe", raw, "a recipe is a mapping of keys to values", "write lines such as 'stage: ledpo'")]
    recipe = read(raw, host_keys, environ)
    return [found for check, where in CHECKS.items() if with_files or where == "recipe" for found in check(recipe)]


_RENAMED = {"new_special_tokens": "add_special_tokens"}  # by LLaMA-Factory; no other key sounds like the old name


def _check_keys(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem for every key that neither the host nor the plugin knows."""
    if switched_on(recipe.environ, "ALLOW_EXTRA_ARGS"):
        return
    refused = host_keys.refused_in(recipe)
    for key, value in recipe.raw.items():
        if key in recipe.host_keys or key in refused:
            continue
        near = get_close_matches(str(key).strip().lower(), [*recipe.host_keys], n=1, cutoff=0.6)
        near = [_RENAMED[key]] if key in _RENAMED else near
        fix = f"write {near[0]}" if near else "remove it, or set ALLOW_EXTRA_ARGS=1 to have unknown keys ignored"
        yield problem(key, value, "there is no such recipe key", fix)


# Each check with what it looks at, in the order in which problems are listed.
CHECKS: Mapping[Callable[[Reading], Iterator[Problem]], Literal["recipe", "machine"]] = MappingProxyType(
    {
        _check_keys: "recipe",
        types.check_types: "recipe",
        combinations.check_stage: "recipe",
        combinations.check_loss: "recipe",
        ranges.check_choices: "recipe",
        combinations.check_mode: "recipe",
        ranges.check_ranges: "recipe",
        ranges.check_val_size: "recipe",
        ranges.check_head_widths: "recipe",
        ranges.check_beta_bounds: "recipe",
        combinations.check_smoothing: "recipe",
        combinations.check_head_source: "recipe",
        combinations.check_effect: "recipe",
        reference.check_reference_adapter: "recipe",
        reference.check_drawn_weights: "recipe",
        combinations.check_frozen_policy: "recipe",
        combinations.check_evaluated_head: "recipe",
        combinations.check_fill: "recipe",
        combinations.check_pissa: "recipe",
        combinations.check_batch: "recipe",
        host_keys.check_host_keys: "recipe",
        combinations.check_backends: "recipe",
        combinations.check_precision: "recipe",
        combinations.check_adapter_kind: "recipe",
        combinations.check_optimizers: "recipe",
        streaming.check_streaming: "recipe",
        mixture.check_mixture: "recipe",
        mixture.check_budget: "recipe",
        rollouts.check_rollouts: "recipe",
        rollouts.check_backend_installed: "machine",
        rewards.check_rewards: "recipe",
        files.check_models: "machine",
        files.check_adapters: "machine",
        files.check_beta_head: "machine",
        files.check_paths: "machine",
        rewards.check_reward_files: "machine",
        files.check_data_choice: "recipe",
        files.check_data: "machine",
        packages.check_packages: "machine",
        packages.check_rope: "machine",
        files.check_reference_model: "machine",
        streaming.check_tokenized_stream: "machine",
    }
)


def check_stock_recipe(raw: Any, host_keys: Mapping[str, Any]) -> list[Problem]:
    """Return what the plugin must say of a recipe of a stock stage: that its own keys do not act there."""
    if not isinstance(raw, Mapping):
        return []
    stage, problems = raw.get("stage"), []
    stock_stages = _literal(host_keys.get("stage"))
    if isinstance(stage, str) and stock_stages and stage not in (*stock_stages, *STAGES):
        problems.append(unknown("stage", stage, "stage", (*stock_stages, *STAGES)))
    for key in argument_fields():
        if raw.get(key) is not None and raw.get(key) is not False:
            why = f"{key} belongs to the LEDPO stages, and this is stage {stage or 'sft'}"
            problems.append(problem(key, raw[key], why, f"set stage: ledpo, or remove {key}"))
    loss, stock_losses = raw.get("pref_loss"), _literal(host_keys.get("pref_loss"))
    if isinstance(loss, str) and loss in LOSSES and stock_losses and loss not in stock_losses:
        why = f"the loss {loss} belongs to the LEDPO stages; stage {stage or 'sft'} would train another"
        fix = f"set stage: {combinations.stage_for(LOSSES[loss])}"
        problems.append(problem("pref_loss", loss, why, fix))
    return problems


def _literal(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def resolve_recipe(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe with every value that was left out and has a recommended one.

    A value of null counts as left out. Only keys that have an effect are filled in. Call it after
    `check_recipe` found nothing.

    Raises:
        KeyError: the stage or the loss is unknown.
    """
    stage = stage_of(raw)
    loss = loss_of(raw, stage)
    if stage is None or loss is None:
        raise KeyError(f"No LEDPO stage and loss in stage={raw.get('stage')!r}, pref_loss={raw.get('pref_loss')!r}.")
    mode = mode_of(raw, stage, loss)
    resolved = {**raw}
    _fill(resolved, {"pref_loss": loss.name, "beta_mode": mode, **recommended(raw, loss, mode)})
    if is_learned(mode) and resolved.get("pref_beta") is not None:
        beta = resolved["pref_beta"]
        _fill(resolved, {"beta_min": rounded(beta / SPREAD), "beta_max": rounded(beta * SPREAD)})
    if has_head(mode):
        _fill(resolved, {"beta_head_source": "reference" if loss.needs_reference else "policy"})
    _fill(resolved, rollouts.rollout_defaults(resolved, stage, mode))
    idle = set(combinations.idle_keys(stage, loss, mode)) | set(rollouts.idle_in(resolved, stage, mode))
    idle |= set(rewards.idle_in(resolved))
    if not resolved.get("sft_ratio"):
        idle |= {"sft_ratio", "sft_ratio_by"}
    own = {key: field.default for key, field in argument_fields().items() if key not in idle}
    _fill(resolved, {key: value for key, value in own.items() if value is not None and value is not False})
    for key in ("beta_head_widths", "reward_weights"):  # YAML reads a single one as a number
        if isinstance(resolved.get(key), int | float):
            resolved[key] = str(resolved[key])
    return resolved


def _fill(resolved: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if resolved.get(key) is None:
            resolved[key] = value


def added_values(raw: Mapping[str, Any], resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `resolve_recipe` filled in, for the log and the run's record."""
    return {key: value for key, value in resolved.items() if raw.get(key) is None and value is not None}


def arguments_to_recipe(argv: Sequence[str], host_keys: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a recipe from command-line arguments: `--key value`, `--key=value`, `--flag`, `--key a b`.

    With `host_keys` each value is read as its key's type, as LLaMA-Factory's own parser does; without them it
    is read as YAML would: a number or true/false where it looks like one. Words that follow no key are left
    out.
    """
    words: dict[str, list[str]] = {}
    key = None
    for word in argv:
        if word.startswith("--") and len(word) > 2:
            name, separator, value = word[2:].partition("=")
            key = name.replace("-", "_")
            words[key] = [value] if separator else []
        elif key is not None:
            words[key].append(word)
    recipe = {}
    for key, values in words.items():
        name, negated = _negation(key, values, host_keys)
        recipe[name] = False if negated else _typed(values, (host_keys or {}).get(name, Any))
    return recipe


def _negation(key: str, values: list[str], host_keys: Mapping[str, Any] | None) -> tuple[str, bool]:
    """Return the key without the `no_` by which the host's command line switches a flag off."""
    off = key.startswith("no_") and not values and (host_keys is None or key not in host_keys)
    return (key[3:], True) if off else (key, False)


def _typed(values: list[str], annotation: Any) -> Any:
    kinds = types.alternatives(annotation)
    if not values:
        return True
    if len(values) > 1 or (list[str] in kinds and str not in kinds):
        return list(values)
    return _scalar(values[0], kinds)


def _scalar(word: str, kinds: tuple[Any, ...]) -> Any:
    any_kind = not kinds
    if bool in kinds and word.lower() in types.YES + types.NO:
        return word.lower() in types.YES
    if any_kind and word.lower() in ("true", "false"):
        return word.lower() == "true"
    if any_kind and word.lower() in ("null", "~"):
        return None
    if (any_kind or int in kinds or float in kinds) and types.WHOLE_NUMBER.fullmatch(word):
        return int(word)
    if (any_kind or float in kinds or int in kinds) and types.NUMBER.fullmatch(word):
        return float(word)
    return word
