"""The one module that knows LLaMA-Factory's internals: what is patched, what is used, and how both are checked.

What is patched, all of it in `llamafactory.train.tuner` and only after that module was imported:
  * `get_train_args`: a recipe whose stage is the plugin's is checked, completed and parsed with the plugin's
    argument class; every other recipe goes to the original as it is, unless it names a key or loss of the plugin,
    which the original would silently take for something else: that is refused.
  * `run_dpo`: arguments of the plugin's class go to the plugin's workflow; all others to the original.
While a LEDPO stage loads its data, `align_dataset` and `split_dataset` of `llamafactory.data.loader` are replaced, too
(`rows_through`).
When its web UI is imported, `ledpo_plugin.webui.hook` is told, which adds to the UI by the names that stand here.
Where the installed LLaMA-Factory is not one this module was tested with, or a module of the plugin cannot be imported,
the plugin's stages are refused with the reason, and the stock ones work as ever.
"""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import field, fields, make_dataclass
from functools import cache, wraps
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from operator import attrgetter
from types import ModuleType, SimpleNamespace
from typing import Any, get_type_hints

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from .hparams import LedpoArguments
from .supported import HOST_RANGE, INSTALL_HOST, is_plugin_recipe

TESTED = SpecifierSet(HOST_RANGE, prereleases=True)
ALLOW_UNTESTED = "LEDPO_ALLOW_UNTESTED_HOST"

TUNER = "llamafactory.train.tuner"
PARSER = "llamafactory.hparams.parser"
LOADER = "llamafactory.data.loader"
WEBUI = "llamafactory.webui.interface"
WEBUI_RUNNER = "llamafactory.webui.runner"
WEBUI_TRAIN = "llamafactory.webui.components.train"

# Signatures the plugin relies on: module, name, parameters in order.
SIGNATURES = (
    (TUNER, "run_dpo", ("model_args", "data_args", "training_args", "finetuning_args", "callbacks")),
    (TUNER, "get_train_args", ("args",)),
    (PARSER, "read_args", ("args",)),
    ("llamafactory.train.trainer_utils", "create_ref_model", ("model_args", "finetuning_args", "add_valuehead")),
    (
        "llamafactory.train.trainer_utils",
        "create_custom_optimizer",
        ("model", "training_args", "finetuning_args"),
    ),
    (
        "llamafactory.train.trainer_utils",
        "create_custom_scheduler",
        ("training_args", "num_training_steps", "optimizer"),
    ),
    (
        "llamafactory.data",
        "get_dataset",
        ("template", "model_args", "data_args", "training_args", "stage", "tokenizer", "processor"),
    ),
    (LOADER, "align_dataset", ("dataset", "dataset_attr", "data_args", "training_args")),
    (LOADER, "split_dataset", ("dataset", "eval_dataset", "data_args", "seed")),
    (
        "llamafactory.model",
        "load_model",
        ("tokenizer", "model_args", "finetuning_args", "is_trainable", "add_valuehead"),
    ),
)

# The same for the web UI; "Runner." names a method.
WEBUI_SIGNATURES = (
    (WEBUI, "create_train_tab", ("engine",)),
    (WEBUI, "create_footer", ()),
    (WEBUI_TRAIN, "change_stage", ("training_stage",)),
    (WEBUI_TRAIN, "list_datasets", ("dataset_dir", "training_stage")),
    (WEBUI_RUNNER, "gen_cmd", ("args",)),
    (WEBUI_RUNNER, "save_args", ("config_path", "config_dict")),
    (WEBUI_RUNNER, "load_args", ("config_path",)),
    (WEBUI_RUNNER, "Runner._initialize", ("self", "data", "do_train", "from_preview")),
    (WEBUI_RUNNER, "Runner._parse_train_args", ("self", "data")),
    (WEBUI_RUNNER, "Runner._preview", ("self", "data", "do_train")),
    (WEBUI_RUNNER, "Runner._launch", ("self", "data", "do_train")),
    (WEBUI_RUNNER, "Runner.monitor", ("self",)),
)

# What the plugin uses of the web UI, by the name the plugin gives it.
WEBUI_PIECES = {
    "LOCALES": ("llamafactory.webui.locales", "LOCALES"),
    "TRAINING_STAGES": ("llamafactory.extras.constants", "TRAINING_STAGES"),
    "Runner": (WEBUI_RUNNER, "Runner"),
    "clean_cmd": ("llamafactory.webui.common", "_clean_cmd"),
    "get_save_dir": ("llamafactory.webui.common", "get_save_dir"),
    "load_dataset_info": ("llamafactory.webui.common", "load_dataset_info"),
}

# Everything of the host that the plugin calls, by the name the plugin gives it.
PIECES = {
    "get_dataset": ("llamafactory.data", "get_dataset"),
    "get_dataset_list": ("llamafactory.data.parser", "get_dataset_list"),
    "get_dataset_converter": ("llamafactory.data.converter", "get_dataset_converter"),
    "get_template": ("llamafactory.data", "get_template_and_fix_tokenizer"),
    "TEMPLATES": ("llamafactory.data.template", "TEMPLATES"),
    "PairCollator": ("llamafactory.data", "PairwiseDataCollatorWithPadding"),
    "UnpairedCollator": ("llamafactory.data", "KTODataCollatorWithPadding"),
    "InstructionCollator": ("llamafactory.data", "MultiModalDataCollatorForSeq2Seq"),
    "load_model": ("llamafactory.model", "load_model"),
    "load_tokenizer": ("llamafactory.model", "load_tokenizer"),
    "create_ref_model": ("llamafactory.train.trainer_utils", "create_ref_model"),
    "create_modelcard_and_push": ("llamafactory.train.trainer_utils", "create_modelcard_and_push"),
    "create_custom_optimizer": ("llamafactory.train.trainer_utils", "create_custom_optimizer"),
    "create_custom_scheduler": ("llamafactory.train.trainer_utils", "create_custom_scheduler"),
    "SaveProcessorCallback": ("llamafactory.train.callbacks", "SaveProcessorCallback"),
    "plot_loss": ("llamafactory.extras.ploting", "plot_loss"),
    "calculate_tps": ("llamafactory.extras.misc", "calculate_tps"),
    "ModelArguments": ("llamafactory.hparams", "ModelArguments"),
    "FinetuningArguments": ("llamafactory.hparams", "FinetuningArguments"),
    "get_infer_args": ("llamafactory.hparams", "get_infer_args"),
    "IGNORE_INDEX": ("llamafactory.extras.constants", "IGNORE_INDEX"),
    "IMAGE_PLACEHOLDER": ("llamafactory.extras.constants", "IMAGE_PLACEHOLDER"),
    "VIDEO_PLACEHOLDER": ("llamafactory.extras.constants", "VIDEO_PLACEHOLDER"),
    "AUDIO_PLACEHOLDER": ("llamafactory.extras.constants", "AUDIO_PLACEHOLDER"),
    "logging": ("llamafactory.extras", "logging"),
}

# Modules of the plugin that a run imports once its recipe was taken; they bring in all others of a training.
RUN_MODULES = ("ledpo_plugin.recipe", "ledpo_plugin.checkpoints", "ledpo_plugin.live_log", "ledpo_plugin.workflow")


class HostMismatch(RuntimeError):
    """The plugin's stages cannot run with the packages installed here."""


def host_version() -> str | None:
    """Return the installed LLaMA-Factory's version, or None."""
    try:
        return version("llamafactory")
    except PackageNotFoundError:
        return None


def mismatches(to_run: bool = True) -> list[str]:
    """Return why the plugin's stages cannot run here; empty if they can. It raises nothing.

    Args:
        to_run: whether what a run imports is imported, too; False where nothing is to run yet (the web UI's start).
    """
    installed = host_version()
    if installed is None:
        return [f"LLaMA-Factory is not installed: {INSTALL_HOST}"]
    found = []
    if Version(installed) not in TESTED and os.environ.get(ALLOW_UNTESTED, "") in ("", "0"):
        found.append(f"version {installed} is outside the tested range {TESTED}")
    found += _wrong_signatures(SIGNATURES)
    parser, why = _imported(PARSER)
    if not why and getattr(parser, "FinetuningArguments", None) not in getattr(parser, "_TRAIN_ARGS", ()):
        found.append(f"{PARSER}._TRAIN_ARGS does not hold FinetuningArguments")
    found += _missing(PIECES)
    if to_run:
        found += [why for _, why in map(_imported, RUN_MODULES) if why]
    return list(dict.fromkeys(found))


def webui_mismatches() -> list[str]:
    """Return what of the installed web UI is not as the plugin expects; empty if all is."""
    return list(dict.fromkeys(_wrong_signatures(WEBUI_SIGNATURES) + _missing(WEBUI_PIECES)))


def _imported(module_name: str) -> tuple[ModuleType | None, str]:
    """Return a module, or None and why it cannot be imported."""
    try:
        return importlib.import_module(module_name), ""
    except Exception as error:
        return None, f"{module_name} cannot be imported ({type(error).__name__}: {error})"


def _wrong_signatures(expected_ones: tuple[tuple[str, str, tuple[str, ...]], ...]) -> list[str]:
    found = []
    for module_name, name, expected in expected_ones:
        module, why = _imported(module_name)
        if why:
            found.append(why)
            continue
        try:
            function = attrgetter(name)(module)
        except AttributeError:
            found.append(f"{module_name}.{name} is missing")
            continue
        actual = tuple(inspect.signature(function).parameters)
        if actual != expected:
            found.append(f"{module_name}.{name} takes {actual}, expected {expected}")
    return found


def _missing(wanted: dict[str, tuple[str, str]]) -> list[str]:
    found = []
    for module_name, name in wanted.values():
        module, why = _imported(module_name)
        if why or not hasattr(module, name):
            found.append(why or f"{module_name}.{name} is missing")
    return found


def require_supported(to_run: bool = True) -> None:
    """Do nothing if the plugin's stages can run here; `to_run` as for `mismatches`.

    Raises:
        HostMismatch: they cannot; the message names the installed version, the tested range and what to do.
    """
    found = mismatches(to_run)
    if found:
        raise HostMismatch(
            f"The LEDPO stages cannot run with the installed LLaMA-Factory {host_version()} (tested: {TESTED}). "
            "Stock stages are not affected.\n"
            + "\n".join(f"  - {line}" for line in found)
            + f"\nWhat to do: {INSTALL_HOST}, or install the ledpo-plugin release made for your version; where a "
            "module cannot be imported, install what it misses, in the version that LLaMA-Factory asks for. "
            f"{ALLOW_UNTESTED}=1 skips the version check alone (not the checks of the internals). "
            "LEDPO_PLUGIN_DISABLE=1 switches the plugin off."
        )


@cache
def pieces() -> SimpleNamespace:
    """Return the host's functions and classes that the plugin calls (see `PIECES`)."""
    return SimpleNamespace(
        **{ours: getattr(importlib.import_module(module), name) for ours, (module, name) in PIECES.items()}
    )


@cache
def webui_pieces() -> SimpleNamespace:
    """Return what the plugin uses of the web UI (see `WEBUI_PIECES`) and the modules it patches."""
    modules = {"interface": WEBUI, "runner": WEBUI_RUNNER, "train": WEBUI_TRAIN}
    return SimpleNamespace(
        **{ours: getattr(importlib.import_module(module), name) for ours, (module, name) in WEBUI_PIECES.items()},
        **{ours: importlib.import_module(module) for ours, module in modules.items()},
    )


@contextmanager
def rows_through(
    look: Callable[[Any, Any, Any, Any], tuple[Any, Any]], split: Callable[..., tuple[dict, dict] | None]
) -> Iterator[None]:
    """Have every data set that the host loads pass through `look` before the host reads its rows.

    Args:
        look: takes the raw data set, its DatasetAttr, the host's data arguments and training arguments; returns the
            first two as the host shall have them.
        split: takes what the host's `split_dataset` takes, and returns the same, or None to leave it to the host.
    """
    loader = importlib.import_module(LOADER)
    align, divide = loader.align_dataset, loader.split_dataset

    def align_dataset(dataset, dataset_attr, data_args, training_args):
        return align(*look(dataset, dataset_attr, data_args, training_args), data_args, training_args)

    def split_dataset(dataset, eval_dataset, data_args, seed):
        return split(dataset, eval_dataset, data_args, seed) or divide(dataset, eval_dataset, data_args, seed)

    loader.align_dataset, loader.split_dataset = align_dataset, split_dataset
    try:
        yield
    finally:
        loader.align_dataset, loader.split_dataset = align, divide


@contextmanager
def templates_kept() -> Iterator[None]:
    """Put back the system prompts of the host's templates, which it changes for the whole process with each recipe."""
    registered = pieces().TEMPLATES
    before = {name: template.default_system for name, template in registered.items()}
    try:
        yield
    finally:
        for name, system in before.items():
            registered[name].default_system = system


def _after_init(self) -> None:
    from .losses import LOSSES
    from .stages import STAGES

    pieces().FinetuningArguments.__post_init__(self)
    self.ledpo_stage = self.stage
    self.use_ref_model = LOSSES[self.pref_loss].needs_reference or STAGES[self.stage].rollouts
    # The host's dispatch is an elif over its own names; run_dpo, replaced below, is ours to enter by.
    self.stage = "dpo"


def _to_dict(self) -> dict[str, Any]:
    return {**pieces().FinetuningArguments.to_dict(self), "stage": self.ledpo_stage}


@cache
def finetuning_class() -> type:
    """Return LLaMA-Factory's FinetuningArguments extended by the plugin's keys, for the plugin's stages."""
    # The host's parser hands all of a field's metadata to argparse, which knows no more than `help` of ours.
    own = [
        (item.name, item.type, field(default=item.default, metadata={"help": item.metadata["help"]}))
        for item in fields(LedpoArguments)
    ]
    # Wider than the host's Literals; ledpo_plugin.recipe has checked both before this is made.
    wider = [
        ("stage", str, field(default="ledpo")),
        ("pref_loss", str, field(default="sigmoid")),
        ("reward_model_type", str, field(default="lora")),
    ]
    return make_dataclass(
        "LedpoFinetuningArguments",
        own + wider,
        bases=(LedpoArguments, pieces().FinetuningArguments),
        namespace={"__post_init__": _after_init, "to_dict": _to_dict},
    )


def recipe_keys() -> dict[str, Any]:
    """Return every key a recipe of the plugin's stages may have, with its type annotation."""
    parser = importlib.import_module(PARSER)
    keys: dict[str, Any] = {}
    for host_class in parser._TRAIN_ARGS:
        cls = finetuning_class() if host_class is parser.FinetuningArguments else host_class
        hints = get_type_hints(cls)
        keys |= {item.name: hints[item.name] for item in fields(cls) if item.init}
    return keys


def stock_keys() -> dict[str, Any]:
    """Return the stock fine-tuning keys with their annotations; nothing on a host whose class cannot be read."""
    try:
        return get_type_hints(importlib.import_module(PARSER).FinetuningArguments)
    except (AttributeError, NameError, TypeError):
        return {}


def _parse_with_plugin_class(original: Callable, recipe: dict[str, Any]) -> Any:
    parser = importlib.import_module(PARSER)
    place = parser._TRAIN_ARGS.index(parser.FinetuningArguments)
    parser._TRAIN_ARGS[place] = finetuning_class()
    try:
        return original(recipe)
    finally:
        parser._TRAIN_ARGS[place] = parser.FinetuningArguments


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
            from .recipe import RecipeError

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
        from .recipe import arguments_to_recipe

        return arguments_to_recipe(words)
    except ImportError:
        stages = [after for word, after in pairwise(words) if word == "--stage"]
        stages += [word.removeprefix("--stage=") for word in words if word.startswith("--stage=")]
        if stages and is_plugin_recipe({"stage": stages[-1]}):
            return {"stage": stages[-1]}
        raise


def _problems_of_stock(recipe: dict[str, Any]) -> list[Any]:
    from .recipe import check_stock_recipe

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
    from .checkpoints import set_aside_incomplete
    from .recipe import RecipeError, added_values, arguments_to_recipe, check_recipe, resolve_recipe

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
    parsed = _parse_with_plugin_class(original, resolved)
    finetuning_args = parsed[3]
    finetuning_args.ledpo_generating = parsed[4]  # the host hands these to its own PPO alone
    finetuning_args.ledpo_recipe = dict(recipe)
    finetuning_args.ledpo_added = added_values(recipe, resolved)
    return parsed


def _run_dpo(original: Callable) -> Callable:
    @wraps(original)
    def run_dpo(model_args, data_args, training_args, finetuning_args, callbacks=None):
        if isinstance(finetuning_args, LedpoArguments):
            from .workflow import run_ledpo

            if os.environ.get("LLAMABOARD_ENABLED", "").lower() in ("true", "y", "1"):
                from .live_log import LiveLog

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
        from .webui.hook import install

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


def prepare_reference(trainer: Any, model: Any) -> Any:
    """Put a separate reference model where the trainer's accelerator wants it, in evaluation mode, never trained."""
    accelerator = trainer.accelerator
    if trainer.is_deepspeed_enabled:
        if getattr(model, "is_loaded_in_8bit", False) or getattr(model, "is_loaded_in_4bit", False):
            return model  # quantized models are on their device already
        prepare = importlib.import_module("trl.models.utils").prepare_deepspeed
        return prepare(model, accelerator)
    if trainer.is_fsdp_enabled:
        if getattr(accelerator, "is_fsdp2", False):
            prepare = importlib.import_module("accelerate.utils.fsdp_utils").fsdp2_prepare_model
            return prepare(accelerator, model)
        return importlib.import_module("trl.models.utils").prepare_fsdp(model, accelerator)
    prepared = accelerator.prepare_model(model, evaluation_mode=True)
    prepared.eval()
    return prepared


@contextmanager
def whole_for_generation(trainer: Any) -> Iterator[Any]:
    """Give the trainer's policy unwrapped and with all its weights in place, so that it can generate."""
    wrapped = trainer.model_wrapped
    if trainer.is_deepspeed_enabled:
        gathered = importlib.import_module("trl.models.utils").unwrap_model_for_generation
        with gathered(wrapped, trainer.accelerator) as model:
            yield model
    elif trainer.is_fsdp_enabled and not getattr(trainer.accelerator, "is_fsdp2", False):
        fsdp = importlib.import_module("torch.distributed.fsdp").FullyShardedDataParallel
        with fsdp.summon_full_params(wrapped, recurse=False):
            yield trainer.accelerator.unwrap_model(wrapped)
    else:
        yield trainer.accelerator.unwrap_model(wrapped)
