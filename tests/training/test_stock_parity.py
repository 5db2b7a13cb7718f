"""The plugin's stages against LLaMA-Factory's own, step by step, on the same model, data, order and seed."""

import json
import math

import pytest
import torch
from conftest import cli, series, train, write_recipe
from transformers import AutoConfig, AutoTokenizer, Gemma2Config, Gemma2ForCausalLM

STEPS = 20
CASES = {
    "sigmoid fixed": (
        {"stage": "dpo", "pref_loss": "sigmoid"},
        {"stage": "ledpo", "pref_loss": "sigmoid", "beta_mode": "fixed"},
    ),
    "cDPO": (
        {"stage": "dpo", "dpo_label_smoothing": 0.1},
        {"stage": "ledpo", "beta_mode": "fixed", "dpo_label_smoothing": 0.1},
    ),
    "sigmoid + pref_ftx + ld_alpha": (
        {"stage": "dpo", "pref_ftx": 0.3, "ld_alpha": 0.5},
        {"stage": "ledpo", "beta_mode": "fixed", "pref_ftx": 0.3, "ld_alpha": 0.5},
    ),
    "sigmoid + pref_bco_weight": (
        {"stage": "dpo", "pref_bco_weight": 0.5},
        {"stage": "ledpo", "beta_mode": "fixed", "pref_bco_weight": 0.5},
    ),
    "orpo": ({"stage": "dpo", "pref_loss": "orpo"}, {"stage": "ledpo_orpo"}),
    "simpo": ({"stage": "dpo", "pref_loss": "simpo", "simpo_gamma": 0.5}, {"stage": "ledpo_simpo", "simpo_gamma": 0.5}),
    "kto": ({"stage": "kto"}, {"stage": "ledpo_kto"}),
}


@pytest.mark.parametrize("case", CASES)
def test_losses_equal_the_stock_stage_step_by_step(tiny, tmp_path, case):
    stock, ours = CASES[case]
    common = {"max_steps": STEPS, "pref_beta": 0.1}
    reference = series(train(tiny.recipe(tmp_path / "stock", **common, **stock)), "loss")
    losses = series(train(tiny.recipe(tmp_path / "ours", **common, **ours)), "loss")
    assert len(reference) == STEPS
    assert losses == pytest.approx(reference, rel=1e-4)
    assert max(reference) - min(reference) > 1e-3  # the model did learn: equal constants would prove nothing


@pytest.mark.parametrize("finetuning", [{"finetuning_type": "full"}, {"finetuning_type": "freeze"}])
def test_full_and_freeze_tuning_equal_the_stock_stage(tiny, tmp_path, finetuning):
    common = {"pref_beta": 0.1, "learning_rate": 1e-3, "max_steps": 8, "lora_rank": None, "lora_target": None}
    stock = train(tiny.recipe(tmp_path / "stock", stage="dpo", **common, **finetuning))
    ours = train(tiny.recipe(tmp_path / "ours", beta_mode="fixed", **common, **finetuning))
    assert series(ours, "loss") == pytest.approx(series(stock, "loss"), rel=1e-4)
    for key in ("rewards/chosen", "rewards/margins", "logps/chosen", "logps/rejected"):
        assert series(ours, key) == pytest.approx(series(stock, key), rel=1e-3, abs=1e-5)


def test_the_head_is_plain_dpo_at_step_0(tiny, tmp_path):
    common = {"pref_beta": 0.1, "max_steps": 2}
    stock = train(tiny.recipe(tmp_path / "stock", stage="dpo", **common))
    head = train(tiny.recipe(tmp_path / "head", beta_mode="head", **common))
    assert series(head, "loss")[0] == pytest.approx(series(stock, "loss")[0], rel=1e-6)
    assert series(head, "loss")[0] == pytest.approx(math.log(2), rel=1e-6)
    assert [series(head, f"beta/{key}")[0] for key in ("min", "max")] == pytest.approx([0.1, 0.1], rel=1e-7)


@pytest.mark.parametrize(
    "loss,expected", [("ipo", 25.0), ("hinge", 1.0), ("sigmoid", math.log(2))], ids=["ipo", "hinge", "sigmoid"]
)
def test_losses_at_zero_margin_through_the_real_cli(tiny, tmp_path, loss, expected):
    """Stock LLaMA-Factory 0.9.5 with trl 0.24 logs 0.6931 for all three: it trains sigmoid whatever is asked for."""
    recipe = tiny.recipe(tmp_path / "run", pref_loss=loss, beta_mode="fixed", pref_beta=0.1, max_steps=1)
    done = cli("train", write_recipe(tmp_path / "recipe.yaml", recipe))
    assert done.returncode == 0, done.stderr[-3000:]
    assert series(tmp_path / "run", "loss")[0] == pytest.approx(expected, rel=1e-4)


def test_stock_stages_are_the_same_with_and_without_the_plugin(tiny, tmp_path):
    runs = {}
    for name, switch in (("with", "0"), ("without", "1")):
        recipe = tiny.recipe(tmp_path / name, stage="dpo", max_steps=3)
        path = write_recipe(tmp_path / f"{name}.yaml", recipe)
        done = cli("train", path, env={"LEDPO_PLUGIN_DISABLE": switch})
        assert done.returncode == 0, done.stderr[-3000:]
        runs[name] = [
            {k: v for k, v in row.items() if "runtime" not in k and "per_second" not in k}
            for row in json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"]
        ]
    assert runs["with"] == runs["without"]  # bit for bit


def test_a_switched_off_plugin_refuses_rather_than_trains_something_else(tiny, tmp_path):
    path = write_recipe(tmp_path / "r.yaml", tiny.recipe(tmp_path / "run"))
    done = cli("train", path, env={"LEDPO_PLUGIN_DISABLE": "1"})
    assert done.returncode != 0
    assert not (tmp_path / "run" / "trainer_state.json").exists()


def test_a_cap_behind_the_output_layer_is_kept(tiny, tmp_path):
    """Gemma 2 caps its logits. As long as they are small a trial does not show it: they grow in training."""
    config = AutoConfig.from_pretrained(tiny.model)
    sizes = {key: getattr(config, key) for key in ("vocab_size", "hidden_size", "intermediate_size")}
    ids = {key: getattr(config, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(2)
    model = Gemma2ForCausalLM(
        Gemma2Config(**sizes, **ids, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    )
    assert model.config.final_logit_softcapping == 30.0
    with torch.no_grad():  # a cap of 30 changes logits of 1 by 0.0004, and of 20 by 2.5
        model.get_input_embeddings().weight.mul_(0.01)
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny.model).save_pretrained(tmp_path / "model")
    own = {"model_name_or_path": str(tmp_path / "model"), "pref_beta": 0.1, "max_steps": 12, "learning_rate": 5e-2}
    own |= {"finetuning_type": "full", "lora_rank": None, "lora_target": None}
    stock = train(tiny.recipe(tmp_path / "stock", stage="dpo", **own))
    ours = train(tiny.recipe(tmp_path / "ours", beta_mode="fixed", **own))
    assert series(ours, "loss") == pytest.approx(series(stock, "loss"), rel=1e-4, abs=1e-5)
