"""An SFT adapter before preference training: whether the reference has it is said, and is true.

A quantised model is stood in for by a plain one that says it is quantised when the host asks whether it can merge the
adapter: the host's own code then keeps it, as for bitsandbytes, GPTQ or ZeRO-3.
"""

import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import history, series, train
from safetensors.torch import load_file

from eval_harness.generation.loading import load
from eval_harness.generation.scoring import score_outputs
from ledpo_plugin.common.run_record import read_record
from ledpo_plugin.experiments.measuring.measure import Measured, measure_run
from ledpo_plugin.host import arguments as host_arguments
from ledpo_plugin.host import contract
from ledpo_plugin.host import data as host_data
from ledpo_plugin.modeling.inference import _load_model, beta_of_prompts
from ledpo_plugin.recipes.check import check_recipe
from ledpo_plugin.reference.caching import cache_key
from ledpo_plugin.workflow import build_trainer


@pytest.fixture(scope="module")
def sft(tiny, tmp_path_factory) -> Path:
    """The folder of an adapter that supervised fine-tuning moved well away from the base."""
    recipe = tiny.recipe(tmp_path_factory.mktemp("sft") / "run", stage="sft", dataset="instructions", max_steps=4)
    # A scaling of 7 / 3 is rounded at another place in PEFT's layers than in fused ones.
    return train(recipe | {"learning_rate": 2.0e-2, "lora_rank": 3, "lora_alpha": 7})


@pytest.fixture
def unmerged(monkeypatch):
    """Let the host believe that the model is quantised, when it asks whether it may merge an adapter."""
    loader = importlib.import_module("llamafactory.model.loader")
    original = loader.init_adapter

    def init_adapter(config, model, *args, **kwargs):
        model.quantization_method = "of a test"
        return original(config, model, *args, **kwargs)

    monkeypatch.setattr(loader, "init_adapter", init_adapter)


def _recipe(tiny, sft, output, **changes):
    return tiny.recipe(
        output, adapter_name_or_path=str(sft), beta_mode="fixed", disable_reference_cache=True, **changes
    )


def _trainer(recipe):
    with host_data.templates_kept():
        tuner = importlib.import_module(contract.TUNER)
        return build_trainer(*tuner.get_train_args(dict(recipe))[:4])[0]


def _by_itself(tiny, adapter: Path | None, ids: torch.Tensor) -> torch.Tensor:
    """Return logits of the base, with an adapter merged into it by PEFT itself."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny.model, torch_dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


@pytest.mark.parametrize("way", ["unmerged", "merged"])
@pytest.mark.parametrize("fused", [True, False])
def test_the_frozen_reference_is_the_start_to_the_bit(tiny, sft, tmp_path, request, way, fused):
    if way == "unmerged":
        request.getfixturevalue("unmerged")
    run = train(
        _recipe(tiny, sft, tmp_path / "run", reference_adapter="frozen", disable_fused_lora=not fused, max_steps=3)
    )
    assert series(run, "margins/beta_free")[0] == 0.0
    assert series(run, "loss")[0] == pytest.approx(0.693147, abs=1e-4)
    assert series(run, "margins/beta_free")[2] != 0.0  # the policy has moved, and the copy has not gone with it
    assert not list(run.rglob("ledpo_reference*"))


def test_without_the_copy_the_reference_is_the_base(tiny, sft, tmp_path, unmerged):
    run = train(_recipe(tiny, sft, tmp_path / "run", reference_adapter="base", max_steps=1))
    assert abs(series(run, "margins/beta_free")[0]) > 1e-3


def test_the_reference_is_base_and_sft_before_and_after_training(tiny, sft, tmp_path, unmerged):
    trainer = _trainer(_recipe(tiny, sft, tmp_path / "run", reference_adapter="frozen", max_steps=3))
    ids = torch.arange(24).view(2, 12) + 40
    wanted, base = _by_itself(tiny, sft, ids), _by_itself(tiny, None, ids)
    assert (wanted - base).abs().max() > 0.01

    def reference():
        with torch.no_grad(), trainer.reference.at_work(trainer.model) as model:
            return model(input_ids=ids).logits

    torch.testing.assert_close(reference(), wanted, rtol=1e-4, atol=1e-5)
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert trained
    assert not any("ledpo_reference" in name for name in trained)
    before = reference()
    trainer.train()
    assert torch.equal(reference(), before)
    assert {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad} == trained
    with torch.no_grad():
        assert not torch.allclose(trainer.model(input_ids=ids).logits, before, atol=1e-3)


@pytest.mark.parametrize("new", [False, True])
def test_an_unmerged_adapter_is_refused_until_the_recipe_says_what_the_reference_is(tiny, sft, tmp_path, unmerged, new):
    with pytest.raises(ValueError, match="set reference_adapter: frozen") as caught:
        train(_recipe(tiny, sft, tmp_path / "run", create_new_adapter=new, max_steps=1))
    assert ("remove create_new_adapter" in str(caught.value)) is new
    # Nothing to decide: no reference is needed.
    if not new:
        train(_recipe(tiny, sft, tmp_path / "orpo", pref_loss="orpo", max_steps=1))


def test_a_resumed_run_has_the_same_reference_and_numbers(tiny, sft, tmp_path):
    recipe = _recipe(tiny, sft, tmp_path / "whole", reference_adapter="frozen", save_strategy="steps", save_steps=2)
    whole = train(recipe)
    shutil.copytree(whole / "checkpoint-2", tmp_path / "again" / "checkpoint-2")
    again = train(recipe | {"output_dir": str(tmp_path / "again")})
    assert series(again, "loss") == series(whole, "loss")
    one, other = (load_file(run / "adapter_model.safetensors") for run in (whole, again))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert history(again)[-1]["step"] == 4


def test_ledpo_beta_reads_the_same_reference(tiny, sft, tmp_path):
    recipe = _recipe(tiny, sft, tmp_path / "run", reference_adapter="frozen") | {"beta_mode": "head"}
    run = train(recipe)
    ids = torch.arange(12).view(1, 12) + 40
    model = _load_model(run, read_record(run), "reference", False)[0]
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, _by_itself(tiny, sft, ids), rtol=1e-4, atol=1e-5)
    assert beta_of_prompts(run, ["river stone"])[0]["beta"] > 0
    assert json.loads((run / "ledpo_run.json").read_text())["reference_adapter"] == "frozen"
    loaded = load(run)
    with loaded.at_start() as start, torch.no_grad():
        torch.testing.assert_close(start(input_ids=ids).logits, _by_itself(tiny, sft, ids), rtol=1e-4, atol=1e-5)
    asked = beta_of_prompts(run, ["river stone"])[0]["beta"]
    assert loaded.betas(["river stone"])[0] == pytest.approx(asked, rel=1e-5)


def test_ledpo_beta_reads_the_adapter_that_was_merged(tiny, sft, tmp_path):
    recipe = _recipe(tiny, sft, tmp_path / "run", create_new_adapter=True) | {"beta_mode": "head", "max_steps": 1}
    run = train(recipe)
    ids = torch.arange(12).view(1, 12) + 40
    model = _load_model(run, read_record(run), "reference", False)[0]
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, _by_itself(tiny, sft, ids), rtol=1e-4, atol=1e-5)


def test_the_cache_s_key_says_which_reference_it_was(tiny, sft, tmp_path):
    def key(**changes):
        recipe = _recipe(tiny, sft, tmp_path / "run", **changes)
        with host_data.templates_kept():
            arguments = importlib.import_module(contract.TUNER).get_train_args(recipe)
        return cache_key(*arguments[:4], [])

    base, frozen, merged = key(), key(reference_adapter="frozen"), key(create_new_adapter=True)
    other = key(ref_model=str(tiny.model))
    assert [item["reference"] for item in (base, frozen, merged, other)] == [
        *("without the trained adapter", "frozen adapter", "without the trained adapter", "ref_model"),
    ]
    assert base["adapters"] == []
    assert frozen["adapters"] == merged["adapters"] != []
    assert len({json.dumps(item, sort_keys=True, default=str) for item in (base, frozen, merged, other)}) == 4


ZERO3 = {"zero_optimization": {"stage": 3}}


@pytest.mark.parametrize(
    "changes,key,part",
    [
        ({"quantization_bit": 4}, "adapter_name_or_path", "quantization_bit: 4"),
        ({"use_unsloth": True}, "adapter_name_or_path", "use_unsloth: true"),
        ({"use_kt": True, "create_new_adapter": True}, "adapter_name_or_path", "remove create_new_adapter and set"),
        ({"deepspeed": ZERO3}, "adapter_name_or_path", "deepspeed with ZeRO-3"),
        ({"reference_adapter": "frozen", "adapter_name_or_path": None}, "reference_adapter", "names none"),
        ({"reference_adapter": "frozen", "finetuning_type": "full"}, "reference_adapter", "names none"),
        ({"reference_adapter": "frozen", "create_new_adapter": True}, "reference_adapter", "or create_new_adapter"),
        ({"reference_adapter": "base", "ref_model": "x"}, "reference_adapter", "is ref_model already"),
        ({"reference_adapter": "frozen", "pref_loss": "simpo"}, "reference_adapter", "needs no reference"),
        ({"reference_adapter": "frozen", "use_kt": True}, "reference_adapter", "merge the adapter"),
        ({"reference_adapter": "frozen", "do_train": False, "do_eval": True}, "reference_adapter", "margin would be 0"),
        ({"reference_adapter": "frozen", "freeze_policy": True, "beta_mode": "head"}, "freeze_policy", "every margin"),
        ({"reference_adapter": "frosen"}, "reference_adapter", "frozen"),
    ],
)
def test_recipes_that_do_not_say_or_cannot_have_it_are_refused(tiny, sft, tmp_path, changes, key, part):
    recipe = _recipe(tiny, sft, tmp_path / "run") | changes
    found = check_recipe(recipe, host_arguments.recipe_keys(), {}, with_files=False)
    texts = [str(item) for item in found if item.key == key]
    assert any(part in text and "Fix: " in text for text in texts), found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"quantization_bit": 4, "reference_adapter": "frozen"},
        {"quantization_bit": 4, "reference_adapter": "base"},
        {"quantization_bit": 4, "pref_loss": "orpo"},
        {"quantization_bit": 4, "adapter_name_or_path": None},
        {"deepspeed": {"zero_optimization": {"stage": 2}}},
        {"reference_adapter": "frozen", "stage": "ledpo_kto", "dataset": "labelled"},
    ],
)
def test_recipes_that_say_it_or_need_not_are_good(tiny, sft, tmp_path, changes):
    recipe = _recipe(tiny, sft, tmp_path / "run") | changes
    if "stage" in changes:
        recipe.pop("disable_reference_cache")
    assert check_recipe(recipe, host_arguments.recipe_keys(), {}, with_files=False) == []


# ---- measured elsewhere: the start and the reference are base and SFT, too


def _said(tiny, adapter: Path, rows) -> list[float]:
    """Return what the base with an adapter merged says of answers, given as (prompt, answer) in tokens."""
    found = []
    for prompt, answer in rows:
        logps = _by_itself(tiny, adapter, torch.tensor([[*prompt, *answer]])).log_softmax(-1)[0, len(prompt) - 1 : -1]
        found.append(logps[torch.arange(len(answer)), torch.tensor(answer)].sum().item())
    return found


@pytest.fixture
def measured_run(tiny, sft, tmp_path, unmerged):
    recipe = _recipe(tiny, sft, tmp_path / "run", reference_adapter="frozen") | {
        **{"beta_mode": "head", "max_steps": 6, "save_strategy": "steps", "save_steps": 6, "learning_rate": 2e-2},
        **{"eval_dataset": "heldout", "eval_strategy": "steps", "eval_steps": 6},
    }
    return recipe, train(recipe)


def test_an_experiment_measures_such_a_run_against_its_adapter(tiny, sft, tmp_path, measured_run):
    recipe, run = measured_run
    wanted = {"pairs": ["heldout"], "answers": {"prompts": "heldout", "count": 3, "max_new_tokens": 5, "seed": 1}}
    found = measure_run([Measured(recipe, run)], tmp_path / "measures", wanted, lambda text: None)
    own = series(run, "eval_margins/beta_free")[-1]
    assert abs(own) > 0.05
    assert found["final"]["heldout/margin"] == pytest.approx(own, rel=1e-3)
    assert found["final"]["heldout/beta_mean"] == pytest.approx(series(run, "eval_beta/mean")[-1], rel=1e-3)
    pairs = json.loads((tmp_path / "measures" / "step-000006" / "pairs" / "heldout.json").read_text())["columns"]
    data = _trainer(recipe | {"output_dir": str(tmp_path / "data")}).eval_dataset
    start = next(i for i, label in enumerate(data[0]["chosen_labels"]) if label != -100)
    row = (data[0]["chosen_input_ids"][:start], data[0]["chosen_input_ids"][start:])
    assert pairs["reference_chosen_logps"][0] == pytest.approx(_said(tiny, sft, [row])[0], rel=1e-4)
    (file,) = (tmp_path / "measures" / "step-000006").rglob("answers.json")
    for answer in json.loads(file.read_text())["rows"]:
        assert abs(answer["logps"] - answer["start_logps"]) > 1e-3
    # The weights that were taken are there again: a second measurement of the same is the same.
    again = measure_run([Measured(recipe, run)], tmp_path / "again", wanted, lambda text: None)
    assert again["final"] == found["final"]


def test_scores_and_implicit_rewards_of_such_a_run_are_against_its_adapter(tiny, sft, tmp_path, measured_run):
    from test_rewards import build, pairs_of
    from test_rewards import load as load_policy

    recipe, run = measured_run
    loaded = load(run)
    prompts, answers = ["river stone", "light"], [[70, 71, 72], [80, 81]]
    rows = list(zip(loaded.encode(prompts), answers, strict=True))
    found = score_outputs(loaded, prompts, answers)
    wanted = _said(tiny, sft, rows)
    assert found["reference_logps"] == pytest.approx(wanted, rel=1e-4)
    assert found["reference_logps"] != pytest.approx(_said(tiny, None, rows), rel=1e-3)

    trainer = _trainer(recipe | {"output_dir": str(tmp_path / "data")})
    policy = load_policy(tiny, tmp_path / "policy", reward_model=str(run), reward_model_type="implicit")
    rewards, _ = build(policy)
    output = rewards.score(pairs_of(trainer.eval_dataset, policy, "chosen"), policy.model)
    assert output.total.mean().item() == pytest.approx(series(run, "eval_rewards/chosen")[-1], rel=1e-3)
