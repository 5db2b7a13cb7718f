"""What is patched in LLaMA-Factory, after it was imported.

All of it in `llamafactory.train.tuner`, and for the plugin's stages alone:
  * `get_train_args`: a recipe whose stage is the plugin's is checked, completed and parsed with the plugin's
    argument class; every other recipe goes to the original as it is, unless it names a key or loss of the plugin,
    which the original would silently take for something else: that is refused.
  * `run_dpo`: arguments of the plugin's class go to the plugin's workflow; all others to the original.
When its web UI is imported, `ledpo_plugin.webui.hook` is told, which adds to the UI by the names of `host.contract`.
`host.data` replaces two functions more, while a LEDPO stage loads its data.
"""

import importlib
import os
import sys
from collections.abc import Callable
from functools import wraps
from itertools import pairwise
from types import ModuleType
from typing import Any

from ledpo_plugin.host.arguments import parse_with_plugin_class, recipe_keys, stock_keys
from ledpo_plugin.host.contract import PARSER, TUNER, WEBUI, HostMismatch
from ledpo_plugin.host.supported import is_plugin_recipe
from ledpo_plugin.hparams import LedpoArguments
from ledpo_plugin.readiness import require_supported


def _train_args(original: Callable) -> Callable:
    @wraps(original)
    def get_train_args(args=None):
        given, problems = args, ()
        try:
            given = importlib.import_module(PARSER).read_args(args)
            recipe = _as_recipe(given)
            if not is_plugin_recipe(recipe):
                problems = _problems_of_stock(recipe)
        except Exception as error:  # a stock stage must run whatever fails here; what is not readable is the host's
            _say_unchecked(error)
            return original(given)
        if problems:
            from ledpo_plugin.recipes.check import RecipeError

            raise RecipeError(problems)
        return _plugin_args(original, given, recipe) if is_plugin_recipe(recipe) else original(given)

    get_train_args.ledpo_original = original
    return get_train_args


def _as_recipe(given: Any) -> dict[str, Any]:
    """Return what the host read as a recipe; of a command line the stage alone where ours cannot be imported."""
    if isinstance(given, dict):
        return given
    words = list(given)
    try:
        from ledpo_plugin.recipes.check import arguments_to_recipe

        return arguments_to_recipe(words)
    except ImportError:
        stages = [after for word, after in pairwise(words) if word == "--stage"]
        stages += [word.removeprefix("--stage=") for word in words if word.startswith("--stage=")]
        if stages and is_plugin_recipe({"stage": stages[-1]}):
            return {"stage": stages[-1]}
        raise


def _problems_of_stock(recipe: dict[str, Any]) -> list[Any]:
    from ledpo_plugin.recipes.check import check_stock_recipe

    return check_stock_recipe(recipe, stock_keys())


def _say_unchecked(error: Exception) -> None:
    print(
        f"ledpo-plugin could not look at this recipe ({type(error).__name__}: {error}); it goes to LLaMA-Factory as it "
        "is. See `ledpo doctor`.",
        file=sys.stderr,
        flush=True,
    )


def _plugin_args(original: Callable, given: Any, recipe: dict[str, Any]) -> Any:
    """Return the parsed arguments of a recipe of one of the plugin's stages."""
    require_supported()
    from ledpo_plugin.common.checkpoints import set_aside_incomplete
    from ledpo_plugin.recipes.check import RecipeError, added_values, arguments_to_recipe, check_recipe, resolve_recipe

    keys = recipe_keys()
    if not isinstance(given, dict):
        recipe = arguments_to_recipe(list(given), keys)
    problems = check_recipe(recipe, keys, os.environ)
    if problems:
        raise RecipeError(problems)
    resolved = resolve_recipe(recipe)
    if not resolved.get("overwrite_output_dir"):
        for folder in set_aside_incomplete(resolved.get("output_dir")):
            print(f"ledpo: {folder} was not written to its end (killed while saving?); set aside.", flush=True)
    parsed = parse_with_plugin_class(original, resolved)
    finetuning_args = parsed[3]
    finetuning_args.ledpo_generating = parsed[4]  # the host hands these to its own PPO alone
    finetuning_args.ledpo_recipe = dict(recipe)
    finetuning_args.ledpo_added = added_values(recipe, resolved)
    return parsed


def _run_dpo(original: Callable) -> Callable:
    @wraps(original)
    def run_dpo(model_args, data_args, training_args, finetuning_args, callbacks=None):
        if isinstance(finetuning_args, LedpoArguments):
            from ledpo_plugin.workflow import run_ledpo

            if os.environ.get("LLAMABOARD_ENABLED", "").lower() in ("true", "y", "1"):
                from ledpo_plugin.training.live_log import LiveLog

                callbacks = [*(callbacks or ()), LiveLog()]
            return run_ledpo(model_args, data_args, training_args, finetuning_args, callbacks)
        return original(model_args, data_args, training_args, finetuning_args, callbacks)

    run_dpo.ledpo_original = original
    return run_dpo


def _install_tuner(tuner: ModuleType) -> None:
    if hasattr(getattr(tuner, "get_train_args", None), "ledpo_original"):
        return
    if hasattr(tuner, "get_train_args"):
        tuner.get_train_args = _train_args(tuner.get_train_args)
    if hasattr(tuner, "run_dpo"):
        tuner.run_dpo = _run_dpo(tuner.run_dpo)


def _install_v1(launcher: ModuleType) -> None:
    original = getattr(launcher, "launch", None)
    if original is None or hasattr(original, "ledpo_original"):
        return

    @wraps(original)
    def launch(*args, **kwargs):
        _refuse_v1(sys.argv[1:])
        return original(*args, **kwargs)

    launch.ledpo_original = original
    launcher.launch = launch


def _refuse_v1(argv: list[str]) -> None:
    import yaml

    for argument in argv:
        if argument.endswith((".yaml", ".yml")) and os.path.isfile(argument):
            try:
                with open(argument, encoding="utf-8") as file:
                    recipe = yaml.safe_load(file)
            except (OSError, ValueError, yaml.YAMLError):
                continue  # v1 says what is wrong with it
            if is_plugin_recipe(recipe):
                raise HostMismatch(
                    f"USE_V1=1: {argument} has stage {recipe['stage']!r}, but LLaMA-Factory's v1 has argument classes "
                    "and trainers of its own, which the LEDPO stages are not part of. What to do: unset USE_V1."
                )


def on_host_module(module: ModuleType) -> None:
    """Patch a module of LLaMA-Factory that was just imported; called by `ledpo_plugin.autoload`."""
    if module.__name__ == TUNER:
        _install_tuner(module)
    elif module.__name__ == WEBUI:
        from ledpo_plugin.webui.hook import install

        install()
    else:
        _install_v1(module)


def installed_patches() -> list[str]:
    """Return the names in LLaMA-Factory that are patched in this process."""
    names = ((TUNER, "get_train_args"), (TUNER, "run_dpo"), ("llamafactory.v1.launcher", "launch"))
    return [
        f"{module}.{name}"
        for module, name in names
        if hasattr(getattr(sys.modules.get(module), name, None), "ledpo_original")
    ]
