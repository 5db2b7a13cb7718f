"""Rollouts across processes, through the stock command: killed runs, two ranks against one, a server that dies."""

import os
from pathlib import Path

import pytest
import torch
from conftest import cli, series, train, untied, write_recipe
from reward_server import RewardServer, by_length
from safetensors.torch import load_file
from test_processes import _kill_at, _train_with_two
from test_rl_training import ppo

HERE = str(Path(__file__).parents[1])
SAME = ("loss", "rewards/mean", "kl/sequence", "kl/coefficient")


@pytest.fixture(autouse=True)
def rewards_are_found(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", HERE + os.pathsep + os.environ.get("PYTHONPATH", ""))


def same_weights(a: Path, b: Path, *names: str) -> bool:
    """Return whether two runs ended with the very same numbers."""
    for name in names:
        one, other = load_file(a / name), load_file(b / name)
        if one.keys() != other.keys() or not all(torch.equal(one[key], other[key]) for key in one):
            return False
    return True


KILLED = {
    "ppo": {"kl_control": "adaptive", "ppo_target": 0.05, "kl_horizon": 40, "ppo_score_norm": True, "save_steps": 15},
    "alternate": {
        "stage": "ledpo_alternate",
        "num_generations": 2,
        "rollout_pairs": True,
        "alternate_schedule": "3:2",
        "cutoff_len": 160,
        "save_steps": 14,  # in the middle of a rollout's use
    },
}


@pytest.mark.parametrize("kind", KILLED)
def test_a_killed_run_started_again_equals_the_undisturbed_one(tiny, tmp_path, kind):
    common = {"max_steps": 120, "save_strategy": "steps", "save_total_limit": 2, **KILLED[kind]}
    whole = train(ppo(tiny, tmp_path / "whole", **common))
    path = write_recipe(tmp_path / "killed.yaml", ppo(tiny, tmp_path / "killed", **common))
    _kill_at(path, tmp_path / "killed", 40)
    assert not (tmp_path / "killed" / "adapter_model.safetensors").exists()
    done = cli("train", path)
    assert done.returncode == 0, done.stderr[-3000:]
    for key in SAME:
        assert series(tmp_path / "killed", key) == series(whole, key), key
    names = ("adapter_model.safetensors", "beta_head.safetensors", "ledpo_value_head.safetensors")
    assert same_weights(whole, tmp_path / "killed", *names)


@pytest.mark.parametrize("kind", ["ppo", "alternate"])
def test_two_processes_equal_one_with_the_doubled_batch(tiny, tmp_path, kind):
    """Each answer has a random stream of its own, so that both draw the same answers."""
    own = {"ppo": {"ppo_whiten_rewards": True}, "alternate": {"stage": "ledpo_alternate", "alternate_schedule": "2:2"}}
    common = {"max_steps": 6, "disable_shuffling": True, "num_generations": 2, "cutoff_len": 160, **own[kind]}
    train(ppo(tiny, tmp_path / "one", per_device_train_batch_size=8, **common))
    two = ppo(tiny, tmp_path / "two", per_device_train_batch_size=4, ddp_backend="gloo", **common)
    _train_with_two(write_recipe(tmp_path / "two.yaml", two | {"overwrite_output_dir": True}))
    for key in (*SAME, "responses/length", "rollouts"):
        one, other = series(tmp_path / "one", key), series(tmp_path / "two", key)
        assert other == pytest.approx(one, rel=2e-3, abs=1e-5), key
    a, b = (load_file(tmp_path / name / "ledpo_value_head.safetensors") for name in ("one", "two"))
    for key, value in a.items():
        torch.testing.assert_close(b[key], value, rtol=1e-2, atol=2e-3)


def test_a_reward_server_that_dies_stops_the_run_with_a_checkpoint_and_back_again_it_goes_on(tiny, tmp_path):
    dead = False

    def behave(texts, n):
        return 503 if dead and n > 3 else by_length(texts)

    with RewardServer(behave) as server:
        own = {"reward_model": server.url, "reward_model_type": "api", "reward_retries": 1, "reward_timeout": 5}
        whole = train(ppo(tiny, tmp_path / "whole", max_steps=8, **own))
        server.requests.clear()
        dead = True
        path = write_recipe(tmp_path / "run.yaml", ppo(tiny, tmp_path / "run", max_steps=8, save_steps=100, **own))
        done = cli("train", path)
        assert done.returncode != 0
        assert "gives no scores (2 tries): it answers 503" in done.stderr
        assert "run the same command again" in done.stderr
        saved = list((tmp_path / "run").glob("checkpoint-*"))
        assert len(saved) == 1
        dead = False
        done = cli("train", path)
        assert done.returncode == 0, done.stderr[-3000:]
    assert series(tmp_path / "run", "loss") == series(whole, "loss")
    assert server.requests[0]["model"] == "model"
    assert server.requests[0]["messages"][0].startswith("<|im_start|>user")


def test_every_kind_of_reward_at_once_through_the_stock_command(tiny, tmp_path):
    """Two reward models of stage rm, a trained LEDPO run, a server and a function, added up by their weights."""
    changes = {"learning_rate": 2.0e-2, "max_steps": 4}
    train(tiny.recipe(tmp_path / "liked", stage="rm", **changes))
    other = str(untied(tiny, tmp_path / "other"))
    train(tiny.recipe(tmp_path / "whole", stage="rm", model_name_or_path=other, finetuning_type="full", **changes))
    train(tiny.recipe(tmp_path / "run", stage="ledpo", **changes))
    with RewardServer() as server:
        places = [*(str(tmp_path / name) for name in ("liked", "whole", "run")), server.url, "rl_rewards:lower_case"]
        weights = (0.5, 0.25, 2.0, 1.0, 0.0)
        own = {
            "reward_model": ",".join(places),
            "reward_model_type": "lora,full,implicit,api,function",
            "reward_weights": ",".join(map(str, weights)),
        }
        output = tmp_path / "policy"
        done = cli("train", write_recipe(tmp_path / "policy.yaml", ppo(tiny, output, logging_steps=1, **own)))
        assert done.returncode == 0, done.stderr[-3000:]
    names = ("liked", "whole", "run", "api", "lower_case")
    parts = [series(output, f"rewards/{name}") for name in names]
    total = series(output, "rewards/mean")
    assert len(total) == len(parts[0]) > 0
    for mean, *each in zip(total, *parts, strict=True):
        assert mean == pytest.approx(sum(w * part for w, part in zip(weights, each, strict=True)), rel=1e-4, abs=1e-5)
    assert all(any(value != 0 for value in part) for part in parts)
    kept = load_file(output / "adapter_model.safetensors")
    assert kept.keys() == load_file(tmp_path / "run" / "adapter_model.safetensors").keys()  # the policy's alone
