"""What the plugin knows of LLaMA-Factory, and what it does where that is not true."""

import ast
from pathlib import Path

import pytest
from conftest import cli, train, write_recipe

import ledpo_plugin
from ledpo_plugin import readiness
from ledpo_plugin.autoload import patches
from ledpo_plugin.cli.doctor import describe, examine, healthy
from ledpo_plugin.host import contract

PACKAGE = Path(ledpo_plugin.__file__).parent


def test_the_installed_host_is_as_expected():
    assert readiness.mismatches() == []


def test_importing_the_tuner_patches_two_names_once():
    import importlib

    tuner = importlib.import_module(contract.TUNER)
    assert patches.installed_patches()[:2] == [f"{contract.TUNER}.get_train_args", f"{contract.TUNER}.run_dpo"]
    patched = tuner.run_dpo
    patches.on_host_module(tuner)
    assert tuner.run_dpo is patched


def test_the_stock_argument_classes_are_untouched_after_a_run(tiny, tmp_path):
    from llamafactory.hparams import FinetuningArguments, parser

    before = list(parser._TRAIN_ARGS)
    train(tiny.recipe(tmp_path / "run", max_steps=1))
    assert before == parser._TRAIN_ARGS
    assert "beta_mode" not in FinetuningArguments.__dataclass_fields__


@pytest.mark.parametrize(
    "change,message",
    [
        (
            lambda patch: patch.setattr(contract, "host_version", lambda: "0.9.99"),
            "version 0.9.99 is outside the tested",
        ),
        (
            lambda patch: patch.setattr(contract, "SIGNATURES", ((contract.TUNER, "run_dpo", ("everything",)),)),
            r"run_dpo takes \(.*\), expected \('everything',\)",
        ),
        (
            lambda patch: patch.setitem(contract.PIECES, "gone", ("llamafactory.data", "gone")),
            "llamafactory.data.gone is",
        ),
    ],
)
def test_an_unknown_host_refuses_the_plugin_s_stages_and_runs_its_own(tiny, tmp_path, monkeypatch, change, message):
    change(monkeypatch)
    with pytest.raises(contract.HostMismatch, match=message) as caught:
        train(tiny.recipe(tmp_path / "ours", max_steps=1))
    for part in ("tested: ", "What to do: pip install", "LEDPO_PLUGIN_DISABLE=1"):
        assert part in str(caught.value)
    assert (train(tiny.recipe(tmp_path / "stock", stage="dpo", max_steps=1)) / "adapter_model.safetensors").exists()


def test_the_version_check_alone_can_be_skipped(monkeypatch):
    monkeypatch.setattr(contract, "host_version", lambda: "0.9.99")
    monkeypatch.setenv(contract.ALLOW_UNTESTED, "1")
    assert readiness.mismatches() == []


def test_v1_is_refused_with_the_way_out(tiny, tmp_path):
    path = write_recipe(tmp_path / "r.yaml", tiny.recipe(tmp_path / "run"))
    done = cli("train", path, env={"USE_V1": "1"})
    assert done.returncode != 0
    assert "unset USE_V1" in done.stderr


def test_bad_recipes_are_refused_by_the_real_cli_before_anything_loads(tiny, tmp_path):
    recipe = tiny.recipe(tmp_path / "run", beta_mod="head", pref_beta=-1, model_name_or_path="/nowhere")
    done = cli("train", write_recipe(tmp_path / "r.yaml", recipe))
    assert done.returncode != 0
    for part in ("beta_mod", "beta_mode", "pref_beta", "/nowhere"):
        assert part in done.stderr
    assert not (tmp_path / "run").exists()


def test_adapters_load_in_the_stock_chat_and_export(tiny, tmp_path):
    run = train(tiny.recipe(tmp_path / "run", beta_mode="head", max_steps=2))
    from llamafactory.chat import ChatModel

    chat = ChatModel(
        {
            "model_name_or_path": str(tiny.model),
            "adapter_name_or_path": str(run),
            "template": "chatml",
            "infer_dtype": "float32",
            "max_new_tokens": 4,
        }
    )
    assert chat.chat([{"role": "user", "content": "river"}])[0].response_length >= 1
    export = {
        "model_name_or_path": str(tiny.model),
        "adapter_name_or_path": str(run),
        "template": "chatml",
        "export_dir": str(tmp_path / "merged"),
    }
    done = cli("export", write_recipe(tmp_path / "export.yaml", export))
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "merged" / "model.safetensors").exists()


def test_doctor_names_the_host_s_bugs_and_passes_here():
    report = examine()
    assert healthy(report)
    assert report["patched"] == [f"{contract.TUNER}.get_train_args", f"{contract.TUNER}.run_dpo"]
    bugs = {item["bug"]: item["present"] for item in report["host_bugs"]}
    assert bugs["stage dpo with pref_loss hinge, ipo or kto_pair trains plain sigmoid DPO"] is True
    assert bugs["stage ppo stops with an ImportError (it asks for an older trl)"] is True
    assert bugs[".json recipes crash on reading"] is True
    assert bugs["new tokens (add_tokens, add_special_tokens) with a reference that is loaded stop the run"] is True
    assert bugs["rope_scaling beyond the model's own context stops the run"] is True
    assert "stage ledpo_ppo trains PPO" in describe(report)
    assert "The LEDPO stages will run." in describe(report)


def test_doctor_says_when_the_plugin_is_switched_off(monkeypatch):
    monkeypatch.setenv("LEDPO_PLUGIN_DISABLE", "1")
    report = examine()
    assert not healthy(report)
    assert "LEDPO_PLUGIN_DISABLE is set" in describe(report)


def test_only_the_package_host_imports_the_host():
    """Imports of llamafactory stand in host/ and nowhere else (doctor names modules to examine them)."""
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "host":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not any(name.startswith("llamafactory") for name in names), path


@pytest.mark.parametrize("folder", ["losses", "betas"])
def test_the_pure_core_imports_torch_and_itself_only(folder):
    libraries = {"torch", "math", "itertools", "collections", "dataclasses", "typing", "types", "contextlib"}
    own = {"ledpo_plugin.losses", "ledpo_plugin.betas", "ledpo_plugin.hparams", "ledpo_plugin.facts"}
    for path in (PACKAGE / folder).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""] if node.level == 0 else []
                assert node.level < 2, f"{path}: relative imports would hide what is imported"
            else:
                continue
            for name in names:
                package = ".".join(name.split(".")[:2])
                assert package.split(".")[0] in libraries or package in own, f"{path} imports {name}"
