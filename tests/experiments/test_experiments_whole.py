"""The experiments of `yaml_recipes/`: at a reduced size through the engine, and their recipes alone. Minutes each."""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import cli
from test_experiment_engine import ledpo, numbers
from tiny_experiment import EVALUATION

from ledpo_plugin.experiments.definition.links import LINKING

ROOT = Path(__file__).parents[2]
EXPERIMENTS = sorted(path.parent.name for path in (ROOT / "yaml_recipes").glob("*/experiment.yaml"))
RUN_FOR_REAL = (  # their reports are under docs/results
    *("loss_variants_impact", "data_mixture_impact"),
    *("evaluation_methods_impact", "inference_optimization_impact"),
    "ledpo_rlhf_combination",  # at a reduced size in test_rlhf_experiment.py
)
MODEL = ROOT / ".ledpo/models/SmolLM2-135M-Instruct"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


def reduce(name: str, tiny, folder: Path) -> Path:
    """Copy an experiment onto the tiny model and data: every variant, one seed, two steps."""
    definition = yaml.safe_load((ROOT / "yaml_recipes" / name / "experiment.yaml").read_text())
    own = definition["profiles"]["cpu"]
    own |= {"seeds": [1], "budget": {"steps": 2}, "checkpoints": 1, "evaluation": EVALUATION}
    own |= {"resources": {"cpus": 1, "memory_gb": 1, "disk_gb": 0.1}}
    own.pop("prepare")
    definition["profiles"] = {"cpu": own}
    (folder / "cpu").mkdir(parents=True)
    (folder / "experiment.yaml").write_text(yaml.safe_dump(definition))
    for path in sorted((ROOT / "yaml_recipes" / name / "cpu").glob("*.yaml")):
        recipe = yaml.safe_load(path.read_text())
        model = folder / "models" / Path(recipe["model_name_or_path"]).name
        if not model.is_dir():
            shutil.copytree(tiny.model, model)
        recipe |= {"model_name_or_path": str(model), "template": "chatml", "cutoff_len": 160, "max_steps": 2}
        recipe["dataset_dir"] = str(tiny.data)
        recipe.pop("default_system", None)
        recipe["dataset"] = "pairs"
        (folder / "cpu" / path.name).write_text(yaml.safe_dump(recipe))
    return folder


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name not in RUN_FOR_REAL])
def test_the_other_experiments_at_a_reduced_size(tiny, tmp_path, name):
    folder = reduce(name, tiny, tmp_path / name)
    done = ledpo("run", name, cwd=tmp_path, cache=tmp_path / "cache")
    assert done.returncode == 0, done.stdout + done.stderr
    variants = sorted(path.stem for path in (folder / "cpu").glob("*.yaml"))
    found = numbers(tmp_path / "runs/experiments" / name / "cpu")
    assert sorted(found) == sorted(f"runs/{variant}/seed-1" for variant in variants)
    assert {result["budget"]["used"] for result in found.values()} == {2}
    report = json.loads((tmp_path / "runs/experiments" / name / "cpu/results.json").read_text())
    assert report


def _needs_others(recipe: dict) -> bool:
    """Whether a recipe starts from what another one leaves."""
    return any(recipe.get(key, "").startswith("runs/") for key in LINKING if key in recipe)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_recipe_copied_out_runs_alone(tmp_path, name):
    """On the real model and data, with the stock command, from the root of the repository."""
    if not (MODEL / "config.json").is_file() or not (ROOT / ".ledpo/experiments/data/sources.json").is_file():
        pytest.fail("Run `ledpo prepare` first (`make test-slow` does).")
    paths = sorted((ROOT / "yaml_recipes" / name / "cpu").glob("*.yaml"), reverse=True)
    source = next(path for path in paths if not _needs_others(yaml.safe_load(path.read_text())))
    copy = tmp_path / "mine.yaml"
    shutil.copy(source, copy)
    here = os.getcwd()
    os.chdir(ROOT)
    try:
        short = ["max_steps=1", "max_samples=8", f"output_dir={tmp_path / 'out'}"]
        done = cli("train", str(copy), *short, env={"LEDPO_CACHE": str(tmp_path / "cache")}, timeout=1200)
    finally:
        os.chdir(here)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    assert json.loads((tmp_path / "out" / "ledpo_usage.json").read_text())["steps"] == 1
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
