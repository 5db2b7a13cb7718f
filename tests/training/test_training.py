"""Trainings of the plugin's stages through LLaMA-Factory's entry point: every loss, every beta mode, state, reports."""

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import history, series, train
from safetensors.torch import load_file, save_file

from ledpo_plugin.facts import BETAS, LOSSES

PAIRWISE = sorted(name for name, row in LOSSES.items() if row.data == "pairs")


@pytest.mark.parametrize("loss", PAIRWISE)
def test_every_pairwise_loss_trains(tiny, tmp_path, loss):
    run = train(tiny.recipe(tmp_path / "run", pref_loss=loss, beta_mode="fixed", learning_rate=1e-2, max_steps=6))
    losses = series(run, "loss")
    assert all(math.isfinite(value) for value in losses)
    margins = series(run, "margins/beta_free")
    assert margins[-1] != margins[0]
    record = json.loads((run / "ledpo_run.json").read_text())
    assert record["pref_loss"] == loss
    assert record["resolved"]["pref_beta"] == LOSSES[loss].recommended["pref_beta"]


@pytest.mark.parametrize("mode", BETAS)
def test_every_beta_mode_trains_and_saves_its_state(tiny, tmp_path, mode):
    run = train(tiny.recipe(tmp_path / "run", beta_mode=mode, pref_beta=0.1, max_steps=6))
    assert all(math.isfinite(value) for value in series(run, "loss"))
    assert (run / "beta_head.safetensors").is_file()
    assert json.loads((run / "beta_head.json").read_text())["beta_mode"] == mode
    first, last = (series(run, "beta/mean")[i] for i in (0, -1))
    if mode == "fixed":
        assert first == last == pytest.approx(0.1)
    else:
        assert last != first
    assert bool(series(run, "beta/head_grad_norm")) == (mode in ("global", "head", "ppl"))


@pytest.mark.parametrize("mode", ["global", "head", "ppl"])
@pytest.mark.parametrize("finetuning", ["full", "freeze"])
def test_learned_beta_with_full_and_freeze_tuning(tiny, tmp_path, mode, finetuning):
    changes = {"finetuning_type": finetuning, "lora_rank": None, "lora_target": None, "learning_rate": 1e-3}
    run = train(tiny.recipe(tmp_path / "run", beta_mode=mode, **changes))
    assert len(set(series(run, "beta/mean"))) > 1


@pytest.mark.parametrize("stage,mode", [("ledpo_simpo", "head"), ("ledpo_kto", "head"), ("ledpo_kto", "global")])
def test_learned_beta_in_other_stages(tiny, tmp_path, stage, mode):
    run = train(tiny.recipe(tmp_path / "run", stage=stage, beta_mode=mode))
    assert len(set(series(run, "beta/mean"))) > 1


def test_no_reference_model_is_loaded_where_the_loss_needs_none(tiny, tmp_path, monkeypatch):
    from ledpo_plugin import workflow

    made = []
    original = workflow._reference

    def watch(model, *args):
        made.append(original(model, *args))
        return made[-1]

    monkeypatch.setattr(workflow, "_reference", watch)
    full = {"finetuning_type": "full", "lora_rank": None, "lora_target": None, "max_steps": 1}
    train(tiny.recipe(tmp_path / "simpo", stage="ledpo_simpo", **full))
    train(tiny.recipe(tmp_path / "ledpo", beta_mode="fixed", **full))
    assert made[0] is None
    assert made[1] is not None


def test_a_separate_reference_model(tiny, tmp_path):
    """The adapter switched off and the same model loaded apart are the same reference."""
    off = train(tiny.recipe(tmp_path / "off", beta_mode="head"))
    apart = train(tiny.recipe(tmp_path / "apart", beta_mode="head", ref_model=str(tiny.model)))
    assert series(off, "loss") == pytest.approx(series(apart, "loss"), rel=1e-5)


def test_everything_is_logged_in_training_and_evaluation(tiny, tmp_path):
    recipe = tiny.recipe(
        tmp_path / "run", beta_mode="head", eval_dataset="heldout", eval_strategy="steps", eval_steps=2, plot_loss=True
    )
    run = train(recipe)
    expected = {
        "rewards/chosen",
        "rewards/rejected",
        "rewards/accuracies",
        "rewards/margins",
        "margins/beta_free",
        "logps/chosen",
        "logps/rejected",
        "logps/accuracies",
        *(f"beta/{k}" for k in ("mean", "std", "min", "max", "q10", "q90", "at_bounds", "margin_corr")),
        "beta/mean_positive_margin",
        "beta/mean_negative_margin",
    }
    rows = history(run)
    trained = [row for row in rows if "loss" in row]
    evaluated = [row for row in rows if "eval_loss" in row]
    assert len(trained) == 4
    assert len(evaluated) == 2
    assert expected <= set().union(*trained)
    assert "beta/head_grad_norm" in trained[-1]
    assert {f"eval_{key}" for key in expected} <= set().union(*evaluated)
    for key in ("loss", "rewards_accuracies", "beta_mean", "eval_loss", "eval_rewards_accuracies", "eval_beta_mean"):
        assert (run / f"training_{key}.png").stat().st_size > 1000
    text = (run / "trainer_state.json").read_text()
    assert "NaN" not in text


def test_the_rewards_logged_are_those_of_the_beta_in_the_loss(tiny, tmp_path):
    """beta-DPO's own code logs rewards of another beta than it trains with; with one beta the two must agree."""
    run = train(tiny.recipe(tmp_path / "run", beta_mode="fixed", pref_beta=0.25, per_device_train_batch_size=1))
    for row in (row for row in history(run) if "loss" in row):
        assert row["rewards/margins"] == pytest.approx(0.25 * row["margins/beta_free"], rel=1e-4, abs=1e-7)
        assert row["loss"] == pytest.approx(math.log1p(math.exp(-row["rewards/margins"])), rel=1e-4)


def test_gradient_accumulation_is_the_same_as_a_larger_batch(tiny, tmp_path):
    common = {"beta_mode": "head", "beta_lr_ratio": 5.0, "max_steps": 5, "disable_shuffling": True}
    large = train(tiny.recipe(tmp_path / "large", per_device_train_batch_size=4, **common))
    small = train(
        tiny.recipe(tmp_path / "small", per_device_train_batch_size=2, gradient_accumulation_steps=2, **common)
    )
    assert series(small, "loss") == pytest.approx(series(large, "loss"), rel=1e-4)
    assert series(small, "beta/std")[1:] == pytest.approx(series(large, "beta/std")[1:], rel=1e-2)


def test_the_head_is_clipped_by_itself_and_zeroed(tiny, tmp_path):
    """Halving max_grad_norm below the head's norm halves nothing else: Adam is scale-free, so look at the moments."""
    run = train(
        tiny.recipe(tmp_path / "run", beta_mode="global", max_grad_norm=1e-3, save_strategy="steps", save_steps=1)
    )
    first = load_file(run / "checkpoint-1" / "ledpo_training_state.safetensors")
    # At step 1 every margin is 0, so theta's gradient is exactly 0; from step 2 on it is not.
    assert first["0.exp_avg"].abs().max() == 0
    moments = [load_file(run / f"checkpoint-{i}" / "ledpo_training_state.safetensors")["0.exp_avg"] for i in (2, 3)]
    norms = series(run, "beta/head_grad_norm")
    assert norms[1] > 1e-3  # the norm before clipping
    assert moments[0].abs().item() == pytest.approx(0.1 * 1e-3, rel=1e-3)  # (1 - beta1) * clipped gradient
    assert moments[1].abs().item() <= 0.9 * 1e-4 + 0.1 * 1e-3 + 1e-9  # gradients of step 2 were cleared


def test_resuming_equals_the_uninterrupted_run(tiny, tmp_path):
    common = {"beta_mode": "head", "beta_center": True, "max_steps": 8, "save_strategy": "steps", "save_steps": 4}
    whole = train(tiny.recipe(tmp_path / "whole", **common))
    part = tiny.recipe(tmp_path / "part", **common, resume_from_checkpoint=str(whole / "checkpoint-4"))
    resumed = train(part)
    assert series(resumed, "loss") == series(whole, "loss")
    assert series(resumed, "beta/std") == series(whole, "beta/std")
    for name in ("beta_head.safetensors", "adapter_model.safetensors"):
        a, b = load_file(whole / name), load_file(resumed / name)
        assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("mode", ["global", "ppl", "beta_dpo", "epsilon_dpo"])
def test_resuming_restores_the_state_of_the_other_modes(tiny, tmp_path, mode):
    common = {"beta_mode": mode, "max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    whole = train(tiny.recipe(tmp_path / "whole", **common))
    resumed = train(tiny.recipe(tmp_path / "part", **common, resume_from_checkpoint=str(whole / "checkpoint-3")))
    assert series(resumed, "loss") == series(whole, "loss")


def test_resuming_restores_bco_s_running_mean(tiny, tmp_path):
    common = {
        "pref_loss": "bco_pair",
        "beta_mode": "fixed",
        "pref_beta": 0.5,
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 3,
    }
    whole = train(tiny.recipe(tmp_path / "whole", **common))
    resumed = train(tiny.recipe(tmp_path / "part", **common, resume_from_checkpoint=str(whole / "checkpoint-3")))
    assert series(resumed, "loss") == series(whole, "loss")


def test_the_best_model_s_head_is_restored(tiny, tmp_path):
    bests = []
    for greater in (True, False):
        run = train(
            tiny.recipe(
                tmp_path / str(greater),
                beta_mode="head",
                max_steps=6,
                eval_dataset="heldout",
                eval_strategy="steps",
                eval_steps=2,
                save_strategy="steps",
                save_steps=2,
                load_best_model_at_end=True,
                metric_for_best_model="eval_beta/mean",
                greater_is_better=greater,
            )
        )
        best = Path(json.loads((run / "trainer_state.json").read_text())["best_model_checkpoint"])
        final, chosen = load_file(run / "beta_head.safetensors"), load_file(best / "beta_head.safetensors")
        assert all(torch.equal(final[key], chosen[key]) for key in final)
        bests.append((best.name, final))
    # The highest and the lowest mean beta are of different checkpoints, so at least one of the two is not the last.
    assert bests[0][0] != bests[1][0]
    assert any(not torch.equal(bests[0][1][key], bests[1][1][key]) for key in bests[0][1])


def test_freeze_policy_trains_the_head_alone(tiny, tmp_path):
    policy = train(tiny.recipe(tmp_path / "policy", beta_mode="fixed", max_steps=6))
    run = train(
        tiny.recipe(
            tmp_path / "head",
            beta_mode="head",
            freeze_policy=True,
            adapter_name_or_path=str(policy),
            max_steps=6,
        )
    )
    a, b = (load_file(folder / "adapter_model.safetensors") for folder in (policy, run))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert len(set(series(run, "beta/std"))) == 6


def test_freeze_policy_refuses_margins_that_are_all_zero(tiny, tmp_path):
    zero = train(tiny.recipe(tmp_path / "zero", beta_mode="fixed", max_steps=1, learning_rate=1e-30))
    weights = load_file(zero / "adapter_model.safetensors")
    save_file({k: torch.zeros_like(v) for k, v in weights.items()}, zero / "adapter_model.safetensors")
    recipe = tiny.recipe(tmp_path / "run", beta_mode="head", freeze_policy=True, adapter_name_or_path=str(zero))
    with pytest.raises(ValueError, match="every margin of the first batch is exactly 0"):
        train(recipe)


def test_a_loss_that_is_not_finite_stops_the_run_before_anything_is_saved(tiny, tmp_path):
    import shutil

    broken = tmp_path / "model"
    shutil.copytree(tiny.model, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    recipe = tiny.recipe(tmp_path / "run", model_name_or_path=str(broken), save_strategy="steps", save_steps=1)
    with pytest.raises(FloatingPointError, match="became NaN or infinite at or before step 1"):
        train(recipe | {"logging_steps": 50})
    assert not (tmp_path / "run" / "adapter_model.safetensors").exists()
    assert not list((tmp_path / "run").glob("checkpoint-*/adapter_model.safetensors"))


def test_rows_that_cannot_train_are_dropped_and_counted(tiny, tmp_path, capfd):
    rows = json.loads((tiny.data / "pairs.json").read_text())
    rows[0]["rejected"] = rows[0]["chosen"]
    rows[1]["chosen"]["value"] = "same start " * 40 + "one end"
    rows[1]["rejected"]["value"] = "same start " * 40 + "another end"
    data = tmp_path / "data"
    data.mkdir()
    (data / "pairs.json").write_text(json.dumps(rows))
    info = json.loads((tiny.data / "dataset_info.json").read_text())
    (data / "dataset_info.json").write_text(json.dumps({"pairs": info["pairs"]}))
    run = train(tiny.recipe(tmp_path / "run", dataset_dir=str(data), max_steps=1))
    assert json.loads((run / "ledpo_run.json").read_text())["train_examples"] == 46


def test_a_dataset_of_which_nothing_can_train_is_an_error(tiny, tmp_path):
    rows = json.loads((tiny.data / "pairs.json").read_text())
    for row in rows:
        row["rejected"] = row["chosen"]
    data = tmp_path / "data"
    data.mkdir()
    (data / "pairs.json").write_text(json.dumps(rows))
    info = json.loads((tiny.data / "dataset_info.json").read_text())
    (data / "dataset_info.json").write_text(json.dumps({"pairs": info["pairs"]}))
    with pytest.raises(ValueError, match=r"No row of the train dataset can train: of 48, 48 chosen and rejected"):
        train(tiny.recipe(tmp_path / "run", dataset_dir=str(data), max_steps=1))


def test_training_can_start_from_a_trained_head(tiny, tmp_path):
    first = train(tiny.recipe(tmp_path / "first", beta_mode="head", max_steps=6))
    second = train(tiny.recipe(tmp_path / "second", beta_mode="head", beta_head_path=str(first), max_steps=1))
    assert series(second, "beta/std")[0] > 0


@pytest.mark.parametrize(
    "damage,message",
    [
        (lambda folder: (folder / "beta_head.safetensors").write_bytes(b"not tensors"), "missing or damaged"),
        (lambda folder: (folder / "beta_head.json").write_text("{"), "cannot be read"),
        (lambda folder: _change_config(folder, hidden_size=64), "hidden_size is 64 there and 32 here"),
        (lambda folder: _change_config(folder, beta_mode="global"), "beta_mode is 'global' there"),
        (lambda folder: _widen(folder), "does not fit the head of this recipe"),
    ],
)
def test_a_head_that_is_damaged_or_does_not_fit_is_a_clear_error(tiny, tmp_path, damage, message):
    first = train(tiny.recipe(tmp_path / "first", beta_mode="head", max_steps=1))
    damage(first)
    with pytest.raises(ValueError, match=message):
        train(tiny.recipe(tmp_path / "second", beta_mode="head", beta_head_path=str(first), max_steps=1))


def _change_config(folder: Path, **changes) -> None:
    path = folder / "beta_head.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _widen(folder: Path) -> None:
    path = folder / "beta_head.safetensors"
    save_file({key: torch.cat([value, value]) if value.ndim else value for key, value in load_file(path).items()}, path)


def test_evaluation_alone_compares_with_the_base_model(tiny, tmp_path):
    run = train(tiny.recipe(tmp_path / "run", beta_mode="head", max_steps=6, eval_dataset="heldout", do_eval=True))
    trained = json.loads((run / "eval_results.json").read_text())
    recipe = tiny.recipe(
        tmp_path / "eval",
        beta_mode="head",
        do_train=False,
        do_eval=True,
        dataset=None,
        eval_dataset="heldout",
        adapter_name_or_path=str(run),
        beta_head_path=str(run),
    )
    alone = json.loads((train(recipe) / "eval_results.json").read_text())
    for key in ("eval_rewards/margins", "eval_margins/beta_free", "eval_beta/std", "eval_loss"):
        assert alone[key] == pytest.approx(trained[key], rel=1e-4)
