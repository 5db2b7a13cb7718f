"""New tokens and reference models of their own: what a run starts from is found again, or the recipe is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import series, train, untied, write_recipe

from eval_harness.generation.loading import load
from ledpo_plugin import workflow
from ledpo_plugin.betas import BetaFeatures
from ledpo_plugin.cli import main
from ledpo_plugin.experiments.measuring.loader import measuring_recipe
from ledpo_plugin.host.arguments import recipe_keys
from ledpo_plugin.modeling.forward import forward_rows
from ledpo_plugin.modeling.inference import beta_of_prompts, pad_prompts
from ledpo_plugin.recipes.check import RecipeError, check_recipe
from ledpo_plugin.rewards._runs import RunProblem, read_run

NEW = {"add_special_tokens": "<a>,<b>", "resize_vocab": True}
ASKED = "stone <a> river <b>"


def _kept(monkeypatch):
    """Return a list that the trainer of the next run goes into."""
    found, original = [], workflow.build_trainer

    def build_trainer(*args, **kwargs):
        made = original(*args, **kwargs)
        found.append(made[0])
        return made

    monkeypatch.setattr(workflow, "build_trainer", build_trainer)
    return found


def test_a_run_with_new_tokens_has_its_own_reference_for_every_seed(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("LEDPO_CACHE", str(tmp_path / "cache"))
    common = {"beta_mode": "fixed", **NEW}
    train(tiny.recipe(tmp_path / "one", seed=1, max_steps=12, **common))
    other = train(tiny.recipe(tmp_path / "two", seed=2, max_steps=1, **common))
    assert series(other, "loss") == [pytest.approx(0.693147, abs=1e-5)]


@pytest.mark.parametrize("changes", [{}, {"beta_head_source": "policy"}, {"bf16": True, "use_cpu": True}], ids=str)
def test_beta_of_a_run_with_new_tokens_is_that_of_its_trainer(tiny, tmp_path, monkeypatch, changes):
    trainers = _kept(monkeypatch)
    run = train(tiny.recipe(tmp_path / "run", beta_mode="head", seed=3, max_steps=6, **NEW, **changes))
    torch.manual_seed(77)  # nothing of what is asked for depends on the state that is left over
    loaded = load(run)
    ids = loaded.encode([ASKED])
    model, tokenizer = trainers[0].model.eval(), trainers[0].processing_class
    assert tokenizer.convert_tokens_to_ids("<a>") in ids[0]
    batch = pad_prompts(ids, tokenizer, "cpu")
    policy = changes.get("beta_head_source") == "policy"
    with torch.no_grad(), trainers[0].compute_loss_context_manager():
        if policy:
            hidden = forward_rows(model, batch, wants=frozenset({"hidden"})).hidden
        else:
            with trainers[0].reference.at_work(model) as reference:
                hidden = forward_rows(reference, batch, wants=frozenset({"hidden"})).hidden
        wanted = trainers[0].strategy.eval()(BetaFeatures(size=1, hidden=hidden, training=False)).beta.item()
    near = {"rel": 2e-2 if "bf16" in changes else 1e-4}
    found = beta_of_prompts(run, [ASKED])[0]
    assert found["prompt_tokens"] == len(ids[0])
    assert found["beta"] == pytest.approx(wanted, **near)
    assert loaded.betas([ASKED])[0] == pytest.approx(wanted, **near)
    with torch.no_grad():
        said = loaded.model(input_ids=torch.tensor(ids)).logits
        torch.testing.assert_close(said, model(input_ids=torch.tensor(ids)).logits.float(), rtol=5e-2, atol=5e-2)
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps([{"prompt": ASKED}]))
    out = ["--out", str(tmp_path / "answers.json"), "--max-new-tokens", "3"]
    assert main(["eval", "generate", str(run), "--prompts", str(prompts), *out]) == 0


def test_other_places_that_would_load_such_a_start_anew_say_so(tiny, tmp_path):
    recipe = tiny.recipe(tmp_path / "run", beta_mode="fixed", max_steps=1, **NEW)
    run = train(recipe)
    with pytest.raises(RunProblem, match="lacks the weights it started from"):
        read_run(str(run))
    with pytest.raises(ValueError, match="Save the model with its new weights first"):
        measuring_recipe(recipe, tmp_path / "measured", reference_model=False)


@pytest.mark.parametrize(
    "changes",
    [
        *({"finetuning_type": kind, "lora_rank": None} for kind in ("full", "freeze", "oft")),
        {"ref_model": "MODEL"},
        {"do_train": False, "do_eval": True, "dataset": None, "eval_dataset": "heldout"},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "new", [{"add_special_tokens": "<a>"}, {"add_tokens": "stone"}, {"resize_vocab": True}], ids=str
)
def test_a_reference_that_is_loaded_anew_lacks_new_tokens(tiny, tmp_path, changes, new):
    changes = {key: str(tiny.model) if value == "MODEL" else value for key, value in changes.items()}
    recipe = tiny.recipe(tmp_path / "run", beta_mode="fixed", **changes)
    assert check_recipe(recipe, recipe_keys(), {}) == []
    (found,) = check_recipe(recipe | new, recipe_keys(), {})
    assert found.key == next(iter(new))
    assert "Fix: save the model with its new weights first" in found.message
    assert check_recipe({**recipe, **new, "ref_model": None, "stage": "ledpo_orpo"}, recipe_keys(), {}) == []


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "llama3"])
def test_longer_contexts_are_refused_where_the_host_stops(tiny, tmp_path, kind):
    recipe = tiny.recipe(tmp_path / "run", rope_scaling=kind)
    (found,) = check_recipe(recipe, recipe_keys(), {})
    assert found.key == "rope_scaling"
    assert "Fix: remove it; for a longer context write rope_parameters" in found.message
    assert check_recipe(recipe, recipe_keys(), {}, with_files=False) == []


# ---- a reference model of its own


def _other_tokens(tiny, folder: Path) -> str:
    """Write the tiny model with two letters of its tokenizer exchanged."""
    shutil.copytree(tiny.model, folder)
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(tokenizer))
    return str(folder)


def _fewer_rows(tiny, folder: Path) -> str:
    return str(untied(tiny, folder, vocab_size=200, pad_token_id=1, bos_token_id=2, eos_token_id=3))


@pytest.mark.parametrize(
    ("make", "why"), [(_other_tokens, "another tokenizer .*2 tokens differ"), (_fewer_rows, "vocabulary of 200")]
)
def test_a_reference_model_that_reads_other_tokens_is_refused(tiny, tmp_path, monkeypatch, capsys, make, why):
    recipe = tiny.recipe(tmp_path / "run", beta_mode="fixed", ref_model=make(tiny, tmp_path / "other"))
    assert main(["validate", write_recipe(tmp_path / "recipe.yaml", recipe)]) == 1
    assert "ref_model" in capsys.readouterr().out
    with pytest.raises(RecipeError, match=why):
        train(recipe)
    monkeypatch.setattr("ledpo_plugin.recipes.files._tokens", lambda folder: {})  # as of a model on the hub
    with pytest.raises(ValueError, match=f"ref_model: .*{why}"):
        train(recipe)


def test_the_head_has_the_width_of_the_reference_that_it_reads(tiny, tmp_path):
    wide = untied(tiny, tmp_path / "wide", hidden_size=64)
    common = {"beta_mode": "head", "max_steps": 2, "ref_model": str(wide)}
    run = train(tiny.recipe(tmp_path / "run", **common))
    own = train(tiny.recipe(tmp_path / "own", beta_head_source="policy", **common))
    widths = [json.loads((folder / "beta_head.json").read_text())["hidden_size"] for folder in (run, own)]
    assert widths == [64, 32]
    for folder in (run, own):
        asked = beta_of_prompts(folder, ["river stone"])[0]["beta"]
        assert load(folder).betas(["river stone"])[0] == pytest.approx(asked, rel=1e-5)
    assert len(series(train(tiny.recipe(tmp_path / "again", **common)), "loss")) == 2  # from the cache


def test_more_rows_than_tokens_do_no_harm(tiny, tmp_path):
    more = untied(tiny, tmp_path / "more", vocab_size=320)
    common = {"max_steps": 1, "ref_model": str(more)}
    assert len(series(train(tiny.recipe(tmp_path / "run", beta_mode="fixed", **common)), "loss")) == 1
    with pytest.raises(ValueError, match="mixes the logits"):
        train(tiny.recipe(tmp_path / "mixed", beta_mode="epsilon_dpo", **common))
