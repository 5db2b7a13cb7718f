"""Rewards: reward models of the real stage rm, runs of the real stage ledpo, a real server, functions; bad input."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Tiny, series, train, untied, write_recipe
from reward_server import RewardServer, by_length
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ledpo_plugin.common.problem import Problem
from ledpo_plugin.modeling.fused_lora import fuse
from ledpo_plugin.recipes.reading import read
from ledpo_plugin.recipes.rewards import check_reward_files, check_rewards, idle_in
from ledpo_plugin.rewards import RewardBatch, RewardError, Rewards, build_rewards
from ledpo_plugin.rewards._api import KEY, ServerReward
from ledpo_plugin.rewards._function import FunctionReward
from ledpo_plugin.rewards._wanted import Wanted, wanted

# ---- reward models, runs and policies, all trained or loaded by LLaMA-Factory


def _train_rm(tiny: Tiny, output: Path, **changes: Any) -> Path:
    """Train a reward model by LLaMA-Factory's own stage rm, far enough from zero that its scores differ."""
    return train(tiny.recipe(output, stage="rm", learning_rate=2.0e-2, max_steps=6, **changes))


@pytest.fixture(scope="module")
def rm_lora(tiny, tmp_path_factory) -> Path:
    """A reward model that is an adapter, at other layers and of another rank than the policy's."""
    output = tmp_path_factory.mktemp("rm") / "lora"
    return _train_rm(tiny, output, lora_rank=8, lora_target="q_proj,up_proj,down_proj", lora_dropout=0.1)


@pytest.fixture(scope="module")
def other(tiny, tmp_path_factory) -> Path:
    """Another model with the same tokenizer, of another width."""
    return untied(tiny, tmp_path_factory.mktemp("other") / "model", hidden_size=48)


@pytest.fixture(scope="module")
def rm_full(tiny, other, tmp_path_factory) -> Path:
    """A reward model with weights of its own, and of another width than the policy."""
    output = tmp_path_factory.mktemp("rm") / "full"
    return _train_rm(tiny, output, finetuning_type="full", model_name_or_path=str(other))


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory) -> Path:
    """A run of stage ledpo with a learned beta(x) that differs between prompts, and its last checkpoint."""
    changes = {"beta_lr_ratio": 1.0, "max_steps": 12, "learning_rate": 1.0e-2, "lora_rank": 6}
    output = tmp_path_factory.mktemp("run") / "ledpo"
    return train(tiny.recipe(output, **changes, save_strategy="steps", save_steps=12))


@pytest.fixture(scope="module")
def run_full(tiny, tmp_path_factory) -> Path:
    """A run that trained all weights, with a loss per token and one beta."""
    changes = {"pref_loss": "ipo", "beta_mode": "fixed", "finetuning_type": "full", "learning_rate": 1.0e-3}
    return train(tiny.recipe(tmp_path_factory.mktemp("run") / "full", **changes))


def load(tiny: Tiny, output: Path, **changes: Any) -> SimpleNamespace:
    """Load a policy as the plugin's workflow does, up to where rewards are built."""
    from llamafactory.train.tuner import get_train_args

    from ledpo_plugin.host.contract import host_api
    from ledpo_plugin.host.data import templates_kept

    host = host_api()
    own = {key: changes.pop(key) for key in list(changes) if key.startswith("reward_")}
    model_args, data_args, training_args, finetuning_args, _ = get_train_args(tiny.recipe(output, **changes))
    for key, value in own.items():
        setattr(finetuning_args, key, value)
    tokenizer = host.load_tokenizer(model_args)["tokenizer"]
    with templates_kept():
        template = host.get_template(tokenizer, data_args)
    torch.manual_seed(5)
    model = host.load_model(tokenizer, model_args, finetuning_args, training_args.do_train)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)  # an adapter that says something
    return SimpleNamespace(
        model=model.eval(),
        tokenizer=tokenizer,
        template=template,
        model_args=model_args,
        data_args=data_args,
        training_args=training_args,
        finetuning_args=finetuning_args,
    )


def build(policy: SimpleNamespace) -> tuple[Rewards, list[str]]:
    """Return the rewards of a loaded policy, and what the log says."""
    said: list[str] = []
    return build_rewards(**vars(policy), log=said.append), said


PROMPTS = ("a river", "what is the number of the morning island?", "candle", "garden and copper", "2 + 2", "é 北")
ANSWERS = ("signal", "the winter bridge", "x" * 30, "no", "4", "one\ntwo")


def batch_of(policy: SimpleNamespace) -> RewardBatch:
    """Return answers as a rollout gives them: the template's prompt, the answer and its end; more than one pass."""
    prompts, answers = [], []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        ids = policy.template.encode_oneturn(policy.tokenizer, messages)
        prompts.append(ids[0])
        answers.append(ids[1])
    return RewardBatch.from_ids(prompts, answers, policy.tokenizer)


def stock_scores(model: nn.Module, batch: RewardBatch) -> Tensor:
    """Return LLaMA-Factory's own scores: trl's model with a value head, the value at the last token."""
    with torch.no_grad():
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        values = model.eval()(**inputs, return_dict=True, use_cache=False)[-1]
    return values.gather(-1, batch.attention_mask.sum(-1, keepdim=True) - 1).squeeze(1)


def state(model: nn.Module, folder: Path) -> dict[str, Any]:
    """Return everything of a policy that rewards must leave as it is: what it says, trains, is and saves."""
    with torch.no_grad():
        logits = model(input_ids=torch.arange(24).view(2, 12)).logits
    if hasattr(model, "peft_config"):
        model.save_pretrained(folder, selected_adapters=["default"])
    else:
        model.save_pretrained(folder)
    own = {name: p for name, p in model.named_parameters() if "ledpo_reward" not in name}
    return {
        "logits": logits.tolist(),
        "flags": {name: p.requires_grad for name, p in own.items()},
        "weights": {name: p.detach().tolist() for name, p in own.items()},
        "modes": {name: m.training for name, m in model.named_modules() if "ledpo_reward" not in name},
        "active": getattr(model, "active_adapters", None),
        "saved": {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()},
    }


def train_step(model: nn.Module) -> dict[str, Tensor]:
    """Return the gradients of one step of training on the policy."""
    model.train()
    ids = torch.arange(24).view(2, 12)
    model(input_ids=ids, labels=ids).loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.eval()
    return gradients


# ---- reward models of stage rm


def test_adapter_scores_are_llama_factory_s(tiny, rm_lora, tmp_path):
    from llamafactory.model import load_model
    from llamafactory.train.ppo.ppo_utils import replace_model
    from llamafactory.train.trainer_utils import create_reward_model

    policy = load(tiny, tmp_path, reward_model=str(rm_lora), reward_model_type="lora")
    rewards, said = build(policy)
    batch = batch_of(policy)
    output = rewards.score(batch, policy.model)
    stock = load_model(policy.tokenizer, policy.model_args, policy.finetuning_args, True, add_valuehead=True)
    create_reward_model(stock, policy.model_args, policy.finetuning_args)
    replace_model(stock, target="reward")
    expected = stock_scores(stock, batch)
    assert expected.std() > 0.01
    torch.testing.assert_close(output.total, expected, rtol=1e-5, atol=1e-5)
    assert output.total.dtype == torch.float32
    assert not output.failed.any()
    assert rewards.names == ["lora"]
    assert rewards.passes == 1
    assert said == [f"Reward lora: the adapter {rm_lora} on the policy's own base model."]


def test_policy_is_what_it_was_beside_a_reward_adapter(tiny, rm_lora, run, tmp_path):
    sources = {"reward_model": f"{rm_lora},{run}", "reward_model_type": "lora,implicit"}
    policy = load(tiny, tmp_path / "out", **sources)
    model, batch = policy.model, batch_of(policy)
    parameters = sum(p.numel() for p in model.parameters())
    before, gradients = state(model, tmp_path / "before"), train_step(model)
    assert any(before["flags"].values())
    rewards, _ = build(policy)
    assert state(model, tmp_path / "built") == before
    added = sum(p.numel() for p in model.parameters()) - parameters
    adapters = [load_file(folder / "adapter_model.safetensors") for folder in (rm_lora, run)]
    assert added == sum(tensor.numel() for adapter in adapters for tensor in adapter.values())
    rewards.score(batch, model)
    assert state(model, tmp_path / "scored") == before
    after = train_step(model)
    assert after.keys() == gradients.keys()
    assert all(torch.equal(after[name], gradients[name]) for name in gradients)


def test_training_mode_is_kept_and_not_scored_in(tiny, rm_lora, tmp_path):
    policy = load(tiny, tmp_path, reward_model=str(rm_lora), reward_model_type="lora", lora_dropout=0.5)
    policy.model.train()
    rewards, _ = build(policy)
    own = [module for name, module in policy.model.named_modules() if "ledpo_reward" not in name]
    assert all(module.training for module in own)
    with pytest.raises(ValueError, match="training mode"):
        rewards.score(batch_of(policy), policy.model)


def test_fused_policy_scores_the_same_and_stays_fused(tiny, rm_lora, run, tmp_path):
    sources = {"reward_model": f"{rm_lora},{run}", "reward_model_type": "lora,implicit"}
    policy = load(tiny, tmp_path / "out", **sources)
    rewards, _ = build(policy)
    batch = batch_of(policy)
    plain, gradients = rewards.score(batch, policy.model), train_step(policy.model)
    assert fuse(policy.model) == 16
    fused = rewards.score(batch, policy.model)
    for name in rewards.names:
        torch.testing.assert_close(fused.parts[name], plain.parts[name], rtol=1e-6, atol=1e-6)
    after = train_step(policy.model)
    assert after.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(after[name], gradient, rtol=1e-3, atol=1e-6)


def test_rows_do_not_depend_on_their_batch(tiny, rm_lora, run, tmp_path):
    sources = {"reward_model": f"{rm_lora},{run}", "reward_model_type": "lora,implicit"}
    policy = load(tiny, tmp_path, **sources)
    rewards, _ = build(policy)
    together = rewards.score(batch_of(policy), policy.model)
    for i, (prompt, answer) in enumerate(zip(*_ids(batch_of(policy)), strict=True)):
        alone = rewards.score(RewardBatch.from_ids([prompt], [answer], policy.tokenizer), policy.model)
        for name in rewards.names:
            torch.testing.assert_close(alone.parts[name][0], together.parts[name][i], rtol=1e-4, atol=1e-5)


def _ids(batch: RewardBatch) -> tuple[list[list[int]], list[list[int]]]:
    prompts, answers = [], []
    for row, start, length in zip(batch.input_ids.tolist(), batch.prompt_lengths, batch.response_lengths, strict=True):
        prompts.append(row[:start])
        answers.append(row[start : start + length])
    return prompts, answers


def test_empty_answer_is_scored_by_its_prompt_but_has_no_likelihood(tiny, rm_lora, run, tmp_path):
    sources = {"reward_model": f"{rm_lora},{run}", "reward_model_type": "lora,implicit"}
    policy = load(tiny, tmp_path, **sources)
    rewards, _ = build(policy)
    prompts, answers = _ids(batch_of(policy))
    output = rewards.score(RewardBatch.from_ids(prompts, [[], *answers[1:]], policy.tokenizer), policy.model)
    assert torch.isfinite(output.parts["lora"]).all()
    assert torch.isnan(output.parts["ledpo"]).tolist() == [True] + [False] * 5
    assert output.failed.tolist() == [True] + [False] * 5
    nothing = rewards.score(RewardBatch.from_ids(prompts, [[]] * 6, policy.tokenizer), policy.model)
    assert nothing.failed.all()
    assert torch.isnan(nothing.total).all()


def test_full_scores_are_llama_factory_s(tiny, rm_full, tmp_path):
    from llamafactory.hparams import FinetuningArguments, ModelArguments
    from llamafactory.model import load_model

    policy = load(tiny, tmp_path / "out", reward_model=str(rm_full), reward_model_type="full")
    before = state(policy.model, tmp_path / "before")
    rewards, _ = build(policy)
    batch = batch_of(policy)
    output = rewards.score(batch, policy.model)
    assert state(policy.model, tmp_path / "after") == before
    args = ModelArguments.copyfrom(policy.model_args, model_name_or_path=str(rm_full))
    stock = load_model(policy.tokenizer, args, FinetuningArguments(), False, add_valuehead=True)
    expected = stock_scores(stock, batch)
    assert expected.std() > 0.01
    torch.testing.assert_close(output.total, expected, rtol=1e-5, atol=1e-5)
    assert rewards.passes > 1  # it is wider than the policy


def test_adapter_merged_into_a_model_of_its_own_scores_as_beside_the_policy(tiny, rm_lora, tmp_path):
    own = {"reward_model": str(tiny.model), "reward_model_type": "full", "reward_model_adapters": str(rm_lora)}
    full = load(tiny, tmp_path / "full", finetuning_type="full", **own)
    lora = load(tiny, tmp_path / "lora", reward_model=str(rm_lora), reward_model_type="lora")
    apart, beside = build(full)[0], build(lora)[0]
    batch = batch_of(lora)
    torch.testing.assert_close(
        apart.score(batch, full.model).total, beside.score(batch, lora.model).total, rtol=1e-4, atol=1e-5
    )


# ---- the implicit reward of a run


def evaluated(tiny: Tiny, run: Path, output: Path, **changes: Any) -> tuple[Any, dict[str, Tensor]]:
    """Return held-out pairs and the columns that a trainer with the run's weights and head reports of them."""
    from llamafactory.train.tuner import get_train_args

    from ledpo_plugin.host.data import templates_kept
    from ledpo_plugin.workflow import build_trainer

    recipe = tiny.recipe(output, eval_dataset="heldout", **changes)
    with templates_kept():
        model_args, data_args, training_args, finetuning_args, _ = get_train_args(recipe)
        trainer, data = build_trainer(model_args, data_args, training_args, finetuning_args)
    trainer.evaluate()
    return data["eval_dataset"], trainer.evaluated["eval"]


def pairs_of(data: Any, policy: SimpleNamespace, kind: str) -> RewardBatch:
    """Return the answers of a tokenized data set of pairs, token for token."""
    prompts, answers = [], []
    for row in data:
        ids, labels = row[f"{kind}_input_ids"], row[f"{kind}_labels"]
        start = next(i for i, label in enumerate(labels) if label != -100)
        prompts.append(ids[:start])
        answers.append(ids[start:])
    return RewardBatch.from_ids(prompts, answers, policy.tokenizer)


def assert_rewards_are(columns: dict[str, Tensor], data: Any, policy: SimpleNamespace) -> list[str]:
    rewards, said = build(policy)
    for kind in ("chosen", "rejected"):
        output = rewards.score(pairs_of(data, policy, kind), policy.model)
        assert columns[f"{kind}_rewards"].std() > 1e-3
        torch.testing.assert_close(output.total, columns[f"{kind}_rewards"], rtol=1e-4, atol=1e-5)
    return said


@pytest.fixture(scope="module")
def told(tiny, run, tmp_path_factory) -> tuple[Any, dict[str, Tensor]]:
    """What the trainer says of held-out pairs by the weights and the head of `run`."""
    own = {"adapter_name_or_path": str(run), "beta_head_path": str(run)}
    return evaluated(tiny, run, tmp_path_factory.mktemp("told") / "out", **own)


def test_implicit_rewards_are_the_run_s_own(tiny, run, told, tmp_path):
    policy = load(tiny, tmp_path / "out", reward_model=str(run), reward_model_type="implicit")
    before = state(policy.model, tmp_path / "before")
    said = assert_rewards_are(told[1], told[0], policy)
    assert state(policy.model, tmp_path / "after") == before
    assert told[1]["beta"].std() > 1e-3
    assert said == [f"Reward ledpo: the implicit reward of {run}, on the policy's own base model."]


def test_checkpoint_of_a_run_serves_and_so_does_a_policy_on_another_base(tiny, run, other, told, tmp_path):
    checkpoint = run / "checkpoint-12"
    changes = {"model_name_or_path": str(other), "reward_model": str(checkpoint), "reward_model_type": "implicit"}
    policy = load(tiny, tmp_path / "out", **changes)
    before = state(policy.model, tmp_path / "before")
    said = assert_rewards_are(told[1], told[0], policy)
    assert state(policy.model, tmp_path / "after") == before
    assert said[0].endswith("1 more in memory.")


def test_policy_that_stands_on_a_merged_adapter_does_not_share_its_base(tiny, run, told, tmp_path):
    """The run's adapter was trained on the plain base: on one with more merged into it, it says other things."""
    own = {"adapter_name_or_path": str(run), "create_new_adapter": True}
    policy = load(tiny, tmp_path / "out", reward_model=str(run), reward_model_type="implicit", **own)
    assert assert_rewards_are(told[1], told[0], policy)[0].endswith("1 more in memory.")


def test_run_with_weights_of_its_own_is_compared_with_the_policy_s_base(tiny, run_full, tmp_path):
    own = {"pref_loss": "ipo", "beta_mode": "fixed", "finetuning_type": "full", "ref_model": str(tiny.model)}
    data, columns = evaluated(tiny, run_full, tmp_path / "told", model_name_or_path=str(run_full), **own)
    policy = load(tiny, tmp_path / "out", reward_model=str(run_full), reward_model_type="implicit")
    assert assert_rewards_are(columns, data, policy)[0].endswith("1 more in memory.")
    whole = load(
        tiny, tmp_path / "whole", finetuning_type="full", reward_model=str(run_full), reward_model_type="implicit"
    )
    assert assert_rewards_are(columns, data, whole)[0].endswith("2 more in memory.")


def test_run_with_a_reference_of_its_own_is_compared_with_it(tiny, run, run_full, tmp_path):
    """Its rewards are those of its own reference, not of the base below its adapter."""
    changes = {"max_steps": 2, "ref_model": str(run_full), "learning_rate": 1.0e-2}
    output = train(tiny.recipe(tmp_path / "trained", **changes))
    own = {"adapter_name_or_path": str(output), "beta_head_path": str(output), "ref_model": str(run_full)}
    data, columns = evaluated(tiny, output, tmp_path / "told", **own)
    policy = load(tiny, tmp_path / "out", reward_model=str(output), reward_model_type="implicit")
    assert_rewards_are(columns, data, policy)


# ---- models that do not fit


def changed(folder: Path, source: Path, **files: Any) -> Path:
    """Return a copy of a folder with files removed (None), or replaced by what a function makes of their bytes."""
    shutil.copytree(source, folder)
    for name, change in files.items():
        path = folder / name.replace("__", ".")
        if change is None:
            path.unlink()
        else:
            path.write_bytes(change(path.read_bytes() if path.exists() else b""))
    return folder


def refused(policy: SimpleNamespace) -> str:
    with pytest.raises(RewardError) as error:
        build(policy)
    return str(error.value)


def test_reward_models_that_do_not_fit_are_refused(tiny, rm_lora, rm_full, other, run, tmp_path):
    def policy(where: Path | str, kind: str, **changes: Any) -> SimpleNamespace:
        changes = {"reward_model": str(where), "reward_model_type": kind, **changes}
        return load(tiny, tmp_path / "out", **changes)

    headless = changed(tmp_path / "headless", rm_lora, value_head__safetensors=None)
    assert "it is not the output of stage rm. Fix: name" in refused(policy(headless, "lora"))
    assert "it is not the output of stage rm. Fix: name" in refused(policy(tiny.model, "full"))
    pickled = changed(tmp_path / "pickled", headless, value_head__bin=lambda _: b"not opened")
    assert "value_head.bin, which is pickled and is not opened" in refused(policy(pickled, "lora"))
    damaged = changed(tmp_path / "damaged", rm_lora, value_head__safetensors=lambda data: data[:20])
    assert "is damaged or no value head" in refused(policy(damaged, "lora"))
    shutil.copy(rm_full / "value_head.safetensors", damaged / "value_head.safetensors")
    assert "is for a hidden state of 48 numbers, and the model's has 32" in refused(policy(damaged, "lora"))
    pickled_adapter = changed(
        tmp_path / "bin", rm_lora, adapter_model__safetensors=None, adapter_model__bin=lambda _: b"x"
    )
    assert "adapters are read from safetensors only" in refused(policy(pickled_adapter, "lora"))
    assert "the policy has none" in refused(policy(rm_lora, "lora", finetuning_type="full"))
    assert "cannot be fetched from the hub" in refused(policy("nobody/nothing", "lora"))
    assert "it is no LEDPO run" in refused(policy(rm_lora, "implicit"))

    for folder in (rm_lora, run):
        kind = "lora" if folder == rm_lora else "implicit"
        wide = load(tiny, tmp_path / "out", model_name_or_path=str(other))
        before = state(wide.model, tmp_path / f"before {kind}")
        wide.finetuning_args.reward_model, wide.finetuning_args.reward_model_type = str(folder), kind
        if kind == "implicit":
            build(wide)  # on a base of its own
        else:
            (tmp_path / "wide").mkdir()
            forged = changed(tmp_path / "wide" / "rm", folder)
            shutil.copy(rm_full / "value_head.safetensors", forged / "value_head.safetensors")
            wide.finetuning_args.reward_model = str(forged)
            assert "does not fit the policy's model: " in refused(wide)
        assert state(wide.model, tmp_path / f"after {kind}") == before


def test_adapter_with_a_missing_or_a_further_weight_is_refused(tiny, rm_lora, tmp_path):
    weights = load_file(rm_lora / "adapter_model.safetensors")
    first = sorted(weights)[0]
    for name, tensors in {
        "less": {key: tensor for key, tensor in weights.items() if key != first},
        "more": weights | {first.replace("layers.0", "layers.7"): weights[first].clone()},
    }.items():
        folder = changed(tmp_path / name, rm_lora)
        save_file(tensors, folder / "adapter_model.safetensors")
        policy = load(tiny, tmp_path / "out", reward_model=str(folder), reward_model_type="lora")
        assert "is without its place" in refused(policy)


def _other_tokenizer(folder: Path, source: Path) -> Path:
    """Return a copy of a model of which two tokens have changed places."""

    def swapped(data: bytes) -> bytes:
        file = json.loads(data)
        vocabulary = file["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
        return json.dumps(file).encode()

    return changed(folder, source, tokenizer__json=swapped)


def test_models_with_another_tokenizer_are_refused(tiny, rm_full, run_full, tmp_path):
    for kind, source in {"full": rm_full, "implicit": run_full}.items():
        folder = _other_tokenizer(tmp_path / kind, source)
        policy = load(tiny, tmp_path / "out", reward_model=str(folder), reward_model_type=kind)
        message = refused(policy)
        assert "has another tokenizer than the policy: 2 tokens differ, such as 'a'" in message
        assert "reward_model_type: api" in message


def test_model_that_scales_its_hidden_state_is_refused(tiny, rm_lora, tmp_path):
    """The value head was trained on the last hidden state; what the output layer reads must be that."""
    policy = load(tiny, tmp_path / "out", reward_model=str(rm_lora), reward_model_type="lora")
    inner = policy.model.get_base_model().model
    plain = inner.forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        output = plain(*args, **kwargs)
        output.last_hidden_state = output.last_hidden_state * 2
        return output

    inner.forward = scaled
    assert "reads something else than the last hidden state" in refused(policy)


# ---- servers


def asked(url: str, slept: list[float] | None = None, said: list[str] | None = None, **changes: Any) -> ServerReward:
    """Return a source that asks a server; it notes how long it would wait instead of waiting."""
    options = {"timeout": 5.0, "retries": 3, "batch_size": 4} | changes
    slept, said = ([] if slept is None else slept), ([] if said is None else said)
    return ServerReward(url, **options, log=said.append, sleep=slept.append)


class Letters:
    """A tokenizer of letters, for batches that no model reads."""

    pad_token_id = 0

    def batch_decode(self, rows: Any, skip_special_tokens: bool) -> list[str]:
        return ["".join(chr(97 + token) for token in row) for row in rows]


def letters(count: int = 3) -> RewardBatch:
    """Return a batch of short answers: prompt "b", answers "c", "cd", "cde" and so on."""
    return RewardBatch.from_ids([[1]] * count, [list(range(2, 3 + i)) for i in range(count)], Letters())


NOWHERE = nn.Linear(1, 1).eval()  # a policy that no source of the test asks


def test_server_gets_llama_factory_s_format_in_pieces(monkeypatch):
    monkeypatch.setenv(KEY, "sesame")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # a proxy for the world outside
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with RewardServer() as server:
        scores = asked(server.url, batch_size=2).score(letters(5), NOWHERE)
    texts = ["bc", "bcd", "bcde", "bcdef", "bcdefg"]
    assert server.requests == [{"model": "model", "messages": texts[i : i + 2]} for i in (0, 2, 4)]
    assert scores.tolist() == pytest.approx(by_length(texts))
    assert server.headers[0]["Authorization"] == "Bearer sesame"


def test_no_key_is_sent_where_there_is_none(monkeypatch):
    monkeypatch.delenv(KEY, raising=False)
    with RewardServer() as server:
        asked(server.url).score(letters(), NOWHERE)
    assert "Authorization" not in server.headers[0]


PASSING: dict[str, Callable[[Any, int], Any]] = {
    "500": lambda texts, n: 500,
    "503": lambda texts, n: 503,
    "408": lambda texts, n: 408,
    "breaks off": lambda texts, n: lambda handler: handler.break_off(),
    "no JSON": lambda texts, n: b"<html>starting up</html>",
    "no scores": lambda texts, n: {"rewards": [1.0]},
    "scores are no list": lambda texts, n: {"scores": 3},
    "too few": lambda texts, n: [1.0],
    "too many": lambda texts, n: [1.0] * 9,
    "NaN": lambda texts, n: b'{"scores": [NaN, NaN, NaN]}',
    "infinite": lambda texts, n: b'{"scores": [Infinity, 1e999, -Infinity]}',
    "text": lambda texts, n: ["1", "2", "3"],
    "true": lambda texts, n: [True, False, True],
    "null": lambda texts, n: [None, None, None],
}


@pytest.mark.parametrize("fault", PASSING)
def test_fault_that_passes_is_asked_again(fault):
    slept: list[float] = []
    with RewardServer(lambda texts, n: PASSING[fault](texts, n) if n < 2 else by_length(texts)) as server:
        scores = asked(server.url, slept).score(letters(), NOWHERE)
    assert scores.tolist() == pytest.approx([0.2, 0.3, 0.4])
    assert slept == [0.5, 1.0]


ANSWERED = (
    "no JSON",
    "no scores",
    "scores are no list",
    "too few",
    "too many",
    "NaN",
    "infinite",
    "text",
    "true",
    "null",
)


@pytest.mark.parametrize("fault", PASSING)
def test_fault_that_stays(fault):
    said: list[str] = []
    with RewardServer(PASSING[fault]) as server:
        source = asked(server.url, said=said, retries=2)
        if fault in ANSWERED:  # it is there and says something: the answers stay without a reward, and are counted
            assert torch.isnan(source.score(letters(), NOWHERE)).all()
            assert "3 of 3 answers stay without a reward (3 tries): " in said[0]
        else:
            with pytest.raises(RewardError, match=r"gives no scores \(3 tries\): .*then resume"):
                source.score(letters(), NOWHERE)
    assert len(server.requests) == 3


def test_single_answers_stay_without_a_reward():
    """Of several tries an answer keeps what any of them said."""
    tries = ([1.0, None, float("nan")], [None, 2.0, "x"], [5.0, 5.0, None])
    said: list[str] = []
    with RewardServer(lambda texts, n: tries[n]) as server:
        scores = asked(server.url, said=said, retries=2).score(letters(), NOWHERE)
    assert scores[:2].tolist() == [1.0, 2.0]
    assert torch.isnan(scores[2])
    assert "1 of 3 answers stay without a reward" in said[0]


def test_server_that_is_down():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    slept: list[float] = []
    with pytest.raises(RewardError, match=r"gives no scores \(4 tries\): ConnectError") as error:
        asked(f"http://user:secret@127.0.0.1:{port}/score?key=secret", slept).score(letters(), NOWHERE)
    assert slept == [0.5, 1.0, 2.0]
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("slow", ["silent", "drips"])
def test_server_that_is_slow(slow):
    ways = {"silent": lambda handler: time.sleep(10), "drips": lambda handler: handler.drip(12)}
    started = time.monotonic()
    with (
        RewardServer(lambda texts, n: ways[slow]) as server,
        pytest.raises(RewardError, match=r"no answer within 0.4 seconds.*reward_timeout"),
    ):
        asked(server.url, timeout=0.4, retries=0).score(letters(), NOWHERE)
    assert time.monotonic() - started < 8


def test_wait_that_a_server_asks_for_is_kept():
    waits = ({"Retry-After": "7"}, {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}, {"Retry-After": "nonsense"}, {})
    slept: list[float] = []
    with RewardServer(lambda texts, n: (429, waits[n]) if n < 4 else by_length(texts)) as server:
        asked(server.url, slept, retries=4).score(letters(), NOWHERE)
    assert slept == [7.0, 1.0, 2.0, 4.0]
    slept.clear()
    with RewardServer(lambda texts, n: (503, {"Retry-After": "1e9"}) if n < 1 else by_length(texts)) as server:
        asked(server.url, slept).score(letters(), NOWHERE)
    assert slept == [600.0]


REFUSALS = {
    401: "not allowed (the key in LEDPO_REWARD_API_KEY)",
    403: "not allowed (the key in LEDPO_REWARD_API_KEY)",
    404: "LLaMA-Factory's own is http://host:port/v1/score/evaluation",
    405: "LLaMA-Factory's own is http://host:port/v1/score/evaluation",
    400: "refuses the request with 400",
    307: "set reward_model to http://elsewhere/",
}


@pytest.mark.parametrize("status", REFUSALS)
def test_refusal_is_not_asked_again_and_the_key_is_not_told(status, monkeypatch):
    monkeypatch.setenv(KEY, "sesame")

    def behave(texts: Any, n: int) -> Any:
        headers = {"Location": "http://elsewhere/"}
        return lambda handler: handler.reply(status, b"the key \x1b[31msesame is wrong", headers)

    with RewardServer(behave) as server, pytest.raises(RewardError) as error:
        asked(server.url).score(letters(), NOWHERE)
    assert len(server.requests) == 1
    assert REFUSALS[status] in str(error.value)
    assert "the key [31m*** is wrong" in str(error.value)
    assert "sesame" not in str(error.value)


def test_refusal_without_a_key_says_where_it_goes(monkeypatch):
    monkeypatch.delenv(KEY, raising=False)
    with (
        RewardServer(lambda texts, n: 401) as server,
        pytest.raises(RewardError, match="no key was sent; set LEDPO_REWARD_API_KEY"),
    ):
        asked(server.url).score(letters(), NOWHERE)


def test_server_is_tried_out_before_training(tiny, tmp_path):
    policy = load(tiny, tmp_path / "out", reward_model_type="api", reward_retries=0)
    with RewardServer() as server:
        policy.finetuning_args.reward_model = server.url
        rewards, said = build(policy)
        text = server.requests[0]["messages"][0]
        assert text.startswith("<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>")
        assert said == [f"Reward api: the server {server.url}, which answered."]
        output = rewards.score(batch_of(policy), policy.model)
        texts = [text for request in server.requests[1:] for text in request["messages"]]
        assert texts == batch_of(policy).texts
        assert output.total.tolist() == pytest.approx(by_length(texts))
        assert all(len(request["messages"]) <= 4 for request in server.requests)
    with RewardServer(lambda texts, n: [None]) as server:
        policy.finetuning_args.reward_model = server.url
        assert "gave no score for an answer that it was tried with" in refused(policy)
    assert "gives no scores (1 try): ConnectError" in refused(policy)  # it is down now


@pytest.mark.slow
def test_llama_factory_s_own_server_scores_as_the_adapter_beside_the_policy(tiny, rm_lora, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"model_name_or_path": str(tiny.model), "adapter_name_or_path": str(rm_lora), "template": "chatml"}
    recipe = write_recipe(tmp_path / "api.yaml", own | {"stage": "rm", "infer_dtype": "float32"})
    environ = os.environ | {"API_HOST": "127.0.0.1", "API_PORT": str(port)}
    command = [str(Path(sys.executable).parent / "llamafactory-cli"), "api", recipe]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}/v1/score/evaluation"
            policy = load(tiny, tmp_path / "out", reward_model=f"{rm_lora},{url}", reward_model_type="lora,api")
            policy.finetuning_args.reward_retries = 20  # it takes a while to start
            rewards, _ = build(policy)
            output = rewards.score(batch_of(policy), policy.model)
        finally:
            server.terminate()
            server.wait(timeout=60)
    torch.testing.assert_close(output.parts["api"], output.parts["lora"], rtol=1e-5, atol=1e-5)


# ---- functions


FUNCTIONS = """
import asyncio
import numpy as np
import torch

not_callable = 3


def length(prompts, responses):
    return [len(response) for response in responses]


def some(prompts, responses, **more):
    return [None, float("nan"), 2.0]


class Judge:
    @staticmethod
    def score(*, prompts, responses):
        return np.array([0.5] * len(prompts), dtype=np.float32)


def tensor(prompts, responses):
    return torch.tensor([1.0, float("inf"), 2.0])


def raises(prompts, responses):
    return inner(responses)


def inner(responses):
    raise ZeroDivisionError("of what?\\nsecond line")


def too_few(prompts, responses):
    return [1.0]


def text(prompts, responses):
    return ["1.0"] * 3


def forgets(prompts, responses):
    pass


def other_names(questions, answers):
    return []


async def later(prompts, responses):
    return []
"""


@pytest.fixture(scope="module")
def functions(tmp_path_factory) -> Path:
    """A folder with modules of reward functions; it becomes the working directory, as of somebody who trains."""
    folder = tmp_path_factory.mktemp("functions")
    (folder / "ledpo_test_functions.py").write_text(FUNCTIONS)
    (folder / "ledpo_test_broken.py").write_text("import json\nx = json.loads('{')\n")
    (folder / "ledpo_test_needs.py").write_text("import ledpo_test_not_there\n")
    return folder


@pytest.fixture
def _here(functions, monkeypatch):
    monkeypatch.chdir(functions)


def function(name: str) -> FunctionReward:
    return FunctionReward(f"ledpo_test_functions:{name}")


@pytest.mark.usefixtures("_here")
def test_functions_give_rewards():
    nan = pytest.approx([float("nan")] * 2, nan_ok=True)
    assert function("length").score(letters(), NOWHERE).tolist() == [1.0, 2.0, 3.0]
    assert function("Judge.score").score(letters(), NOWHERE).tolist() == [0.5, 0.5, 0.5]
    some = function("some").score(letters(), NOWHERE).tolist()
    assert (some[:2], some[2]) == (nan, 2.0)
    tensor = function("tensor").score(letters(), NOWHERE).tolist()
    assert (tensor[0], tensor[2]) == (1.0, 2.0)
    assert [tensor[1]] == pytest.approx([float("nan")], nan_ok=True)


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize(
    "name, message",
    {
        "raises": r"stopped with ZeroDivisionError: of what\? at .*ledpo_test_functions.py:32 in inner\. ",
        "too_few": "returned 1 values for 3 answers",
        "text": "returned list: '1.0' is no number",
        "forgets": "returned NoneType",
    }.items(),
)
def test_function_that_gives_no_rewards_stops(name, message):
    with pytest.raises(RewardError, match=message):
        function(name).score(letters(), NOWHERE)


@pytest.mark.usefixtures("_here")
def test_function_gets_lists_that_it_may_change():
    batch = letters()
    source = function("length")
    source.function = lambda prompts, responses: [prompts.pop() and 1.0 for _ in responses]
    assert source.score(batch, NOWHERE).tolist() == [1.0] * 3
    assert batch.prompts == ["b"] * 3


# ---- several rewards


class Says:
    """A source that says what it is told to."""

    passes = 0.0

    def __init__(self, *values: float):
        self.values = torch.tensor(values)

    def score(self, batch: RewardBatch, model: nn.Module) -> Tensor:
        return self.values


def several(*rows: tuple[float, Says], clip: float | None = None) -> Any:
    wants = [Wanted("function", f"m:{chr(97 + i)}", weight, chr(97 + i)) for i, (weight, _) in enumerate(rows)]
    return Rewards([source for _, source in rows], wants, clip).score(letters(), NOWHERE)


def test_rewards_are_added_by_weight_and_clipped_together():
    output = several((1.0, Says(1.0, 2.0, -9.0)), (-0.5, Says(2.0, -8.0, 4.0)), clip=5.0)
    assert output.total.tolist() == [0.0, 5.0, -5.0]  # 1 - 1, 2 + 4, -9 - 2
    assert {name: part.tolist() for name, part in output.parts.items()} == {"a": [1, 2, -9], "b": [2, -8, 4]}
    assert not output.failed.any()


def test_answer_without_one_of_its_rewards_has_none():
    nan = float("nan")
    output = several((1.0, Says(1.0, nan, 3.0)), (2.0, Says(1.0, 1.0, nan)), clip=1.0)
    assert output.failed.tolist() == [False, True, True]
    assert output.total[0] == 1.0
    assert torch.isnan(output.total[1:]).all()
    assert torch.isnan(output.parts["a"]).tolist() == [False, True, False]


def test_reward_of_weight_0_is_watched_only():
    output = several((1.0, Says(1.0, 2.0, 3.0)), (0.0, Says(float("nan"), 5.0, float("nan"))))
    assert output.total.tolist() == [1.0, 2.0, 3.0]
    assert output.parts["b"][1] == 5.0


def test_names_in_the_log_are_short_and_all_different():
    wheres = ["out/rm", "runs\\rm/", "org/My Model", "http://user:pw@host/x", "m:score", "n:score", "m:mean"]
    kinds = ["lora", "full", "full", "api", "function", "function", "function"]
    found = wanted(",".join(wheres), ",".join(kinds), "1,2,3,4,5,6,7")
    assert [one.name for one in found] == ["rm", "rm_2", "My_Model", "api", "score", "score_2", "mean_2"]
    assert [one.weight for one in found] == [1, 2, 3, 4, 5, 6, 7]
    assert [one.kind for one in wanted("a,b", "implicit", None)] == ["implicit"] * 2


# ---- the whole stage


@pytest.mark.usefixtures("_here")
def test_run_with_all_kinds_of_rewards_saves_the_policy_alone(tiny, rm_lora, rm_full, run, tmp_path):
    with RewardServer() as server:
        sources = {
            "reward_model": f"{rm_lora},{rm_full},{run},{server.url},ledpo_test_functions:length",
            "reward_model_type": "lora,full,implicit,api,function",
            "reward_weights": "1,0.5,0.1,0.01,0",
        }
        changes = {"max_new_tokens": 8, "ppo_epochs": 1, "max_steps": 2, "save_strategy": "steps", "save_steps": 1}
        output = train(tiny.recipe(tmp_path / "out", stage="ledpo_ppo", **sources, **changes))
    assert len(server.requests) == 3  # one to try it out, one per rollout
    for name in ("lora", "full", "ledpo", "api", "length"):
        assert len(series(output, f"rewards/{name}")) == 2
    assert series(output, "rewards/failed") == [0, 0]
    for folder in (output, output / "checkpoint-1", output / "checkpoint-2"):
        weights = load_file(folder / "adapter_model.safetensors")
        assert not [name for name in weights if "reward" in name]
        assert not [path for path in folder.iterdir() if "reward" in path.name]
        assert json.loads((folder / "adapter_config.json").read_text())["r"] == 4


# ---- recipes


@pytest.fixture(scope="module")
def places(tiny, rm_lora, rm_full, run, run_full, other, functions, tmp_path_factory) -> dict[str, str]:
    """Everything that a recipe's texts may name."""
    root = tmp_path_factory.mktemp("places")
    made = {
        "headless": changed(root / "headless", rm_lora, value_head__safetensors=None),
        "pickled": changed(root / "pickled", rm_lora, value_head__safetensors=None, value_head__bin=lambda _: b"x"),
        "binary": changed(root / "binary", rm_lora, adapter_model__safetensors=None),
        "oft": changed(root / "oft", rm_lora, adapter_config__json=lambda data: data.replace(b'"LORA"', b'"OFT"')),
        "ia3": changed(root / "ia3", rm_lora, adapter_config__json=lambda data: data.replace(b'"LORA"', b'"IA3"')),
        "headless_full": changed(root / "headless_full", rm_full, value_head__safetensors=None),
        "foreign": _other_tokenizer(root / "foreign", rm_full),
        "larger": changed(root / "larger", rm_full, tokenizer__json=_larger),
        "foreign_run": _foreign_run(root, run_full),
        "unread": changed(root / "unread", run, ledpo_run__json=lambda _: b"{"),
        "simpo": _run_with(root / "simpo", run, pref_loss="simpo"),
        "ppo": _run_with(root / "ppo", run, stage="ledpo_ppo"),
        "pissa": _run_with(root / "pissa", run, recipe={"pissa_init": True}),
        "mallows": _run_with(root / "mallows", run, head={"beta_mode": "mallows"}),
        "headless_run": changed(root / "headless_run", run, beta_head__json=None),
        "binary_run": changed(root / "binary_run", run, adapter_model__safetensors=None),
        "unfinished": changed(root / "unfinished", run, adapter_config__json=None),
        "moved": _run_with(root / "moved", run, model_name_or_path=str(root / "gone")),
        "copy": changed(root / "copy", tiny.model),
        "elsewhere": changed(root / "elsewhere", rm_lora),
        "empty": root / "empty",
    }
    made["empty"].mkdir()
    _put_on(made["elsewhere"], made["copy"])
    known = {"rm": rm_lora, "full": rm_full, "run": run, "run_full": run_full, "model": tiny.model, "other": other}
    return {name: str(path) for name, path in {**known, **made, "root": root, "functions": functions}.items()}


def _larger(data: bytes) -> bytes:
    file = json.loads(data)
    file["model"]["vocab"] |= {f"further{i}": 1000 + i for i in range(100)}
    return json.dumps(file).encode()


def _put_on(folder: Path, base: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(base)}))


def _run_with(folder: Path, run: Path, recipe: Any = None, head: Any = None, **facts: Any) -> Path:
    changed(folder, run)
    record = json.loads((run / "ledpo_run.json").read_text()) | facts
    record["recipe"] |= recipe or {}
    (folder / "ledpo_run.json").write_text(json.dumps(record))
    if head:
        (folder / "beta_head.json").write_text(json.dumps(json.loads((run / "beta_head.json").read_text()) | head))
    return folder


def _foreign_run(root: Path, run_full: Path) -> Path:
    model = _other_tokenizer(root / "foreign_model", run_full)
    return _run_with(root / "foreign_run", run_full, model_name_or_path=str(model))


@pytest.fixture(scope="module")
def host_keys() -> dict[str, Any]:
    from ledpo_plugin.host.arguments import recipe_keys

    return recipe_keys()


def problems_of(change: dict[str, Any], places: dict[str, str], host_keys: dict[str, Any]) -> list[Problem]:
    base = {
        "stage": "ledpo_ppo",
        "model_name_or_path": "{model}",
        "finetuning_type": "lora",
        "reward_model": "{rm}",
        "reward_model_type": "lora",
    }
    raw = {key: value for key, value in {**base, **change}.items() if value is not None}
    raw = {key: value.format(**places) if isinstance(value, str) else value for key, value in raw.items()}
    recipe = read(raw, host_keys, {})
    assert recipe.stage is not None
    return [*check_rewards(recipe), *check_reward_files(recipe)]


@dataclass(frozen=True)
class Bad:
    """One way to get rewards wrong: the change, and the one problem that must come of it."""

    name: str
    change: dict[str, Any]
    key: str
    why: str
    fix: str


def of(kind: str, where: str, name: str, why: str, fix: str, key: str = "reward_model", **more: Any) -> Bad:
    """Return the case of a source that does not serve as what it is said to be."""
    return Bad(f"{kind} {name}", {"reward_model": where, "reward_model_type": kind, **more}, key, why, fix)


API = {"reward_model": "http://127.0.0.1:1/x", "reward_model_type": "api"}
SCORE = "ledpo_test_functions:length"
BAD = (
    Bad(
        "none", {"reward_model": None}, "reward_model", "maximises rewards, and none is named", "set reward_model to a"
    ),
    Bad("empty", {"reward_model": ""}, "reward_model", "none is named", "set reward_model to a"),
    Bad("gap", {"reward_model": "{rm},,{rm}"}, "reward_model", "nothing between two commas", "remove the comma"),
    Bad(
        "kind",
        {"reward_model_type": "fulll"},
        "reward_model_type",
        "Did you mean 'full'?",
        "set reward_model_type: full",
    ),
    Bad(
        "kinds",
        {"reward_model_type": "lora,api"},
        "reward_model_type",
        "there are 2 kinds for 1 reward",
        "as many as reward_model has names",
    ),
    Bad("weight", {"reward_weights": "much"}, "reward_weights", "a weight is not a number", "such as '1,0.5'"),
    Bad("weight nan", {"reward_weights": "nan"}, "reward_weights", "a weight is no ordinary number", "'1,0.5'"),
    Bad("weights", {"reward_weights": "1,2"}, "reward_weights", "2 weights for 1 reward", "one weight per name"),
    Bad("weight 0", {"reward_weights": "0"}, "reward_weights", "every weight is 0", "a weight other than 0"),
    Bad("timeout", {"reward_timeout": 5.0}, "reward_timeout", "no reward comes from a server", "remove it"),
    Bad("retries", {"reward_retries": 5}, "reward_retries", "no reward comes from a server", "remove it"),
    Bad("bits", {"reward_model_quantization_bit": 4}, "reward_model_quantization_bit", "no effect", "remove it"),
    Bad("adapters", {"reward_model_adapters": "{rm}"}, "reward_model_adapters", "no effect", "remove it"),
    Bad(
        "whose adapters",
        {"reward_model": "{full},{full}", "reward_model_type": "full", "reward_model_adapters": "{rm}"},
        "reward_model_adapters",
        "it is not said which it belongs to",
        "merge the adapters into their model first",
    ),
    of("api", "127.0.0.1:8000/score", "no scheme", "is no URL that starts with http://", "write the whole URL"),
    of("api", "{rm}", "folder", "is no URL that starts with http://", "write the whole URL"),
    of("api", "ftp://host/x", "ftp", "is no URL that starts with http://", "write the whole URL"),
    of("api", "http://[1/x", "broken", "this is no URL", "write the whole URL"),
    of("api", "http://host:99999999/x", "port", "this is no URL", "write the whole URL"),
    of(
        "api",
        "http://me:secret@host/x",
        "key",
        "holds a name or password",
        "set the environment variable LEDPO_REWARD_API_KEY",
    ),
    of("lora", "{root}/gone", "gone", "there is no such folder", "write the path of a reward model's folder"),
    of("lora", "~/rm", "tilde", "does not expand ~", "write the whole path"),
    of("lora", "{empty}", "empty folder", "holds no readable adapter_config.json", "trained with stage: rm"),
    of("lora", "{full}", "whole model", "it is a whole model", "set reward_model_type: full"),
    of(
        "lora",
        "{headless}",
        "no head",
        "not the output of stage rm",
        "name the folder of a model trained with stage: rm",
    ),
    of("lora", "{pickled}", "pickled head", "which is pickled and is not opened", "write it as value_head.safetensors"),
    of("lora", "{binary}", "pickled adapter", "adapters are read from safetensors only", "save the adapter as"),
    of("lora", "{oft}", "oft", "kind oft, which cannot stand beside one of kind lora", "set finetuning_type: oft"),
    of(
        "lora", "{ia3}", "ia3", "kind ia3, which cannot stand beside", "train a reward model with finetuning_type: lora"
    ),
    of("lora", "{rm}", "other base", "it was trained on", "reward_model_type: full", model_name_or_path="{other}"),
    of(
        "lora",
        "{rm}",
        "merged",
        "merged into it, which the reward model's base had not",
        "or remove create_new_adapter",
        adapter_name_or_path="{run}",
        create_new_adapter=True,
    ),
    of(
        "lora",
        "{rm}",
        "two adapters",
        "merged into it, which the reward model's base had not",
        "set reward_model_type: full",
        adapter_name_or_path="{run},{run}",
    ),
    of(
        "lora",
        "{rm}",
        "unsloth",
        "use_unsloth allows no adapter",
        "remove use_unsloth",
        "use_unsloth",
        use_unsloth=True,
    ),
    of("full", "{root}/gone", "gone", "there is no such folder", "write the path of a reward model's folder"),
    of("full", "{rm}", "adapter", "it is an adapter", "set reward_model_type: lora"),
    of("full", "{empty}", "empty folder", "holds no config.json", "name the folder of a reward model"),
    of("full", "{model}", "no head", "not the output of stage rm", "name the folder of a model trained with stage: rm"),
    of(
        "full",
        "{model}",
        "adapters without head",
        "not the output of stage rm",
        "name the folder of a model trained with stage: rm",
        "reward_model_adapters",
        reward_model_adapters="{headless}",
    ),
    of(
        "full",
        "{model}",
        "adapters are none",
        "no folder with adapter_config.json",
        "write the path of the folder of an adapter",
        "reward_model_adapters",
        reward_model_adapters="{empty}",
    ),
    of("full", "{foreign}", "tokens", "its tokenizer differs from the policy's", "set reward_model_type: api"),
    of("full", "{larger}", "more tokens", "259 and 359 tokens", "set reward_model_type: api"),
    of("implicit", "{root}/gone", "gone", "there is no such folder", "name the output_dir of a run"),
    of("implicit", "~/run", "tilde", "does not expand ~", "write the whole path"),
    of("implicit", "{rm}", "no run", "holds no ledpo_run.json: it is no LEDPO run", "name the output_dir of a run"),
    of("implicit", "{unread}", "unread", "its ledpo_run.json cannot be read", "name the output_dir of a run"),
    of(
        "implicit", "{simpo}", "no reference", "its loss simpo compares with no reference", "whose loss has a reference"
    ),
    of("implicit", "{ppo}", "stage", "learned from no preferences", "name the reward that it was trained on"),
    of("implicit", "{pissa}", "pissa", "trained with pissa_init: true", "without pissa_init"),
    of(
        "implicit",
        "{mallows}",
        "mode",
        "beta_mode mallows decides beta from pairs",
        "beta_mode head, ppl, global or fixed",
    ),
    of("implicit", "{headless_run}", "no head", "its beta cannot be read", "name the output_dir of a run"),
    of(
        "implicit", "{binary_run}", "pickled", "adapters are read from safetensors only", "name the output_dir of a run"
    ),
    of("implicit", "{unfinished}", "no weights", "neither an adapter nor a model", "name the output_dir of a run"),
    of("implicit", "{moved}", "base gone", "is not there any more", "put it back"),
    of("implicit", "{foreign_run}", "tokens", "its tokenizer differs from the policy's", "set reward_model_type: api"),
    of("function", "no_colon", "form", "not of the form module:function", "my_rewards:score"),
    of(
        "function",
        "ledpo_test_gone:f",
        "no module",
        "there is no module ledpo_test_gone",
        "start in the folder that holds it",
    ),
    of("function", "ledpo_test_needs:f", "needs", "needs ledpo_test_not_there", "pip install what holds"),
    of("function", "ledpo_test_broken:f", "broken", "importing ledpo_test_broken stops with JSONDecodeError", "repair"),
    of("function", "ledpo_test_functions:gone", "no function", "has no gone", "takes prompts and responses"),
    of(
        "function",
        "ledpo_test_functions:not_callable",
        "number",
        "is a int, not a function",
        "name a function that takes",
    ),
    of("function", "ledpo_test_functions:other_names", "names", "cannot be called as", "takes prompts and responses"),
    of("function", "ledpo_test_functions:later", "async", "is an async function", "write an ordinary one"),
)


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_bad_rewards_are_refused_with_reason_and_fix(bad, places, host_keys):
    problems = problems_of(bad.change, places, host_keys)
    assert [found.key for found in problems] == [bad.key], "\n".join(map(str, problems))
    why, _, fix = problems[0].message.partition(" Fix: ")
    assert bad.why in why, problems[0]
    assert bad.fix in fix, problems[0]
    assert "secret" not in str(problems[0])


def test_adapter_beside_a_policy_without_one(places, host_keys):
    for kind in ("full", "freeze"):
        problems = problems_of({"finetuning_type": kind}, places, host_keys)
        assert [found.key for found in problems] == ["reward_model_type"]
        assert f"finetuning_type {kind} has none" in problems[0].message
        assert f"reward_model_adapters: {places['rm']}" in problems[0].message


GOOD = {
    "adapter": {},
    "adapter of the same model elsewhere": {"reward_model": "{elsewhere}"},
    "going on with an adapter": {"adapter_name_or_path": "{run}"},
    "full": {"reward_model": "{full}", "reward_model_type": "full"},
    "full policy": {"reward_model": "{full}", "reward_model_type": "full", "finetuning_type": "full"},
    "adapter on its base": {
        "reward_model": "{model}",
        "reward_model_type": "full",
        "reward_model_adapters": "{rm}",
        "finetuning_type": "full",
    },
    "hub": {"reward_model": "someone/rm,someone/other", "reward_model_type": "lora,full"},
    "implicit": {"reward_model": "{run},{run}/checkpoint-12,{run_full}", "reward_model_type": "implicit"},
    "implicit elsewhere": {"reward_model": "{run}", "reward_model_type": "implicit", "model_name_or_path": "{other}"},
    "server": API | {"reward_timeout": 1.5, "reward_retries": 0},
    "function": {"reward_model": SCORE, "reward_model_type": "function", "finetuning_type": "full"},
    "several": {
        "reward_model": "{rm}, {run}," + SCORE,
        "reward_model_type": "lora, implicit,function",
        "reward_weights": "1,0.5, -1e-2",
    },
    "one weight": {"reward_weights": 2},
    "other stage": {"stage": "ledpo", "reward_model": None},
    "alternating": {"stage": "ledpo_alternate"},
}


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize("name", GOOD)
def test_good_rewards_pass(name, places, host_keys):
    assert problems_of(GOOD[name], places, host_keys) == []


def test_wrong_types_are_left_to_the_check_of_types(places, host_keys):
    assert problems_of({"reward_model": ["a"], "reward_model_type": 3}, places, host_keys) == []


def test_idle_keys_are_known(places):
    assert set(idle_in({"reward_model": "a,b", "reward_model_type": "api,full"})) == set()
    assert set(idle_in({"reward_model": "a"})) == {
        "reward_timeout",
        "reward_retries",
        "reward_model_adapters",
        "reward_model_quantization_bit",
    }
