"""What only shows across processes: two ranks against one, and a run killed in the middle."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import cli, series, train, write_recipe
from safetensors.torch import load_file

# A gloo rank was seen to abort like this once in about a dozen runs, from a native thread; the cause was not found.
TEARDOWN = "terminate called without an active exception"
TWO = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2"}


@pytest.mark.parametrize(
    "changes",
    [
        {"beta_mode": "head", "beta_center": True},
        {"beta_mode": "beta_dpo"},
        {"stage": "ledpo_kto", "beta_mode": "head"},
    ],
    ids=["head", "beta_dpo", "kto head"],
)
def test_two_processes_equal_one_with_the_doubled_batch(tiny, tmp_path, changes):
    common = {"max_steps": 5, "disable_shuffling": True, **changes}
    train(tiny.recipe(tmp_path / "one", per_device_train_batch_size=4, **common))
    two = tiny.recipe(tmp_path / "two", per_device_train_batch_size=2, ddp_backend="gloo", **common)
    path = write_recipe(tmp_path / "two.yaml", two | {"overwrite_output_dir": True})
    _train_with_two(path)
    # The two ranks take alternate batches of 2, so each step sees the same four rows as the single process.
    for key in ("loss", "margins/beta_free", "beta/mean", "rewards/accuracies"):
        assert series(tmp_path / "two", key) == pytest.approx(series(tmp_path / "one", key), rel=1e-3, abs=1e-5), key
    heads = [load_file(tmp_path / name / "beta_head.safetensors") for name in ("one", "two")]
    for key, value in heads[0].items():
        # A step of the head is 0.025 here. Where a gradient is small its rounding, which differs between machines and
        # numbers of processes, moves an element by a share of a step: 3.5e-4 was seen on one machine, 1e-5 on another.
        torch.testing.assert_close(heads[1][key], value, rtol=1e-3, atol=2e-3)


def _train_with_two(path: str, **env: str) -> None:
    done = cli("train", path, env=TWO | env)
    for _ in range(3):
        if TEARDOWN not in done.stderr:
            break
        done = cli("train", path, env=TWO | env)
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_fill_the_cache_with_the_very_values_of_one(tiny, tmp_path, monkeypatch):
    filled = {"beta_mode": "head", "fill_reference_cache": True, "per_device_eval_batch_size": 5}
    common = {"max_steps": 2, "disable_shuffling": True, **filled}
    monkeypatch.setenv("LEDPO_CACHE", str(tmp_path / "cache_one"))
    train(tiny.recipe(tmp_path / "one", per_device_train_batch_size=4, **common))
    two = tiny.recipe(tmp_path / "two", per_device_train_batch_size=2, ddp_backend="gloo", **common)
    path = write_recipe(tmp_path / "two.yaml", two | {"overwrite_output_dir": True})
    _train_with_two(path, LEDPO_CACHE=str(tmp_path / "cache_two"))
    one, two = (load_file(*(tmp_path / name).rglob("values.safetensors")) for name in ("cache_one", "cache_two"))
    assert one["filled"].sum() == 48  # of which 8 were trained on
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert series(tmp_path / "two", "loss") == pytest.approx(series(tmp_path / "one", "loss"), rel=1e-4)


def _kill_at(recipe: str, output: Path, step: int) -> None:
    """Start the stock command and kill it, with its children, as soon as it has logged `step`."""
    command = [str(Path(sys.executable).parent / "llamafactory-cli"), "train", recipe]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, env=dict(os.environ)
    )
    log = output / "trainer_log.jsonl"
    deadline = time.monotonic() + 200
    try:
        while time.monotonic() < deadline and process.poll() is None:
            if log.exists() and any(
                json.loads(line).get("current_steps", 0) >= step for line in log.read_text().splitlines()[:-1]
            ):
                break
            time.sleep(0.02)
        assert process.poll() is None, "the run ended before it could be killed"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_killed_run_started_again_equals_the_undisturbed_one(tiny, tmp_path):
    common = {"beta_mode": "head", "max_steps": 250, "save_strategy": "steps", "save_steps": 25, "save_total_limit": 2}
    whole = tiny.recipe(tmp_path / "whole", **common)
    done = cli("train", write_recipe(tmp_path / "whole.yaml", whole))
    assert done.returncode == 0, done.stderr[-3000:]
    path = write_recipe(tmp_path / "killed.yaml", tiny.recipe(tmp_path / "killed", **common))
    _kill_at(path, tmp_path / "killed", 60)
    assert not (tmp_path / "killed" / "adapter_model.safetensors").exists()
    saved = max(int(p.name.split("-")[1]) for p in (tmp_path / "killed").glob("checkpoint-*"))
    # As if the kill had come while the next checkpoint was being written.
    broken = tmp_path / "killed" / f"checkpoint-{saved + 25}"
    broken.mkdir()
    (broken / "adapter_model.safetensors").write_bytes(b"half")
    done = cli("train", path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"checkpoint-{saved + 25} was not written to its end" in done.stdout
    assert (tmp_path / "killed" / f"incomplete-checkpoint-{saved + 25}").is_dir()
    for key in ("loss", "beta/mean", "beta/std", "margins/beta_free"):
        assert series(tmp_path / "killed", key) == series(tmp_path / "whole", key), key
    for name in ("beta_head.safetensors", "adapter_model.safetensors"):
        a, b = load_file(tmp_path / "whole" / name), load_file(tmp_path / "killed" / name)
        assert all(torch.equal(a[key], b[key]) for key in a)
