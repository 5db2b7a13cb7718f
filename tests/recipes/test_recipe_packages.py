"""A package that a key needs and that is not there is named by `ledpo validate`, with key and pip command."""

import ast
import importlib
import inspect

import pytest
from conftest import write_recipe
from packaging.requirements import Requirement

from ledpo_plugin.cli import main
from ledpo_plugin.host.arguments import recipe_keys
from ledpo_plugin.recipes import packages
from ledpo_plugin.recipes.check import check_recipe

# Keys of public reports that ended in a traceback after the data had been processed, with one of their packages.
REPORTED = (
    ({"use_adam_mini": True}, "use_adam_mini", "adam-mini"),
    ({"use_apollo": True, "finetuning_type": "full"}, "use_apollo", "apollo-torch"),
    ({"use_badam": True, "finetuning_type": "full"}, "use_badam", "'badam>=1.2.1'"),
    ({"use_galore": True, "finetuning_type": "full"}, "use_galore", "galore-torch"),
    ({"enable_liger_kernel": True}, "enable_liger_kernel", "liger-kernel"),
    ({"quantization_bit": 4}, "quantization_bit", "'bitsandbytes>=0.39.0'"),
    ({"quantization_bit": 8, "quantization_method": "hqq"}, "quantization_bit", "hqq"),
    ({"use_unsloth": True}, "use_unsloth", "unsloth"),
    ({"use_swanlab": True}, "use_swanlab", "swanlab"),
    ({"report_to": "tensorboard"}, "report_to", "tensorboard"),
    ({"report_to": ["wandb", "none"]}, "report_to", "wandb"),
    ({"optim": "paged_adamw_8bit"}, "optim", "bitsandbytes"),
    ({"optim": "galore_adamw_8bit"}, "optim", "galore-torch"),
    ({"flash_attn": "fa2"}, "flash_attn", "flash-attn"),
    ({"deepspeed": '{"zero_optimization": {"stage": 2}}'}, "deepspeed", "deepspeed"),
)


@pytest.fixture
def nothing_installed(monkeypatch):
    """A machine without any optional package, whatever this one has."""
    monkeypatch.setattr(packages, "installed", lambda package: False)


@pytest.mark.parametrize(("change", "key", "package"), REPORTED, ids=lambda value: str(value)[:40])
def test_a_missing_package_is_named_with_its_key_and_how_to_install_it(
    tiny, tmp_path, nothing_installed, change, key, package
):
    recipe = tiny.recipe(tmp_path / "run", **change)
    found = [problem for problem in check_recipe(recipe, recipe_keys(), {}) if problem.key == key]
    assert len(found) == 1
    assert f"Fix: pip install {package}, or remove {key}." in found[0].message
    assert check_recipe(recipe, recipe_keys(), {}, with_files=False) == []  # of another machine nothing is said


def test_what_is_installed_is_not_named(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "installed", lambda package: True)
    for change, _, _ in REPORTED:
        assert check_recipe(tiny.recipe(tmp_path / "run", **change), recipe_keys(), {}) == []


def test_installed_looks_at_what_is_here():
    assert all(map(packages.installed, ("torch", "torch>=1.0", "peft")))
    assert not any(map(packages.installed, ("torch<1.0", "ledpo-no-such-package", "ledpo-no-such-package>=1")))


@pytest.mark.parametrize("key", ["use_galore", "use_apollo", "use_badam"])
def test_optimizers_of_whole_weights_are_refused_with_lora(tiny, tmp_path, monkeypatch, key):
    monkeypatch.setattr(packages, "installed", lambda package: True)
    found = check_recipe(tiny.recipe(tmp_path / "run", **{key: True}), recipe_keys(), {})
    assert [problem.key for problem in found] == [key]
    both = tiny.recipe(tmp_path / "run", use_galore=True, use_badam=True, finetuning_type="full")
    assert "there can be one" in check_recipe(both, recipe_keys(), {})[0].message


def test_every_package_that_the_host_insists_on_is_in_the_table():
    """By its own code: `check_version(name, mandatory=True)` in what reads the arguments."""
    parser = importlib.import_module("llamafactory.hparams.parser")
    tree = ast.parse(inspect.getsource(parser._check_extra_dependencies))
    asked = {
        Requirement(call.args[0].value).name.replace("_", "-")
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and any(word.arg == "mandatory" for word in call.keywords)
    }
    known = {Requirement(package).name for needed in packages.OF_KEYS.values() for package in needed}
    # vLLM and SGLang serve, and the last three are of predict_with_generate; other checks refuse these keys.
    assert asked - known == {"vllm", "sglang", "jieba", "nltk", "rouge-chinese"}


def test_every_reporter_and_optimizer_of_transformers_is_decided_on():
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
    from transformers.training_args import OptimizerNames

    assert set(packages.OF_REPORTS) == set(INTEGRATION_TO_CALLBACK)
    of_torch = {"adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused", "adafactor", "sgd"}
    assert {item.value for item in OptimizerNames if not packages.of_optimizer(item.value)} == of_torch | {
        "adagrad",
        "rmsprop",
    }


def test_validate_says_so_on_the_command_line(tiny, tmp_path, nothing_installed, capsys):
    path = write_recipe(tmp_path / "recipe.yaml", tiny.recipe(tmp_path / "run", use_badam=True, finetuning_type="full"))
    assert main(["validate", path]) == 1
    assert "use_badam: True -> it needs badam>=1.2.1, which is not installed here" in capsys.readouterr().out
