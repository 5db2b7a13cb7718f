"""Recipes of the stages that train on rollouts, but for their rewards: what is refused, and what is filled in."""

import json
from typing import Any

import pytest
from test_recipe import GONE, recipe_of, root  # noqa: F401  (a fixture)

from ledpo_plugin.host.arguments import recipe_keys
from ledpo_plugin.losses import LOSSES
from ledpo_plugin.recipes.check import check_recipe, resolve_recipe

PPO = {
    "stage": "ledpo_ppo",
    "reward_model": "rl_rewards:lower_case",
    "reward_model_type": "function",
    "learning_rate": 1e-5,
    "max_new_tokens": 64,
    "dataset": "instructions",
}
ALTERNATE = PPO | {"stage": "ledpo_alternate", "dataset": "pairs", "prompt_dataset": "instructions"}
HEAD = {"beta_mode": "head", "beta_head_path": "{root}/trained"}


@pytest.fixture(scope="module")
def host_keys():
    """Every recipe key of the real LLaMA-Factory and of the plugin, with its type."""
    return recipe_keys()


@pytest.fixture(scope="module", autouse=True)
def trained(root):  # noqa: F811
    """A head that was trained around pref_beta 0.2; its weights are never read here."""
    folder = root / "trained"
    folder.mkdir()
    (folder / "beta_head.safetensors").write_bytes(b"")
    (folder / "beta_head.json").write_text(json.dumps({"beta0": 0.2, "arguments": {"beta_min": 0.02, "beta_max": 2.0}}))


def problems(change: dict[str, Any], root, host_keys) -> list[Any]:  # noqa: F811
    return check_recipe(recipe_of(root, change), host_keys, {})


BAD = {
    "a batch smaller than a group": (
        PPO | {"advantage_estimator": "grpo", "num_generations": 8},
        "num_generations",
        "fewer than num_generations: 8",
        "a multiple of 8",
    ),
    "no whole groups": (
        PPO | {"num_generations": 3, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        "num_generations",
        "a rollout has 8 answers",
        "a multiple of 3",
    ),
    "nothing to compare": (
        PPO | {"advantage_estimator": "rloo", "num_generations": 1},
        "num_generations",
        "advantage_estimator rloo compares",
        "2 or more",
    ),
    "no pairs of one answer": (
        PPO | {"num_generations": 1, "rollout_pairs": True, "beta_mode": "head"},
        "num_generations",
        "rollout_pairs compares",
        "2 or more",
    ),
    "the same answers": (
        PPO | {"num_generations": 2, "do_sample": False},
        "do_sample",
        "without sampling all answers of a prompt are the same",
        "remove do_sample",
    ),
    "beams": (PPO | {"num_beams": 4}, "num_beams", "no draws from the policy", "remove num_beams"),
    "beyond the context": (
        PPO | {"model_name_or_path": "{root}/small"},
        "max_new_tokens",
        "are longer than the model's context of 256",
        "to 256 together at most",
    ),
    "no temperature": (PPO | {"temperature": 0}, "temperature", "temperature must be above 0", "usual: 1"),
    "an unknown estimator": (
        PPO | {"advantage_estimator": "gea"},
        "advantage_estimator",
        "Unknown advantage estimator 'gea'",
        "set advantage_estimator: gae",
    ),
    "a loss of pairs": (
        PPO | {"pref_loss": "ipo"},
        "pref_loss",
        "maximises rewards and trains on no preferences",
        "set stage: ledpo_alternate",
    ),
    "a loss without a reference": (
        ALTERNATE | {"pref_loss": "simpo"},
        "pref_loss",
        "hold on to a reference",
        "such as sigmoid",
    ),
    "a beta of batches": (PPO | {"beta_mode": "beta_dpo"}, "beta_mode", "from pairs of answers", "beta_mode: head"),
    "beta without a head": (
        PPO | {"kl_control": "beta"},
        "kl_control",
        "beta_mode fixed has no beta(x)",
        "set beta_mode: head",
    ),
    "a head that nobody trained": (
        PPO | {"beta_mode": "head"},
        "beta_head_path",
        "the same for all prompts",
        "set beta_head_path to a LEDPO run",
    ),
    "a head that decides nothing": (
        PPO | HEAD | {"pref_beta": 0.2, "kl_control": "fixed"},
        "beta_mode",
        "beta(x) decides nothing here: kl_control is fixed",
        "set kl_control: beta",
    ),
    "a head on another scale": (
        PPO | HEAD | {"pref_beta": 0.1},
        "pref_beta",
        "trained around pref_beta: 0.2",
        "set pref_beta: 0.2",
    ),
    "a head between other bounds": (
        PPO | HEAD | {"pref_beta": 0.2, "beta_max": 1.0},
        "beta_max",
        "trained with beta_max: 2",
        "set beta_max: 2",
    ),
    "a target without control": (
        PPO | {"ppo_target": 3.0},
        "ppo_target",
        "kl_control is fixed, and it acts only with adaptive",
        "kl_control: adaptive",
    ),
    "a value head that is not there": (
        PPO | {"advantage_estimator": "rloo", "num_generations": 2, "gae_lambda": 0.9},
        "gae_lambda",
        "rloo, which has no value head",
        "remove it",
    ),
    "beta where none is": (PPO | {"pref_beta": 0.2}, "pref_beta", "the weight of the KL is kl_coef", "set kl_coef"),
    "a head that is not trained": (
        PPO | HEAD | {"pref_beta": 0.2, "beta_penalty": 0.1},
        "beta_penalty",
        "the beta head is not trained",
        "rollout_pairs: true",
    ),
    "keys of pairs": (PPO | {"pref_ftx": 0.1}, "pref_ftx", "trains on rollouts", "remove it"),
    "keys of rollouts elsewhere": ({"kl_coef": 0.1}, "kl_coef", "it acts in ledpo_ppo or ledpo_alternate", "remove it"),
    "the host's keys of PPO elsewhere": (
        {"ppo_epochs": 2},
        "ppo_epochs",
        "it acts in ledpo_ppo or ledpo_alternate",
        "remove it",
    ),
    "a schedule of no phase": (
        ALTERNATE | {"alternate_schedule": "4"},
        "alternate_schedule",
        "not of the form k:m",
        "'4:4'",
    ),
    "an empty phase": (ALTERNATE | {"alternate_schedule": "4:0"}, "alternate_schedule", "without a step", "'4:4'"),
    "half a rollout's use": (
        ALTERNATE | {"alternate_schedule": "4:6"},
        "alternate_schedule",
        "a rollout is used for 4 steps",
        "a multiple of 4",
    ),
    "prompts that are nowhere": (
        ALTERNATE | {"prompt_dataset": "instruction"},
        "prompt_dataset",
        "defines no such data set",
        "write instructions",
    ),
    "streams": (PPO | {"streaming": True, "max_steps": 5}, "streaming", "data of known size", "remove streaming"),
    "a frozen policy": (
        ALTERNATE | {"freeze_policy": True, "resume_from_checkpoint": "{root}/model"},
        "freeze_policy",
        "rollouts are there to change it",
        "remove freeze_policy",
    ),
    "evaluation alone": (
        PPO | {"do_train": False, "dataset": GONE, "eval_dataset": "instructions"},
        "do_train",
        "evaluates only while it trains",
        "ledpo eval",
    ),
    "no vLLM": (PPO | {"rollout_backend": "vllm"}, "rollout_backend", "not installed", "rollout_backend: hf"),
    "instructions mixed in": (
        ALTERNATE | {"sft_dataset": "instructions", "sft_ratio": 0.5},
        "sft_ratio",
        "cannot be mixed into stage ledpo_alternate",
        "remove it",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_recipe_is_refused_with_reason_and_fix(name, root, host_keys):  # noqa: F811
    (root / "small").mkdir(exist_ok=True)
    (root / "small" / "config.json").write_text(json.dumps({"max_position_embeddings": 256}))
    change, key, reason, fix = BAD[name]
    found = problems(change, root, host_keys)
    mine = [problem for problem in found if problem.key == key]
    assert mine, [str(problem) for problem in found]
    assert any(reason in problem.message and fix in problem.message for problem in mine), [str(p) for p in mine]
    others = {problem.key for problem in found} - {key}
    assert others <= {"sft_dataset"}, [str(problem) for problem in found]


GOOD = {
    "ppo": (PPO, {"num_generations": 1, "kl_control": "fixed", "kl_coef": 0.05, "kl_estimator": "k1"}),
    "grpo": (
        PPO | {"advantage_estimator": "grpo", "per_device_train_batch_size": 4},
        {"num_generations": 4, "kl_coef": 0.04, "kl_estimator": "k3"},
    ),
    "adaptive": (PPO | {"kl_control": "adaptive", "ppo_target": 2.0}, {"kl_horizon": 10000}),
    "by a trained head": (
        PPO | HEAD | {"pref_beta": 0.2},
        {"kl_control": "beta", "kl_coef": 0.2, "beta_min": 0.02, "beta_max": 2.0, "beta_head_source": "reference"},
    ),
    "by a head trained along": (
        PPO | {"beta_mode": "head", "rollout_pairs": True, "per_device_train_batch_size": 4},
        {"kl_control": "beta", "kl_coef": 0.1, "num_generations": 4},
    ),
    "alternating": (
        ALTERNATE,
        {"kl_control": "beta", "kl_coef": 0.1, "alternate_schedule": "4:4", "beta_mode": "head"},
    ),
    "alternating, beta fixed": (ALTERNATE | {"beta_mode": "fixed"}, {"kl_control": "fixed", "kl_coef": 0.05}),
    "alternating, another loss": (ALTERNATE | {"pref_loss": "apo_zero"}, {"beta_mode": "head"}),
    "pairs as prompts": (PPO | {"dataset": "pairs,instructions"}, {"max_new_tokens": 64}),
    "sampling of its own": (PPO | {"temperature": 0.7, "top_p": 0.9}, {"temperature": 0.7, "top_p": 0.9, "top_k": 0}),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_right_recipe_passes_and_is_completed(name, root, host_keys, monkeypatch):  # noqa: F811
    change, filled = GOOD[name]
    recipe = recipe_of(root, {**change, "learning_rate": GONE})
    assert check_recipe(recipe, host_keys, {}) == []
    resolved = resolve_recipe(recipe)
    assert check_recipe(resolved, host_keys, {}) == []
    assert resolve_recipe(resolved) == resolved
    assert {key: resolved[key] for key in filled} == filled
    of_loss = LOSSES[resolved["pref_loss"]].recommended["learning_rate"]
    full = 1e-6 if change["stage"] == "ledpo_ppo" else of_loss
    assert resolved["learning_rate"] == pytest.approx(10 * full)  # for LoRA ten times that of full fine-tuning


def test_what_is_left_out_of_sampling_is_the_policys_own_distribution(root, host_keys):  # noqa: F811
    resolved = resolve_recipe(recipe_of(root, {**PPO, "max_new_tokens": GONE}))
    assert {key: resolved[key] for key in ("do_sample", "temperature", "top_p", "top_k", "max_new_tokens")} == {
        "do_sample": True,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "max_new_tokens": 256,
    }
