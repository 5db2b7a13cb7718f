"""The stages that train on rollouts, through LLaMA-Factory's own entry: what they compute, keep, count and refuse."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import history, series, train
from rl_rewards import breaks_while_told
from safetensors.torch import load_file

HERE = str(Path(__file__).parents[1])


@pytest.fixture(autouse=True)
def rewards_are_found(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", HERE)


def ppo(tiny, output: Path, **changes):
    """Return a recipe of stage ledpo_ppo of a few quick steps."""
    own = {
        "stage": "ledpo_ppo",
        "reward_model": "rl_rewards:lower_case",
        "reward_model_type": "function",
        "max_new_tokens": 10,
        "ppo_epochs": 2,
        "cutoff_len": 100,
        "max_steps": 4,
    }
    return tiny.recipe(output, **(own | changes))


def built(recipe):
    """Return the trainer of a recipe, before its first step."""
    from llamafactory.train.tuner import get_train_args

    from ledpo_plugin.host.data import templates_kept
    from ledpo_plugin.workflow import build_trainer

    with templates_kept():
        model_args, data_args, training_args, finetuning_args, _ = get_train_args(recipe)
        return build_trainer(model_args, data_args, training_args, finetuning_args)[0]


def plain_logps(model, prompt, answer, temperature):
    """Return log p of each token of an answer, from the logits of all positions."""
    logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1] / temperature
    return torch.log_softmax(logits.double(), dim=1).gather(1, torch.tensor(answer).unsqueeze(1)).squeeze(1)


def gae_by_hand(rewards, values, gamma, lam):
    """Return advantages and returns of one answer by their defining sums."""
    deltas = [r + gamma * (values[t + 1] if t + 1 < len(values) else 0) - values[t] for t, r in enumerate(rewards)]
    found = [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))]
    return np.array(found), np.array(found) + np.array(values)


@pytest.mark.parametrize("estimator", ["gae", "rloo", "grpo"])
def test_the_loss_and_its_gradient_are_those_of_the_formulas_on_plain_logits(tiny, tmp_path, estimator):
    """One rollout, one pass over it after the policy has moved; everything again from a plain forward pass.

    Surrogate: mean over tokens of -min(r A, clip(r) A); with gae a value loss, with grpo k3 weighted by kl_coef.
    """
    trainer = built(ppo(tiny, tmp_path, advantage_estimator=estimator, num_generations=2, kl_coef=0.3, temperature=0.8))
    phase, model = trainer.phase, trainer.model
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    if phase.value_head is not None:
        phase.value_head.layers[-1].weight.data.normal_(std=0.5)
    phase.make_rollout(0)
    rollout = phase.rollout
    with torch.no_grad():
        old = [plain_logps(model, p, a, 0.8) for p, a in zip(rollout.prompts, rollout.answers, strict=True)]
        with model.disable_adapter():
            reference = [plain_logps(model, p, a, 0.8) for p, a in zip(rollout.prompts, rollout.answers, strict=True)]
    for parameter in (p for n, p in model.named_parameters() if "lora_B" in n):
        parameter.data += 0.2 * torch.randn_like(parameter)
    update = phase.update(model, 0, 0)
    update.loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    texts = trainer.processing_class.batch_decode(rollout.answers, skip_special_tokens=True)
    from rl_rewards import lower_case

    scores = torch.tensor(lower_case([], texts), dtype=torch.float64)
    new = [plain_logps(model, p, a, 0.8) for p, a in zip(rollout.prompts, rollout.answers, strict=True)]
    tokens = sum(map(len, rollout.answers))
    value_loss = 0.0
    if estimator == "gae":
        hidden = []
        hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: hidden.append(args[0]))
        values, returns, advantages = [], [], []
        for row, (prompt, answer) in enumerate(zip(rollout.prompts, rollout.answers, strict=True)):
            model(input_ids=torch.tensor([[*prompt, *answer]]))
            state = hidden[-1][0, len(prompt) - 1 : -1]
            # ppo_value_coef 0.1: a tenth of the value loss's gradient goes on into the policy.
            state = state.detach() + 0.1 * (state - state.detach())
            normed = torch.nn.functional.layer_norm(state, state.shape[-1:])
            values.append(phase.value_head.layers(normed).squeeze(-1).double())
            rewards = (-0.3 * (old[row] - reference[row])).numpy()
            rewards[-1] += scores[row]
            kept = rollout.values[row, : len(answer)].double().tolist()
            one, target = gae_by_hand(rewards, kept, 1.0, 0.95)
            advantages.append(one)
            returns.append(torch.tensor(target))
        hook.remove()
        every = np.concatenate(advantages)
        white = [(one - every.mean()) / math.sqrt(every.var(ddof=1) + 1e-8) for one in advantages]
        advantages = [torch.tensor(one) for one in white]
        for row, value in enumerate(values):
            before = rollout.values[row, : len(value)].double()
            clipped = before + (value - before).clamp(-0.2, 0.2)
            worse = torch.maximum((value - returns[row]) ** 2, (clipped - returns[row]) ** 2)
            value_loss = value_loss + 0.5 * worse.sum() / tokens
    else:
        kl = torch.stack([(o - r).sum() for o, r in zip(old, reference, strict=True)])
        worth = scores - 0.3 * kl if estimator == "rloo" else scores
        pairs = worth.view(-1, 2)
        if estimator == "rloo":
            advantages = (pairs - pairs.flip(1)).flatten()
        else:
            spread = pairs.std(dim=1, keepdim=True)
            advantages = ((pairs - pairs.mean(1, keepdim=True)) / (spread + 1e-4)).flatten()
    loss = 0.0
    for row, now in enumerate(new):
        ratio = (now - old[row]).exp()
        clipped = ratio.clamp(0.8, 1.2)
        loss = loss - torch.minimum(ratio * advantages[row], clipped * advantages[row]).sum() / tokens
        if estimator == "grpo":
            d = reference[row] - now
            loss = loss + 0.3 * (d.exp() - 1 - d).sum() / tokens
    loss = loss + value_loss
    loss.backward()
    assert update.loss.item() == pytest.approx(loss.item(), rel=1e-4, abs=1e-6)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, rtol=2e-3, atol=2e-6, msg=name)
    assert any("lora" in name for name in found)


def test_gradient_accumulation_and_parts_of_a_rollout_change_nothing(tiny, tmp_path):
    train(ppo(tiny, tmp_path / "whole", per_device_train_batch_size=4))
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "rollout_batch_size": 3}
    train(ppo(tiny, tmp_path / "split", **split))
    for key in ("loss", "rewards/mean", "kl/sequence", "grad_norm"):
        whole, parts = series(tmp_path / "whole", key), series(tmp_path / "split", key)
        assert parts == pytest.approx(whole, rel=2e-3, abs=1e-5), key


@pytest.mark.parametrize("estimator", ["gae", "grpo"])
def test_full_fine_tuning_raises_the_reward(tiny, tmp_path, estimator):
    output = train(
        ppo(
            tiny,
            tmp_path,
            finetuning_type="full",
            lora_rank=None,
            lora_target=None,
            advantage_estimator=estimator,
            per_device_train_batch_size=32,
            learning_rate=6e-3,
            kl_coef=0.01,
            max_steps=60,
        )
    )
    rewards = series(output, "rewards/mean")
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.15
    assert np.mean(series(output, "kl/sequence")[-5:]) > 0.5  # it has left its reference, and that is seen


def test_what_a_run_says_counts_and_leaves_behind(tiny, tmp_path):
    output = train(ppo(tiny, tmp_path, eval_dataset="heldout", eval_strategy="steps", eval_steps=2))
    first = history(output)[0]
    assert first["kl/sequence"] == 0  # the policy is the reference
    assert first["rewards/mean"] == first["rewards/lower_case"]
    assert {"policy/entropy", "value/explained_variance", "responses/length", "kl/coefficient"} <= set(first)
    evaluated = [row for row in history(output) if "eval_rewards/mean" in row]
    assert len(evaluated) == 2
    assert evaluated[0]["eval_kl/sequence"] != evaluated[1]["eval_kl/sequence"]
    usage = json.loads((output / "ledpo_usage.json").read_text())
    assert usage["answers"] == 8  # 4 steps, 2 epochs of each rollout of 4
    assert usage["generated_tokens"] <= 8 * 10
    assert usage["reward_tokens"] == 0  # a function is no model
    assert usage["scored_tokens"] == usage["reference_tokens"]
    assert usage["policy_tokens"] >= 2 * usage["scored_tokens"] - 8 * 10
    assert usage["flops"] > 0
    assert (output / "ledpo_value_head.safetensors").is_file()
    assert (output / "adapter_model.safetensors").is_file()
    assert not (output / "value_head.safetensors").exists()  # that is the name of a reward model's


def test_the_budget_counts_generation(tiny, tmp_path):
    cost = json.loads((train(ppo(tiny, tmp_path / "a")) / "ledpo_usage.json").read_text())
    made = cost["rollout_prompt_tokens"] + cost["generated_tokens"] + cost["scored_tokens"]
    output = train(ppo(tiny, tmp_path / "b", max_steps=50, budget_tokens=made + 1))
    usage = json.loads((output / "ledpo_usage.json").read_text())
    assert usage["steps"] < 4  # policy and reference alone would have lasted longer


def test_answers_without_a_reward_are_left_out_and_counted(tiny, tmp_path):
    recipe = ppo(tiny, tmp_path, reward_model="rl_rewards:lower_case_with_gaps", per_device_train_batch_size=16)
    trainer = built(recipe | {"reward_max_failures": 0.9})
    trainer.phase.make_rollout(0)
    rollout = trainer.phase.rollout
    texts = trainer.processing_class.batch_decode(rollout.answers, skip_special_tokens=True)
    odd = torch.tensor([len(text) % 2 == 1 for text in texts])
    assert 0 < odd.sum() < len(odd)
    assert torch.equal(rollout.mask.any(1), ~odd)
    assert not rollout.advantages[odd].any()
    from ledpo_plugin.rewards import RewardError

    with pytest.raises(RewardError, match=r"reward_max_failures: 0\.01 allows"):
        train(ppo(tiny, tmp_path / "few", reward_model="rl_rewards:lower_case_with_gaps", reward_max_failures=0.01))


def test_a_reward_that_breaks_stops_with_a_checkpoint_from_which_the_run_goes_on(tiny, tmp_path, monkeypatch):
    from ledpo_plugin.rewards import RewardError

    flag = tmp_path / "broken"
    monkeypatch.setenv("RL_BREAK", str(flag))
    own = {"reward_model": "rl_rewards:breaks_while_told", "max_steps": 8, "save_strategy": "steps", "save_steps": 100}
    breaks_while_told.calls = 0
    whole = train(ppo(tiny, tmp_path / "whole", **own))
    flag.touch()
    breaks_while_told.calls = 0
    with pytest.raises(RewardError, match="the scorer is gone") as caught:
        train(ppo(tiny, tmp_path / "run", **own))
    assert "checkpoint-4" in str(caught.value)
    assert "run the same command again" in str(caught.value)
    flag.unlink()
    output = train(ppo(tiny, tmp_path / "run", **own))
    assert series(output, "loss") == series(whole, "loss")
    a, b = (load_file(folder / "adapter_model.safetensors") for folder in (whole, output))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_beta_head_alone_learns_from_a_rollouts_own_pairs(tiny, tmp_path):
    """The policy of a run whose head learns along, but decides nothing, is that of a run without a head."""
    common = {"num_generations": 2, "per_device_train_batch_size": 8, "kl_control": "fixed", "kl_coef": 0.05}
    plain = train(ppo(tiny, tmp_path / "plain", **common))
    learns = train(ppo(tiny, tmp_path / "learns", beta_mode="head", rollout_pairs=True, **common))
    a, b = (load_file(folder / "adapter_model.safetensors") for folder in (plain, learns))
    assert all(torch.equal(a[key], b[key]) for key in a)
    head = load_file(learns / "beta_head.safetensors")
    assert any(value.any() for key, value in head.items() if key.endswith("layers.2.weight"))  # it started at 0
    assert series(learns, "beta/mean_positive_margin")


def test_by_beta_a_prompts_kl_costs_what_its_beta_says(tiny, tmp_path):
    run = train(tiny.recipe(tmp_path / "ledpo", beta_mode="head", learning_rate=3e-3, max_steps=10))
    own = {"beta_mode": "head", "beta_head_path": str(run), "per_device_train_batch_size": 16}
    trainer = built(ppo(tiny, tmp_path / "ppo", advantage_estimator="rloo", num_generations=2, **own))
    trainer.phase.make_rollout(0)
    rollout = trainer.phase.rollout
    from ledpo_plugin.betas import BetaFeatures
    from ledpo_plugin.modeling.forward import forward_rows
    from ledpo_plugin.modeling.inference import pad_prompts

    batch = pad_prompts(rollout.prompts, trainer.processing_class, "cpu")
    with torch.no_grad(), trainer.model.disable_adapter():
        hidden = forward_rows(trainer.model, batch, wants=frozenset({"hidden"})).hidden
        beta = trainer.strategy(BetaFeatures(size=16, hidden=hidden, training=False)).beta
    assert beta.std() > 1e-3
    torch.testing.assert_close(rollout.coefficient, beta, rtol=1e-4, atol=1e-6)  # kl_coef left out: beta(x) itself


def test_in_an_alternating_run_each_phase_trains_its_own(tiny, tmp_path, monkeypatch):
    from ledpo_plugin.rl.trainer import RolloutTrainer

    heads, values, phases = [], [], []
    step = RolloutTrainer.floating_point_ops

    def watch(self, inputs):
        heads.append({k: v.clone() for k, v in self.strategy.state_dict().items()})
        values.append({k: v.clone() for k, v in self.phase.value_head.state_dict().items()})
        phases.append(self.in_ppo)
        return step(self, inputs)

    monkeypatch.setattr(RolloutTrainer, "floating_point_ops", watch)
    own = {"stage": "ledpo_alternate", "alternate_schedule": "2:2", "max_steps": 9, "cutoff_len": 160}
    output = train(ppo(tiny, tmp_path, num_generations=2, rollout_pairs=True, **own))
    # Called after the backward pass and before the step: entry n is the state that step n starts from.
    assert phases == [False, False, True, True] * 2 + [False]
    for n in range(8):
        head_moved = any((heads[n + 1][key] != heads[n][key]).any() for key in heads[n])
        value_moved = any((values[n + 1][key] != values[n][key]).any() for key in values[n])
        # At step 0 every margin is 0, and with it the head's gradient.
        assert head_moved == (not phases[n] and n > 0), n
        assert value_moved == phases[n], n
    assert series(output, "phase") == [0, 0, 1, 1, 0, 0, 1, 1, 0]
    assert len(series(output, "rewards/accuracies")) == 5  # LEDPO's steps say so
    assert len(series(output, "kl/sequence")) == 2  # of the two rollouts
    assert 1.0 in series(output, "rollout_pairs/share")
    usage = json.loads((output / "ledpo_usage.json").read_text())
    assert usage["examples"] == 5 * 4
    assert usage["answers"] == 2 * 4


def test_without_ppo_steps_in_reach_an_alternating_run_is_a_ledpo_run(tiny, tmp_path):
    common = {"max_steps": 6, "disable_shuffling": True, "beta_mode": "head", "cutoff_len": 160}
    ledpo = train(tiny.recipe(tmp_path / "ledpo", **common))
    own = {"stage": "ledpo_alternate", "alternate_schedule": "6:2"}
    both = train(ppo(tiny, tmp_path / "both", **own | common))
    assert series(both, "loss") == pytest.approx(series(ledpo, "loss"), rel=1e-5)
    assert series(both, "beta/mean") == pytest.approx(series(ledpo, "beta/mean"), rel=1e-5)


def test_prompts_come_from_pairs_and_instructions_without_repetition_or_overlength(tiny, tmp_path, caplog):
    trainer = built(ppo(tiny, tmp_path, dataset="pairs,instructions", cutoff_len=100))
    rows = trainer.train_dataset["input_ids"]
    # The instructions are the same 64 prompts as those of the 48 pairs and 16 held-out pairs, in another format.
    assert len({tuple(row) for row in rows}) == len(rows)
    assert max(map(len, rows)) <= 100
    text = trainer.processing_class.decode(rows[0])
    assert text.endswith("<|im_start|>assistant\n")
    from ledpo_plugin.data.unusable import NoUsableData

    with pytest.raises(NoUsableData, match="longer than cutoff_len"):
        built(ppo(tiny, tmp_path / "short", cutoff_len=12))


def test_answers_that_never_end_are_said(tiny, tmp_path):
    trainer = built(ppo(tiny, tmp_path, max_new_tokens=2))
    said = []
    trainer._log = said.append
    trainer.phase.make_rollout(0)
    assert any("ended within max_new_tokens: 2" in text for text in said)


def test_an_implicit_reward_comes_from_a_trained_run(tiny, tmp_path):
    run = train(tiny.recipe(tmp_path / "ledpo", beta_mode="head"))
    output = train(ppo(tiny, tmp_path / "ppo", reward_model=str(run), reward_model_type="implicit"))
    assert sorted(p.name for p in output.iterdir() if p.is_dir()) == []  # the run's adapter is not saved with ours
    assert json.loads((output / "ledpo_usage.json").read_text())["reward_tokens"] > 0
    assert any(value != 0 for value in series(output, "rewards/mean"))
