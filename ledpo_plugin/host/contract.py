"""What the plugin uses of LLaMA-Factory's internals, by which names, and how it is checked that they are as expected.

What is patched stands in `ledpo_plugin.autoload.patches`. Where the installed LLaMA-Factory is not one that this was
tested with, or a module of the plugin cannot be imported, the plugin's stages are refused with the reason
(`ledpo_plugin.readiness`), and the stock ones work as ever.
"""

import importlib
import inspect
import os
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from operator import attrgetter
from types import ModuleType, SimpleNamespace

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from .supported import HOST_RANGE, INSTALL_HOST

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


class HostMismatch(RuntimeError):
    """The plugin's stages cannot run with the packages installed here."""


def host_version() -> str | None:
    """Return the installed LLaMA-Factory's version, or None."""
    try:
        return version("llamafactory")
    except PackageNotFoundError:
        return None


def host_mismatches() -> list[str]:
    """Return what of the installed host is not as the plugin expects; empty if all is. It raises nothing."""
    installed = host_version()
    if installed is None:
        return [f"LLaMA-Factory is not installed: {INSTALL_HOST}"]
    found = []
    if Version(installed) not in TESTED and os.environ.get(ALLOW_UNTESTED, "") in ("", "0"):
        found.append(f"version {installed} is outside the tested range {TESTED}")
    found += _wrong_signatures(SIGNATURES)
    parser, why = imported(PARSER)
    if not why and getattr(parser, "FinetuningArguments", None) not in getattr(parser, "_TRAIN_ARGS", ()):
        found.append(f"{PARSER}._TRAIN_ARGS does not hold FinetuningArguments")
    found += _missing(PIECES)
    return list(dict.fromkeys(found))


def webui_mismatches() -> list[str]:
    """Return what of the installed web UI is not as the plugin expects; empty if all is."""
    return list(dict.fromkeys(_wrong_signatures(WEBUI_SIGNATURES) + _missing(WEBUI_PIECES)))


def imported(module_name: str) -> tuple[ModuleType | None, str]:
    """Return a module, or None and why it cannot be imported."""
    try:
        return importlib.import_module(module_name), ""
    except Exception as error:
        return None, f"{module_name} cannot be imported ({type(error).__name__}: {error})"


def _wrong_signatures(expected_ones: tuple[tuple[str, str, tuple[str, ...]], ...]) -> list[str]:
    found = []
    for module_name, name, expected in expected_ones:
        module, why = imported(module_name)
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
        module, why = imported(module_name)
        if why or not hasattr(module, name):
            found.append(why or f"{module_name}.{name} is missing")
    return found


@cache
def host_api() -> SimpleNamespace:
    """Return the host's functions and classes that the plugin calls (see `PIECES`)."""
    return SimpleNamespace(
        **{ours: getattr(importlib.import_module(module), name) for ours, (module, name) in PIECES.items()}
    )


@cache
def webui_api() -> SimpleNamespace:
    """Return what the plugin uses of the web UI (see `WEBUI_PIECES`) and the modules it patches."""
    modules = {"interface": WEBUI, "runner": WEBUI_RUNNER, "train": WEBUI_TRAIN}
    return SimpleNamespace(
        **{ours: getattr(importlib.import_module(module), name) for ours, (module, name) in WEBUI_PIECES.items()},
        **{ours: importlib.import_module(module) for ours, module in modules.items()},
    )


def stock_main() -> Callable[[], None]:
    """Return what the script `llamafactory-cli` calls; it reads `sys.argv`."""
    from llamafactory.cli import main

    return main
