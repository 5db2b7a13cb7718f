"""Instructions beside preferences: the exact share in every step, both losses right, the same after a resume."""

import json
import os

import pytest
import torch
from conftest import history, series, train
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from ledpo_plugin.data.mixture import Mixed, MixtureBatches, separate, share_problem

SFT = {"sft_dataset": "instructions", "sft_ratio": 0.25}


def _rows(count: int, length: int = 3) -> list[dict]:
    return [{"input_ids": [i] * length, "labels": [i] * length} for i in range(count)]


def _batches(ratio: float, batch: int, accumulated: int = 1, pairs: int = 40, **options) -> MixtureBatches:
    data = Mixed(_rows(pairs), _rows(10))
    return MixtureBatches(data, ratio=ratio, batch_size=batch, batches_a_step=accumulated, seed=5, **options)


@pytest.mark.parametrize(
    ("ratio", "batch", "accumulated", "expected"),
    [(0.25, 4, 1, 1), (0.5, 4, 1, 2), (0.75, 4, 1, 3), (0.25, 2, 2, 1), (0.3, 5, 2, 3), (0.1, 2, 5, 1), (0.0, 3, 1, 0)],
)
def test_every_step_holds_the_exact_share(ratio, batch, accumulated, expected):
    batches = list(_batches(ratio, batch, accumulated))
    assert len(batches) % accumulated == 0
    assert {len(one) for one in batches} == {batch}
    for start in range(0, len(batches), accumulated):
        step = [index for one in batches[start : start + accumulated] for index in one]
        assert sum(index >= 40 for index in step) == expected
    for one in batches:
        assert any(index < 40 for index in one)


def test_an_epoch_is_one_pass_over_the_preferences_and_differs_from_the_next():
    batches = _batches(0.25, 4)
    assert len(batches) == 13  # 40 preferences, 3 a step; the fortieth would make an incomplete step
    seen = [index for one in batches for index in one if index < 40]
    assert len(seen) == len(set(seen)) == 39
    instructions = [index for one in batches for index in one if index >= 40]
    assert len(set(instructions[:10])) == 10  # all of them before one comes again
    again = list(batches)
    batches.set_epoch(1)
    assert list(batches) != again
    batches.set_epoch(0)
    assert list(batches) == again
    assert [one[:3] for one in _batches(0.25, 4, shuffled=False)][:2] == [[0, 1, 2], [3, 4, 5]]


def test_a_share_of_tokens_is_as_near_as_whole_examples_allow():
    lengths = [100] * 400 + [30] * 10
    batches = _batches(0.5, 8, pairs=400, tokens=lengths)
    preference = instruction = 0
    for one in batches:
        assert one[0] < 400
        for index in one:
            preference, instruction = preference + 100 * (index < 400), instruction + 30 * (index >= 400)
    assert abs(instruction / (preference + instruction) - 0.5) < 0.01
    assert len(batches) > 0


def test_too_few_preferences_for_a_step_are_refused():
    with pytest.raises(ValueError, match="has 2 preference examples, and one optimizer step needs 3"):
        _batches(0.25, 4, pairs=2)


@pytest.mark.parametrize(
    ("ratio", "batch", "step", "reason"),
    [
        (0.25, 4, 4, None),
        (0.25, 2, 4, None),
        (0.25, 2, 2, "0.25 of the 2 examples of an optimizer step are 0.5"),
        (0.5, 1, 2, "none would be left for preferences"),
        (0.75, 2, 8, "none would be left for preferences"),
        (0.1, 4, 4, "are 0.4, not a whole number"),
    ],
)
def test_shares_that_cannot_be_kept(ratio, batch, step, reason):
    found = share_problem(ratio, batch, step)
    assert (found is None) if reason is None else (reason in found[0])


def test_kinds_are_told_apart():
    data = Mixed(_rows(2), _rows(2))
    assert len(data) == 4
    preferences, instructions = separate([data[3], data[0]])
    assert preferences == [{"input_ids": [0] * 3, "labels": [0] * 3}]
    assert instructions == [{"input_ids": [1] * 3, "labels": [1] * 3}]


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_the_share_is_in_the_log_of_every_step(tiny, tmp_path, ratio):
    rows = [row for row in history(train(tiny.recipe(tmp_path / "run", **SFT | {"sft_ratio": ratio}))) if "loss" in row]
    assert [row["sft_share"] for row in rows] == [ratio] * 4
    for row in rows:
        if row["beta/std"] == 0 and row["step"] == 1:
            expected = (1 - ratio) * row["preference_loss"] + ratio * row["sft_nll"]
            assert row["loss"] == pytest.approx(expected, rel=1e-5)  # beta is pref_beta: no penalty yet
    assert rows[0]["preference_loss"] == pytest.approx(0.6931, abs=1e-4)
    usage = json.loads((tmp_path / "run" / "ledpo_usage.json").read_text())
    assert usage["sft_examples"] == 4 * 4 * ratio
    assert usage["examples"] == 4 * 4 * (1 - ratio)


def test_the_nll_is_that_of_the_stock_sft_stage(tiny, tmp_path):
    """One step of ledpo on all but one instruction against the model's own cross entropy on the same rows."""
    common = {"max_steps": 1, "disable_shuffling": True, "per_device_train_batch_size": 2}
    mixed = train(tiny.recipe(tmp_path / "mixed", beta_mode="fixed", **common, **SFT | {"sft_ratio": 0.5}))
    sft = train(
        tiny.recipe(
            tmp_path / "sft", stage="sft", dataset="instructions", **common | {"per_device_train_batch_size": 1}
        )
    )
    assert series(mixed, "sft_nll")[0] == pytest.approx(series(sft, "loss")[0], rel=1e-5)


@pytest.mark.parametrize(
    "changes",
    [{"pref_loss": "orpo"}, {"stage": "ledpo_kto"}, {"beta_mode": "beta_dpo", "per_device_train_batch_size": 8}],
    ids=["orpo", "kto", "beta_dpo"],
)
def test_other_losses_and_data_mix_too(tiny, tmp_path, changes):
    output = train(tiny.recipe(tmp_path / "run", **SFT, **changes))
    assert len(series(output, "sft_nll")) == 4
    assert len(set(series(output, "preference_loss"))) > 1


def test_a_share_of_zero_changes_nothing(tiny, tmp_path):
    plain = train(tiny.recipe(tmp_path / "plain"))
    zero = train(tiny.recipe(tmp_path / "zero", sft_ratio=0.0))
    assert series(plain, "loss") == series(zero, "loss")
    assert not series(plain, "sft_share")


def test_a_resumed_mixture_is_the_undisturbed_one(tiny, tmp_path):
    """In the second epoch, so that the order of the epoch matters; usage goes on counting, too."""
    steps = {"max_steps": 20, "save_strategy": "steps", "save_steps": 18, "learning_rate": 1e-3}
    whole = train(tiny.recipe(tmp_path / "whole", **SFT, **steps))
    checkpoint = whole / "checkpoint-18"
    again = train(tiny.recipe(tmp_path / "again", **SFT, **steps, resume_from_checkpoint=str(checkpoint)))
    for key in ("loss", "sft_nll", "preference_loss", "sft_share"):
        assert series(again, key)[-2:] == series(whole, key)[-2:], key
    first, second = (json.loads((run / "ledpo_usage.json").read_text()) for run in (whole, again))
    for key in ("steps", "examples", "sft_examples", "policy_tokens", "reference_tokens", "flops"):
        assert first[key] == second[key], key


def test_a_budget_of_tokens_or_operations_ends_training(tiny, tmp_path):
    steps = {"max_steps": 50, "lr_scheduler_type": "constant"}
    free = [row for row in history(train(tiny.recipe(tmp_path / "free", **steps | {"max_steps": 6}))) if "loss" in row]
    tokens = [row["policy_tokens"] + row["reference_tokens"] for row in free]
    for key, value, expected in (
        ("budget_tokens", tokens[2], 3),
        ("budget_tokens", tokens[2] + 1, 4),
        ("budget_flops", free[4]["flops"], 5),
    ):
        output = train(tiny.recipe(tmp_path / f"{key}{expected}", **steps, **{key: float(value)}))
        assert history(output)[-1]["step"] == expected, key


@pytest.mark.parametrize("strategy,saved", [("steps", [2, 3]), ("epoch", [3]), ("no", [])])
def test_the_step_at_which_a_budget_ends_training_is_saved_where_checkpoints_are(tiny, tmp_path, strategy, saved):
    free = history(train(tiny.recipe(tmp_path / "free", max_steps=3)))
    tokens = free[2]["policy_tokens"] + free[2]["reference_tokens"]
    common = {"max_steps": 50, "save_strategy": strategy, "save_steps": 2, "lr_scheduler_type": "constant"}
    output = train(tiny.recipe(tmp_path / "run", budget_tokens=float(tokens), **common))
    steps = sorted(int(path.name.split("-")[1]) for path in output.glob("checkpoint-*"))
    assert steps == saved
    for path in output.glob("checkpoint-3"):
        last, final = (load_file(folder / "adapter_model.safetensors") for folder in (path, output))
        assert all(torch.equal(last[key], final[key]) for key in final)


def test_the_cache_does_not_change_what_a_budget_counts(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("LEDPO_CACHE", str(tmp_path / "cache"))
    usages = []
    for name in ("first", "second"):
        output = train(tiny.recipe(tmp_path / name, max_steps=12))
        usages.append(json.loads((output / "ledpo_usage.json").read_text()))
    first, second = usages
    assert first["reference_tokens"] == second["reference_tokens"] == first["reference_tokens_run"] > 0
    assert second["reference_tokens_run"] == 0
    assert first["flops"] == second["flops"]


def test_operations_are_those_worked_out_by_hand(tiny, tmp_path):
    """Full tuning, no reference: 6 per weight and token but for the embedding, output layer at predictions only."""
    output = train(
        tiny.recipe(
            tmp_path / "run",
            pref_loss="simpo",
            finetuning_type="full",
            lora_rank=None,
            lora_target=None,
            max_steps=1,
            disable_response_logits=True,
        )
    )
    usage = json.loads((output / "ledpo_usage.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(tiny.model)
    shared = model.get_input_embeddings().weight.numel()
    body = sum(p.numel() for p in model.parameters()) - shared
    assert usage["predictions"] == usage["policy_tokens"]
    trained = body + shared
    assert usage["flops"] == (4 * body + 4 * shared + 2 * trained) * usage["policy_tokens"]
    assert usage["reference_tokens"] == 0
    assert usage["peak_memory_bytes"] > 10**8
    assert usage["seconds"] > 0
    assert os.path.getsize(output / "ledpo_usage.json") < 1000
    assert torch.isfinite(torch.tensor(series(output, "loss"))).all()
