"""The reference cache: the same numbers as without it, found again only under the same key, safe on disk."""

import dataclasses
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import series, train
from safetensors.torch import load_file, save_file

from ledpo_plugin.host.contract import host_api
from ledpo_plugin.reference import caching
from ledpo_plugin.reference.cache import KEY, VALUES, CacheError, ReferenceCache, files_hash, fingerprint, key_hash
from ledpo_plugin.workflow import fill_caches

FIELDS = {"logps": (2,), "hidden": (4,)}


def _filled(folder: Path, rows: list[int], size: int = 6, key: dict | None = None) -> ReferenceCache:
    cache = ReferenceCache(folder, key or {"model": "a"}, size, FIELDS)
    values = {"logps": torch.tensor([[i, -i] for i in rows]).float(), "hidden": torch.ones(len(rows), 4) * 7}
    cache.put(torch.tensor(rows), values)
    cache.save()
    return cache


def test_values_are_found_again_and_only_whole_batches_are(tmp_path):
    _filled(tmp_path, [0, 3])
    again = ReferenceCache(tmp_path, {"model": "a"}, 6, FIELDS)
    assert again.lookup([3, 0])["logps"].tolist() == [[3, -3], [0, 0]]
    assert again.lookup([0, 1]) is None
    assert not again.complete
    assert ReferenceCache(tmp_path, {"model": "b"}, 6, FIELDS).lookup([0]) is None


def test_values_that_are_not_finite_are_not_kept(tmp_path):
    cache = ReferenceCache(tmp_path, {}, 3, FIELDS)
    hidden = torch.ones(2, 4)
    hidden[1, 2] = float("nan")
    cache.put(torch.tensor([0, 2]), {"logps": torch.zeros(2, 2), "hidden": hidden})
    cache.save()
    assert cache.filled.tolist() == [True, False, False]


@pytest.mark.parametrize(
    "damage,note",
    [
        (lambda folder: (folder / VALUES).write_bytes(b"nothing"), "is damaged"),
        (lambda folder: (folder / VALUES).write_bytes((folder / VALUES).read_bytes()[:-20]), "is damaged"),
        (lambda folder: (folder / KEY).unlink(), "key file is missing"),
        (lambda folder: (folder / KEY).write_text(json.dumps({"model": "other"})), "or another one"),
    ],
    ids=["garbage", "truncated", "no key", "other key"],
)
def test_a_damaged_cache_is_noticed_and_rebuilt(tmp_path, damage, note):
    damage(_filled(tmp_path, [0, 1]).folder)
    cache = ReferenceCache(tmp_path, {"model": "a"}, 6, FIELDS)
    assert note in cache.note
    assert not cache.filled.any()
    _filled(tmp_path, [4])
    again = ReferenceCache(tmp_path, {"model": "a"}, 6, FIELDS)
    assert again.note == ""
    assert again.filled.tolist() == [False, False, False, False, True, False]


def test_two_writers_keep_each_other_s_rows(tmp_path):
    one, two = (ReferenceCache(tmp_path, {"model": "a"}, 6, FIELDS) for _ in range(2))
    for cache, row in ((one, 1), (two, 5)):
        cache.put(torch.tensor([row]), {"logps": torch.full((1, 2), float(row)), "hidden": torch.zeros(1, 4)})
    one.save()
    two.save()
    again = ReferenceCache(tmp_path, {"model": "a"}, 6, FIELDS)
    assert again.lookup([1, 5])["logps"].tolist() == [[1, 1], [5, 5]]


WRITER = """
import sys, torch
from pathlib import Path
from ledpo_plugin.reference.cache import ReferenceCache
size, offset = 2000, int(sys.argv[2])
cache = ReferenceCache(Path(sys.argv[1]), {"model": "a"}, size, {"logps": (2,), "hidden": (64,)})
for row in range(offset, size, 2):
    cache.put(torch.tensor([row]), {"logps": torch.full((1, 2), float(row)), "hidden": torch.full((1, 64), float(row))})
    cache.save()
    print(row, flush=True)
"""


def test_kills_while_two_processes_write_never_leave_a_wrong_value(tmp_path):
    def start(offset: int) -> subprocess.Popen:
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(offset)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    for moment in range(4):
        writers = [start(0), start(1)]
        for writer in writers:
            writer.stdout.readline()  # it writes now
        time.sleep(0.15 + 0.07 * moment)
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            writer.stdout.close()
        cache = ReferenceCache(tmp_path, {"model": "a"}, 2000, {"logps": (2,), "hidden": (64,)})
        assert cache.note == ""
        rows = cache.filled.nonzero().flatten()
        assert len(rows) >= 2
        assert torch.equal(cache.values["logps"][rows], rows.float().unsqueeze(1).expand(-1, 2))
        assert torch.equal(cache.values["hidden"][rows], rows.float().unsqueeze(1).expand(-1, 64))


def test_a_full_disk_is_a_clear_error_and_the_old_file_stays(tmp_path):
    cache = _filled(tmp_path, [0])
    before = (cache.folder / VALUES).read_bytes()
    cache.put(torch.tensor([1]), {"logps": torch.zeros(1, 2), "hidden": torch.zeros(1, 4)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16, limits[1]))
        with pytest.raises(CacheError, match=r"cannot be written .* set LEDPO_CACHE to"):
            cache.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert (cache.folder / VALUES).read_bytes() == before
    cache.save()
    assert load_file(cache.folder / VALUES)["filled"].tolist() == [1, 1, 0, 0, 0, 0]


def test_training_goes_on_when_the_cache_cannot_be_written(tiny, tmp_path, monkeypatch, caplog):
    def full(self):
        raise CacheError("The disk is full.")

    expected = train(tiny.recipe(tmp_path / "expected", beta_mode="head", disable_reference_cache=True))
    monkeypatch.setattr(ReferenceCache, "save", full)
    run = train(tiny.recipe(tmp_path / "run", beta_mode="head"))
    assert series(run, "loss") == pytest.approx(series(expected, "loss"), rel=1e-6)


# ---- the key


def _arguments() -> dict[str, SimpleNamespace]:
    return {
        "model_args": SimpleNamespace(
            model_name_or_path="hub/model",
            model_revision="main",
            adapter_name_or_path=["a", "b"],
            quantization_bit=None,
            **dict.fromkeys(caching.MODEL_SETTINGS),
            rope_scaling=None,
            compute_dtype="float32",
            flash_attn="auto",
        ),
        "data_args": SimpleNamespace(
            template="chatml", default_system=None, tool_format=None, enable_thinking=True, cutoff_len=128
        ),
        "training_args": SimpleNamespace(do_train=True, fp16=False, bf16=False, per_device_eval_batch_size=8, seed=1),
        "finetuning_args": SimpleNamespace(
            ref_model=None,
            ref_model_adapters=None,
            ref_model_quantization_bit=None,
            create_new_adapter=False,
            reference_adapter=None,
            finetuning_type="lora",
            fill_reference_cache=False,
            disable_shared_prompt=False,
            disable_response_logits=False,
        ),
    }


ROW = {
    "chosen_input_ids": [1, 2],
    "chosen_labels": [-100, 2],
    "rejected_input_ids": [1, 3],
    "rejected_labels": [-100, 3],
}


@pytest.mark.parametrize(
    "group,name,value",
    [
        ("model_args", "model_name_or_path", "hub/other"),
        ("model_args", "model_revision", "v2"),
        ("model_args", "adapter_name_or_path", ["c", "b"]),  # c is merged into the reference
        ("model_args", "quantization_bit", 4),
        ("model_args", "rope_scaling", "yarn"),
        ("model_args", "compute_dtype", "bfloat16"),
        ("model_args", "flash_attn", "disabled"),
        ("data_args", "template", "llama3"),
        ("data_args", "default_system", "You are"),
        ("data_args", "tool_format", "glm4"),
        ("data_args", "enable_thinking", False),
        ("data_args", "cutoff_len", 256),
        ("training_args", "fp16", True),
        ("training_args", "bf16", True),
        ("finetuning_args", "ref_model", "hub/reference"),
        ("finetuning_args", "create_new_adapter", True),
        ("finetuning_args", "reference_adapter", "frozen"),
        ("finetuning_args", "finetuning_type", "oft"),
        *(("model_args", name, "other") for name in caching.MODEL_SETTINGS),
        ("finetuning_args", "fill_reference_cache", True),
    ],
)
def test_everything_the_values_depend_on_changes_the_key(group, name, value):
    before = caching.cache_key(**_arguments(), data=[ROW])
    changed = _arguments()
    setattr(changed[group], name, value)
    assert key_hash(caching.cache_key(**changed, data=[ROW])) != key_hash(before)


@pytest.mark.parametrize("name", caching.RANDOM_WEIGHTS)
def test_weights_that_are_drawn_while_loading_are_those_of_a_seed(name):
    keys = []
    for seed in (1, 2):
        arguments = _arguments()
        setattr(arguments["model_args"], name, True)
        arguments["training_args"].seed = seed
        keys.append(key_hash(caching.cache_key(**arguments, data=[ROW])))
    assert keys[0] != keys[1]


def test_the_settings_in_the_key_are_keys_of_the_host():
    known = {item.name for item in dataclasses.fields(host_api().ModelArguments)}
    assert set(caching.RANDOM_WEIGHTS) <= set(caching.MODEL_SETTINGS) <= known


@pytest.mark.parametrize("name,value", [("ref_model_adapters", "c"), ("ref_model_quantization_bit", 8)])
def test_so_do_the_settings_of_a_reference_model(name, value):
    arguments = _arguments()
    arguments["finetuning_args"].ref_model = "hub/reference"
    before = key_hash(caching.cache_key(**arguments, data=[ROW]))
    setattr(arguments["finetuning_args"], name, value)
    assert key_hash(caching.cache_key(**arguments, data=[ROW])) != before


@pytest.mark.parametrize(
    "group,name,value",
    [
        ("training_args", "per_device_eval_batch_size", 4),
        ("finetuning_args", "disable_shared_prompt", True),
        ("finetuning_args", "disable_response_logits", True),
    ],
)
def test_values_of_fixed_batches_are_apart_from_those_of_other_batches(group, name, value):
    arguments = _arguments()
    setattr(arguments[group], name, value)
    assert caching.cache_key(**arguments, data=[ROW]) == caching.cache_key(**_arguments(), data=[ROW])
    keys = []
    for these in (_arguments(), arguments):
        these["finetuning_args"].fill_reference_cache = True
        keys.append(key_hash(caching.cache_key(**these, data=[ROW])))
    assert keys[0] != keys[1]


def test_the_adapter_in_training_is_not_part_of_the_reference():
    changed = _arguments()
    changed["model_args"].adapter_name_or_path = ["a", "other"]
    assert caching.cache_key(**changed, data=[ROW]) == caching.cache_key(**_arguments(), data=[ROW])


@pytest.mark.parametrize("name", list(ROW))
def test_every_token_and_label_changes_the_fingerprint(name):
    assert fingerprint([ROW]) != fingerprint([{**ROW, name: [*ROW[name][:-1], 9]}])
    assert fingerprint([ROW, ROW]) != fingerprint([ROW])


def test_changed_weights_and_fields_change_the_key(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"one")
    before = files_hash(str(model), tmp_path / "memory")
    assert files_hash(str(model), tmp_path / "memory") == before == files_hash(str(model))
    (model / "model.safetensors").write_bytes(b"two")
    os.utime(model / "model.safetensors", ns=(1, 1))
    assert files_hash(str(model), tmp_path / "memory") != before
    assert files_hash("hub/model") == "hub/model"
    folders = {ReferenceCache(tmp_path, {}, 2, fields).folder for fields in (FIELDS, {"logps": (2,)})}
    assert len(folders) == 2


# ---- in training


@pytest.mark.parametrize("mode", ["fixed", "head", "ppl", "mallows"])
def test_first_and_later_runs_equal_a_run_without_the_cache(tiny, tmp_path, monkeypatch, mode):
    monkeypatch.setenv("LEDPO_CACHE", str(tmp_path / "cache"))
    common = {"beta_mode": mode, "max_steps": 14, "eval_dataset": "heldout", "eval_strategy": "steps", "eval_steps": 7}
    without = train(tiny.recipe(tmp_path / "without", disable_reference_cache=True, **common))
    first = train(tiny.recipe(tmp_path / "first", **common))
    passes = []
    original = caching.to_values
    monkeypatch.setattr("ledpo_plugin.training.passes.to_values", lambda *a: passes.append(1) or original(*a))
    later = train(tiny.recipe(tmp_path / "later", **common))
    assert passes == []  # 12 steps are an epoch: everything was there
    for run in (first, later):
        for key in ("loss", "eval_loss", "rewards/margins", "beta/std"):
            assert series(run, key) == pytest.approx(series(without, key), rel=1e-4, abs=1e-6), key


def test_a_pair_s_values_do_not_depend_on_the_others_in_its_batch(tiny, tmp_path, monkeypatch):
    """Values from one batch size serve another."""
    monkeypatch.setenv("LEDPO_CACHE", str(tmp_path / "cache"))
    train(tiny.recipe(tmp_path / "fill", beta_mode="head", max_steps=12))
    common = {"beta_mode": "head", "max_steps": 6, "per_device_train_batch_size": 3}
    cached = train(tiny.recipe(tmp_path / "cached", **common))
    anew = train(tiny.recipe(tmp_path / "anew", disable_reference_cache=True, **common))
    assert series(cached, "loss") == pytest.approx(series(anew, "loss"), rel=1e-4)


def _forget(folder: Path, rows: list[int]) -> None:
    """Make the one cache of 48 pairs in `folder` one that was left half-filled, with nothing right in the gaps."""
    (path,) = [path for path in folder.rglob(VALUES) if load_file(path)["filled"].shape[0] == 48]
    tensors = load_file(path)
    for name, values in tensors.items():
        values[rows] = 0 if name == "filled" else 77
    save_file(tensors, path)


def test_with_a_filled_cache_losses_do_not_depend_on_what_was_there(tiny, tmp_path, monkeypatch):
    """Bit by bit: cold, after a run that cached batches of another order and size, and half-filled."""
    recipe = tiny.recipe(tmp_path / "cold", beta_mode="head", max_steps=8, per_device_eval_batch_size=5)
    recipe["fill_reference_cache"] = True
    monkeypatch.setenv("LEDPO_CACHE", str(tmp_path / "cache"))
    cold = train(recipe)
    _forget(tmp_path / "cache", [0, 1, 2, 7, 30, 31, 47])
    half = train(recipe | {"output_dir": str(tmp_path / "half")})
    monkeypatch.setenv("LEDPO_CACHE", str(tmp_path / "other"))
    other = {"output_dir": str(tmp_path / "before"), "fill_reference_cache": False, "seed": 3, "max_steps": 5}
    train(recipe | other | {"per_device_train_batch_size": 3})
    after = train(recipe | {"output_dir": str(tmp_path / "after")})
    for run in (half, after):
        for key in ("loss", "grad_norm", "rewards/margins", "beta/std"):
            assert series(run, key) == series(cold, key), key


def test_a_half_filled_cache_is_filled_in_whole_fixed_batches(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("LEDPO_CACHE", str(tmp_path / "cache"))
    recipe = tiny.recipe(tmp_path / "run", beta_mode="fixed", per_device_eval_batch_size=5, max_steps=1)
    seen = []
    original = ReferenceCache.put
    monkeypatch.setattr(
        ReferenceCache, "put", lambda self, rows, values: original(self, seen.append(rows) or rows, values)
    )
    fill_caches(recipe)
    assert [rows.tolist() for rows in seen] == [list(range(k, min(k + 5, 48))) for k in range(0, 48, 5)]
    seen.clear()
    _forget(tmp_path / "cache", [1, 2, 47])
    (note,) = fill_caches(recipe)
    assert note.startswith("3 of 48 pairs added, 48 in")
    assert [rows.tolist() for rows in seen] == [[0, 1, 2, 3, 4], [45, 46, 47]]


@pytest.mark.parametrize("changes", [{"beta_mode": "epsilon_dpo"}, {"pref_loss": "orpo"}])
def test_filling_where_there_is_no_cache_says_so_and_goes_on(tiny, tmp_path, monkeypatch, changes):
    said = []
    monkeypatch.setattr(logging.Logger, "info_rank0", lambda self, text, *args, **kwargs: said.append(str(text)))
    run = train(tiny.recipe(tmp_path / "run", max_steps=1, fill_reference_cache=True, **changes))
    assert len(series(run, "loss")) == 1
    assert any("fill_reference_cache: nothing is filled" in text for text in said)


def test_weights_that_are_not_in_place_before_training_are_refused_unless_all_is_there(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("LEDPO_CACHE", str(tmp_path / "cache"))
    recipe = tiny.recipe(tmp_path / "run", beta_mode="fixed", fill_reference_cache=True, disable_response_logits=True)
    with monkeypatch.context() as patch:
        patch.setattr("ledpo_plugin.training.trainer.weights_are_elsewhere", lambda: True)
        with pytest.raises(ValueError, match="Run `ledpo cache RECIPE` in one process first"):
            train(recipe)
    fill_caches(recipe)
    monkeypatch.setattr("ledpo_plugin.training.trainer.weights_are_elsewhere", lambda: True)
    assert len(series(train(recipe), "loss")) == 4
