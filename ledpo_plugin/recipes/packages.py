"""Checks: packages that a key needs and that LLaMA-Factory does not bring, before data and model are loaded."""

import importlib.util
from collections.abc import Iterator
from importlib import metadata
from types import MappingProxyType

from packaging.requirements import Requirement
from packaging.version import Version

from ledpo_plugin.common.problem import Problem, problem

from .reading import Reading, split_names, switched_on

# Keys that are switches or hold a setting: what LLaMA-Factory and transformers then import.
OF_KEYS = MappingProxyType(
    {
        "use_adam_mini": ("adam-mini",),
        "use_apollo": ("apollo-torch",),
        "use_badam": ("badam>=1.2.1",),
        "use_galore": ("galore-torch",),
        "use_unsloth": ("unsloth",),
        "use_kt": ("kt-kernel", "transformers-kt", "accelerate-kt"),
        "use_swanlab": ("swanlab",),
        "enable_liger_kernel": ("liger-kernel",),
        "use_liger_kernel": ("liger-kernel",),
        "mixture_of_depths": ("mixture-of-depth>=1.1.6",),
        "plot_loss": ("matplotlib",),
        "deepspeed": ("deepspeed",),
    }
)
OF_QUANTIZATION = MappingProxyType({"bnb": ("bitsandbytes>=0.39.0",), "hqq": ("hqq",), "eetq": ("eetq",)})
# Optimizers of transformers, by a part of their names; the first that is found counts. Others need nothing.
OF_OPTIMIZERS = MappingProxyType(
    {
        "galore": ("galore-torch",),
        "apollo": ("apollo-torch",),
        "adalomo": ("lomo-optim",),
        "lomo": ("lomo-optim",),
        "grokadamw": ("grokadamw",),
        "schedule_free": ("schedulefree",),
        "stable_adamw": ("torch-optimi",),
        "adamw_torch_4bit": ("torchao>=0.4.0",),
        "adamw_torch_8bit": ("torchao>=0.4.0",),
        "adamw_apex_fused": ("apex",),
        "adamw_anyprecision": ("torchdistx",),
        "8bit": ("bitsandbytes",),
        "paged": ("bitsandbytes",),
        "bnb": ("bitsandbytes",),
        "lion": ("bitsandbytes",),
        "ademamix": ("bitsandbytes",),
    }
)
# Names of `report_to`: any of the packages serves. transformers sends kubeflow's figures without one.
OF_REPORTS = MappingProxyType(
    {
        "azure_ml": ("azureml-core",),
        "clearml": ("clearml",),
        "codecarbon": ("codecarbon",),
        "comet_ml": ("comet-ml",),
        "dagshub": ("dagshub",),
        "dvclive": ("dvclive",),
        "flyte": ("flytekit",),
        "kubeflow": (),
        "mlflow": ("mlflow", "mlflow-skinny"),
        "neptune": ("neptune", "neptune-client"),
        "swanlab": ("swanlab",),
        "tensorboard": ("tensorboard", "tensorboardX"),
        "trackio": ("trackio",),
        "wandb": ("wandb",),
    }
)
# Where the name of the module differs from the package's, for packages that were put in place without pip's records.
_MODULES = MappingProxyType({"adam-mini": "adam_mini", "torch-optimi": "optimi", "lomo-optim": "lomo_optim"})
_VARIABLES = MappingProxyType({"USE_RAY": "ray", "USE_MODELSCOPE_HUB": "modelscope>=1.14.0"})


def check_packages(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem for every key that needs a package which is not installed here."""
    for key, packages in OF_KEYS.items():
        if recipe.is_set(key):
            yield from _absent(key, recipe.raw.get(key), packages)
    if recipe.number("quantization_bit") is not None:
        method = recipe.text("quantization_method") or "bnb"
        yield from _absent("quantization_bit", recipe.raw["quantization_bit"], OF_QUANTIZATION.get(method, ()))
    optimizer = recipe.text("optim")
    if optimizer:
        yield from _absent("optim", optimizer, of_optimizer(optimizer))
    for name in split_names(recipe.raw.get("report_to")):
        choices = OF_REPORTS.get(name, ())
        if choices and not any(installed(package) for package in choices):
            yield from _absent("report_to", name, choices[:1])
    if recipe.raw.get("flash_attn") == "fa2":
        # The host only warns and takes another kind of attention, so that the key would have no effect.
        yield from _absent("flash_attn", "fa2", ("flash-attn",))
    for name, package in _VARIABLES.items():
        if switched_on(recipe.environ, name):
            yield from _absent(name, recipe.environ[name], (package,))


def check_rope(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem for `rope_scaling` with transformers 5, under which LLaMA-Factory 0.9.5 stops.

    It writes the longer context as a number with a fraction into the model's configuration, which is refused there.
    Where cutoff_len is within the model's own context it leaves the configuration as it is, and the key has no effect.
    """
    if recipe.is_set("rope_scaling") and Version(metadata.version("transformers")).major >= 5:
        why = "it has no effect up to the model's own context, and beyond LLaMA-Factory stops with transformers 5"
        fix = "remove it; for a longer context write rope_parameters into the model's own config.json"
        yield problem("rope_scaling", recipe.raw["rope_scaling"], why, fix)


def of_optimizer(name: str) -> tuple[str, ...]:
    """Return the packages that an optimizer of transformers needs, with the versions that it asks for."""
    return next((packages for part, packages in OF_OPTIMIZERS.items() if part in name), ())


def installed(package: str) -> bool:
    """Whether a package is installed in a version that serves, e.g. "badam>=1.2.1"."""
    wanted = Requirement(package)
    try:
        return wanted.specifier.contains(metadata.version(wanted.name), prereleases=True)
    except metadata.PackageNotFoundError:
        module = _MODULES.get(wanted.name, wanted.name.replace("-", "_"))
        return not wanted.specifier and importlib.util.find_spec(module) is not None


def _absent(key: str, value: object, packages: tuple[str, ...]) -> Iterator[Problem]:
    missing = [package for package in packages if not installed(package)]
    if missing:
        why = f"it needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed here"
        quoted = " ".join(f"'{package}'" if ">" in package else package for package in missing)
        yield problem(key, value, why, f"pip install {quoted}, or remove {key}")
