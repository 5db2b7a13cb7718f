"""The real SmolLM2-135M on real pairs, as `ledpo quickstart prepare` leaves them; run by `make test-slow`."""

import json
from pathlib import Path

import pytest
from conftest import cli, series, train, write_recipe

ROOT = Path(__file__).parents[2]
MODEL, DATA = ROOT / ".ledpo" / "models" / "SmolLM2-135M-Instruct", ROOT / ".ledpo" / "data"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MODEL.is_dir() or not DATA.is_dir(), reason="run `ledpo quickstart prepare` first"),
]


def _recipe(output: Path, **changes) -> dict:
    return {
        "model_name_or_path": str(MODEL),
        "stage": "ledpo",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": 8,
        "lora_target": "all",
        "dataset": "quickstart_train",
        "dataset_dir": str(DATA),
        "template": "smollm2",
        "cutoff_len": 96,
        "overwrite_cache": True,
        "output_dir": str(output),
        "per_device_train_batch_size": 2,
        "max_steps": 20,
        "learning_rate": 1.0e-4,
        "lr_scheduler_type": "constant",
        "adam_epsilon": 1e-6,  # see tests/training/test_layouts.py
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "seed": 11,
        "disable_gradient_checkpointing": True,
    } | changes


@pytest.mark.parametrize("loss", ["sigmoid", "simpo"])
def test_the_fast_ways_change_no_trajectory(tmp_path, loss):
    plain = {f"disable_{part}": True for part in ("shared_prompt", "response_logits", "reference_cache", "fused_lora")}
    common = {"pref_loss": loss, "beta_mode": "fixed"}
    expected = series(train(_recipe(tmp_path / "plain", **common, **plain)), "loss")
    losses = series(train(_recipe(tmp_path / "fast", **common)), "loss")
    assert len(expected) == 20
    assert losses == pytest.approx(expected, rel=1e-4)
    assert max(expected) - min(expected) > 0.01


def test_training_with_a_head_learns_and_prints_beta(tmp_path):
    recipe = _recipe(tmp_path / "run", beta_mode="head", eval_dataset="quickstart_heldout", do_eval=True, max_steps=12)
    done = cli("train", write_recipe(tmp_path / "r.yaml", recipe), timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    losses = series(tmp_path / "run", "loss")
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)
    assert min(losses) < 0.69
    results = json.loads((tmp_path / "run" / "eval_results.json").read_text())
    assert results["eval_margins/beta_free"] != 0
    from ledpo_plugin.modeling.inference import beta_of_prompts

    betas = [
        row["beta"] for row in beta_of_prompts(tmp_path / "run", ["What is 2 + 2?", "Write a poem about the sea."])
    ]
    assert all(0.01 < beta < 1 for beta in betas)
    assert betas[0] != betas[1]
