"""Streamed data trains under every stage that docs/data.md promises it for, or is refused before anything loads."""

import importlib
import math

import public_inputs as inputs
import pytest
from conftest import cli, history, series, train, write_recipe
from datasets import Dataset

from ledpo_plugin.data.token_rows import has_media, is_streamed
from ledpo_plugin.host.arguments import recipe_keys
from ledpo_plugin.host.contract import TUNER
from ledpo_plugin.recipes.check import check_recipe
from ledpo_plugin.workflow import build_trainer

STREAMED = {"streaming": True, "buffer_size": 8}
HELD_OUT = {"eval_strategy": "steps", "eval_steps": 2}
TRAINS = {
    "learned beta": {},
    "fixed beta": {"beta_mode": "fixed"},
    "one worker": {"dataloader_num_workers": 1},
    "two workers": {"dataloader_num_workers": 2, "beta_mode": "fixed"},
    "rows held out": {"val_size": 8, **HELD_OUT},
    "held-out set": {"eval_dataset": "heldout", **HELD_OUT},
    "held-out sets by name": {"eval_dataset": "heldout", "eval_on_each_dataset": True, **HELD_OUT},
    "no reference": {"stage": "ledpo_orpo"},
    "rated answers": {"stage": "ledpo_kto"},
    "two sets": {"dataset": "pairs,heldout", "mix_strategy": "interleave_under", "interleave_probs": "0.5,0.5"},
    "tokens a second": {"include_effective_tokens_per_second": True},
    "no shared prompts": {"disable_shared_prompt": True, "disable_response_logits": True},
}


@pytest.mark.parametrize("name", TRAINS)
def test_streamed_data_trains(tiny, tmp_path, name):
    recipe = tiny.recipe(tmp_path / "run", **STREAMED, **TRAINS[name])
    assert check_recipe(recipe, recipe_keys(), {}) == []
    output = train(recipe)
    losses = series(output, "loss")
    assert len(losses) == 4
    if "stage" not in TRAINS[name]:
        assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    wanted = {"rows held out": "eval_loss", "held-out set": "eval_loss"}
    key = {"held-out sets by name": "eval_heldout_loss", **wanted}.get(name)
    if key:
        found = [row[key] for row in history(output) if key in row]
        assert len(found) == 2
        assert all(map(math.isfinite, found))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_rows_held_out_of_a_stream_are_trained_on_in_no_epoch(tiny, tmp_path, workers):
    """LLaMA-Factory shuffles first, anew in each epoch: other rows would be left out of the second one."""
    recipe = tiny.recipe(tmp_path / "run", **STREAMED, val_size=8, dataloader_num_workers=workers, max_steps=30)
    arguments = importlib.import_module(TUNER).get_train_args(recipe)
    trainer, _ = build_trainer(*arguments[:4])

    def seen(loader):
        return {tuple(ids[ids != 256].tolist()) for batch in loader for ids in batch["input_ids"]}

    held_out = seen(trainer.get_eval_dataloader())
    assert len(held_out) == 2 * 8  # both answers of a pair
    train_loader, orders = trainer.get_train_dataloader(), []
    for epoch in range(3):
        train_loader.set_epoch(epoch)
        orders.append([tuple(ids.tolist()) for batch in train_loader for ids in batch["input_ids"]])
        trained = {tuple(token for token in ids if token != 256) for ids in orders[-1]}
        assert len(trained) == 2 * (48 - 8)
        assert not trained & held_out
    assert orders[0] != orders[1]


def test_streamed_losses_are_those_of_the_stock_stage(tiny, tmp_path):
    own = {**STREAMED, "dataloader_num_workers": 1, "max_steps": 6, "pref_beta": 0.1}
    stock = train(tiny.recipe(tmp_path / "stock", stage="dpo", **own))
    ours = train(tiny.recipe(tmp_path / "ours", beta_mode="fixed", **own))
    assert series(ours, "loss") == pytest.approx(series(stock, "loss"), abs=1e-5)


def test_streamed_data_trains_from_the_command_line_over_several_epochs(tiny, tmp_path):
    recipe = tiny.recipe(tmp_path / "run", **STREAMED, max_steps=30, val_size=8, **HELD_OUT | {"eval_steps": 15})
    done = cli("train", write_recipe(tmp_path / "recipe.yaml", recipe))
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(series(tmp_path / "run", "loss")) == 30


def test_rows_that_cannot_be_read_are_left_out_of_a_stream(tiny, tmp_path):
    rows = inputs.rows_of((inputs.PAIRS, inputs.plain), 12)
    rows[0], rows[5] = (row for row in inputs.rows_of(inputs.SWAPPED, 2))
    folder = inputs.write_data(tmp_path / "data", "own", inputs.PAIRS, rows)
    recipe = tiny.recipe(
        tmp_path / "run", dataset_dir=str(folder), **STREAMED, per_device_train_batch_size=2, max_steps=5
    )
    assert len(series(train(recipe | {"dataset": "own"}), "loss")) == 5


REFUSED = (
    ({"max_steps": None, "num_train_epochs": 1}, "max_steps", "set max_steps"),
    ({"max_samples": 8}, "max_samples", "max_steps"),
    ({"val_size": 0.2}, "val_size", "number of rows"),
    ({"disable_shuffling": True}, "disable_shuffling", "buffer_size: 1"),
    ({"fill_reference_cache": True}, "fill_reference_cache", "no fixed rows"),
    ({"sft_dataset": "instructions", "sft_ratio": 0.5}, "sft_ratio", "streamed data has none"),
    ({"stage": "ledpo_alternate"}, "streaming", "streamed data has none"),
    ({"tokenized_path": "nowhere"}, "tokenized_path", "remove streaming"),
)


@pytest.mark.parametrize(("change", "key", "fix"), REFUSED)
def test_what_needs_data_of_known_size_is_refused_with_a_stream(tiny, tmp_path, change, key, fix):
    found = check_recipe(tiny.recipe(tmp_path / "run", **STREAMED | change), recipe_keys(), {})
    assert any(problem.key == key and fix in problem.message for problem in found), found
    without = check_recipe(tiny.recipe(tmp_path / "run", **change), recipe_keys(), {})
    assert not any("stream" in problem.message for problem in without)


def test_a_stream_is_known_by_having_no_length():
    """Since datasets 4.0 a streamed data set has `__getitem__`, for columns, and was taken for one that is loaded."""
    data = Dataset.from_list([{"images": None}, {"images": None}])
    assert not is_streamed(data)
    assert is_streamed(data.to_iterable_dataset())


def test_images_of_any_row_count_not_of_the_first_alone():
    text, image = {"images": None, "videos": None}, {"images": ["a.png"], "videos": None}
    assert not has_media(Dataset.from_list([text, text]))
    assert not has_media(Dataset.from_list([{"input_ids": [1]}]))
    assert has_media(Dataset.from_list([text, text, image]))
    assert not has_media(Dataset.from_list([{"images": []}, {"images": []}]))


@pytest.mark.parametrize("stage", ["ledpo", "ledpo_kto"])
def test_two_processes_read_the_stream_of_one_with_the_doubled_batch(tiny, tmp_path, stage):
    common = {**STREAMED, "stage": stage, "max_steps": 5}
    train(tiny.recipe(tmp_path / "one", per_device_train_batch_size=4, **common))
    two = tiny.recipe(tmp_path / "two", per_device_train_batch_size=2, ddp_backend="gloo", **common)
    done = cli("train", write_recipe(tmp_path / "two.yaml", two), env={"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2"})
    assert done.returncode == 0, done.stderr[-3000:]
    for key in ("loss", "margins/beta_free", "beta/mean"):
        assert series(tmp_path / "two", key) == pytest.approx(series(tmp_path / "one", key), rel=1e-3, abs=1e-5), key
