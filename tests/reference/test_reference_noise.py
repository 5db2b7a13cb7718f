"""What the reference says is a function of the cache's key: nothing that is random in a run acts in its passes.

Each source of randomness of training is switched on in turn. The reference's numbers must be those of the bare model,
and a run that finds them in the cache must start at zero margin.
"""

import importlib
import json
import math
from pathlib import Path

import pytest
import torch
from conftest import series, train
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, OPTConfig, SwitchTransformersConfig
from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersTop1Router

from ledpo_plugin.host.contract import TUNER
from ledpo_plugin.modeling.evaluation_mode import in_evaluation_mode
from ledpo_plugin.reference import cache as reference_cache
from ledpo_plugin.reference.cache import KEY, VALUES, ReferenceCache
from ledpo_plugin.training.passes import Passes
from ledpo_plugin.workflow import build_trainer

START = math.log(2)  # the loss of sigmoid at zero margin


def _with_tokenizer(tiny, model, folder: Path) -> str:
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny.model).save_pretrained(folder)
    return str(folder)


def _llama(tiny, folder: Path, **changes) -> str:
    """Write the tiny model, weights and all, with something random in its configuration."""
    config = AutoConfig.from_pretrained(tiny.model, **changes)
    return _with_tokenizer(tiny, AutoModelForCausalLM.from_pretrained(tiny.model, config=config), folder)


class _Jitter(torch.nn.Module):
    """A layer with a router of Switch Transformers before it, whose choice scales what the layer gives."""

    def __init__(self, layer: torch.nn.Module, width: int):
        super().__init__()
        torch.manual_seed(5)
        self.layer = layer
        self.router = SwitchTransformersTop1Router(
            SwitchTransformersConfig(d_model=width, num_experts=4, router_jitter_noise=0.9, expert_capacity=4096)
        )
        torch.nn.init.normal_(self.router.classifier.weight, std=0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output, scaled by the probability of the expert that was chosen."""
        chosen = next(part for part in self.router(x.clone()) if part.shape[-1] == 1)
        return self.layer(x) * chosen.view(*x.shape[:-1], 1)


def _opt(tiny, folder: Path) -> str:
    """Write a model that drops units, attention and whole layers at random."""
    config = AutoConfig.from_pretrained(tiny.model)
    torch.manual_seed(9)
    own = OPTConfig(
        vocab_size=config.vocab_size,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=512,
        dropout=0.3,
        attention_dropout=0.3,
        layerdrop=0.5,
        pad_token_id=config.pad_token_id,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
    )
    return _with_tokenizer(tiny, AutoModelForCausalLM.from_config(own), folder)


# What is random in training: keys of a recipe, given a folder to put a model into.
SOURCES = {
    "neftune": lambda tiny, folder: {"neftune_noise_alpha": 5.0},
    "attention dropout": lambda tiny, folder: {"model_name_or_path": _llama(tiny, folder, attention_dropout=0.4)},
    "lora dropout": lambda tiny, folder: {"lora_dropout": 0.5},
    "layers skipped": lambda tiny, folder: {"model_name_or_path": _opt(tiny, folder)},
    "all of the policy": lambda tiny, folder: {
        "model_name_or_path": _llama(tiny, folder, attention_dropout=0.4),
        "lora_dropout": 0.5,
        "neftune_noise_alpha": 5.0,
    },
}


def _trainer(recipe):
    arguments = importlib.import_module(TUNER).get_train_args(dict(recipe))
    return build_trainer(*arguments[:4])[0]


def _bare(recipe, data) -> torch.Tensor:
    """Return log-probabilities `[rows, 2]` of every pair under the model alone, loaded and summed in three lines."""
    model = AutoModelForCausalLM.from_pretrained(recipe["model_name_or_path"]).eval()
    sums = torch.zeros(len(data), 2)
    for row, pair in enumerate(data):
        for column, side in enumerate(("chosen", "rejected")):
            ids, labels = (torch.tensor([pair[f"{side}_{name}"]]) for name in ("input_ids", "labels"))
            with torch.no_grad():
                logps = model(input_ids=ids).logits.log_softmax(-1)[0, :-1]
            place = labels[0, 1:] != -100
            sums[row, column] = logps[torch.arange(len(logps)), ids[0, 1:]][place].sum()
    return sums


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LEDPO_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("source", list(SOURCES))
def test_a_training_run_keeps_what_the_bare_model_says(tiny, tmp_path, source):
    recipe = tiny.recipe(tmp_path / "run", beta_mode="fixed", max_steps=12, **SOURCES[source](tiny, tmp_path / "model"))
    trainer = _trainer(recipe)
    trainer.train()
    (cache,) = trainer.caches
    assert cache.complete
    torch.testing.assert_close(cache.values["logps"], _bare(recipe, trainer.train_dataset), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("stage", ["ledpo", "ledpo_kto"])
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_reference_passes_in_training_are_in_evaluation_mode_and_the_policy_s_are_not(
    tiny, tmp_path, monkeypatch, stage, tuning
):
    """Without a cache, too, and where the reference is a model of its own."""
    modes, original = [], Passes.reference_rows

    def watched(self, model, batch, **options):
        assert all(module.training for module in model.modules())
        with self.reference.at_work(model) as reference:
            modes.append({module.training for module in reference.modules()})
        result = original(self, model, batch, **options)
        assert all(module.training for module in model.modules())
        return result

    monkeypatch.setattr(Passes, "reference_rows", watched)
    common = {"disable_reference_cache": None if stage == "ledpo_kto" else True, "neftune_noise_alpha": 5.0}
    common |= {"lora_rank": None, "lora_target": None} if tuning == "full" else {}
    train(tiny.recipe(tmp_path / "run", stage=stage, finetuning_type=tuning, max_steps=2, **common))
    assert modes
    assert all(mode == {False} for mode in modes)


def test_a_router_s_jitter_is_off_in_a_reference_pass(tiny, tmp_path):
    trainer = _trainer(tiny.recipe(tmp_path / "run", beta_mode="fixed", disable_reference_cache=True))
    block = trainer.model.base_model.model.model.layers[0]
    block.mlp = _Jitter(block.mlp, 32)
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        policy = [trainer.passes.policy_rows(trainer.model, batch, counted=False).logps for _ in range(2)]
    assert not torch.equal(*policy)  # so it is random in training
    said = [trainer.passes.reference_rows(trainer.model, batch, counted=False).logps for _ in range(2)]
    assert torch.equal(*said)
    assert trainer.model.training


@pytest.mark.parametrize("noisy", [{"neftune_noise_alpha": 5.0}, {"lora_dropout": 0.5}, {}])
def test_a_clean_run_after_any_other_starts_at_exactly_zero_margin(tiny, tmp_path, noisy):
    common = {"beta_mode": "fixed", "pref_beta": 0.1}
    train(tiny.recipe(tmp_path / "noisy", max_steps=12, **common, **noisy))
    (values,) = (tmp_path / "cache" / "reference").glob("*/" + VALUES)
    before = load_file(values)
    clean = train(tiny.recipe(tmp_path / "clean", max_steps=1, **common))
    assert len(list((tmp_path / "cache" / "reference").glob("*/" + KEY))) == 1  # it read what the other kept
    assert before["filled"].all()
    assert torch.equal(load_file(values)["logps"], before["logps"])
    assert series(clean, "margins/beta_free") == [0.0]
    assert series(clean, "loss") == [pytest.approx(START, abs=1e-7)]


@pytest.mark.parametrize("before", [{"per_device_train_batch_size": 3, "seed": 2}, {"finetuning_type": "full"}])
def test_so_does_a_run_after_one_with_other_batches_or_tuning(tiny, tmp_path, before):
    common = {"beta_mode": "head", "neftune_noise_alpha": 5.0}
    full = {"lora_rank": None, "lora_target": None} if "finetuning_type" in before else {}
    train(tiny.recipe(tmp_path / "before", max_steps=16, **common, **full, **before))
    clean = train(tiny.recipe(tmp_path / "clean", beta_mode="head", max_steps=1))
    assert series(clean, "margins/beta_free")[0] == pytest.approx(0, abs=1e-4)  # the last bits are those of a batch
    assert series(clean, "loss")[0] == pytest.approx(START, abs=1e-5)


def test_noise_acts_in_the_policy_alone_and_is_the_same_with_and_without_the_cache(tiny, tmp_path):
    common = {"beta_mode": "fixed", "neftune_noise_alpha": 5.0, "max_steps": 4}
    runs = [train(tiny.recipe(tmp_path / name, **common)) for name in ("first", "cached")]
    runs.append(train(tiny.recipe(tmp_path / "without", disable_reference_cache=True, **common)))
    losses = [series(run, "loss") for run in runs]
    assert losses[0][0] != pytest.approx(START, abs=1e-4)
    assert losses[1] == losses[0]
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)


def test_what_an_older_version_kept_is_not_read(tmp_path, monkeypatch):
    fields = {"logps": (2,)}
    with monkeypatch.context() as patch:
        patch.setattr(reference_cache, "FORMULA", 1)
        old = ReferenceCache(tmp_path, {"model": "a"}, 2, fields)
        old.put(torch.tensor([0, 1]), {"logps": torch.ones(2, 2)})
        old.save()
    assert reference_cache.FORMULA > 1
    assert ReferenceCache(tmp_path, {"model": "a"}, 2, fields).lookup([0]) is None


def test_each_module_gets_its_own_mode_back():
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Sequential(torch.nn.Dropout(0.5)))
    model[1].eval()
    with in_evaluation_mode(model, torch.nn.Dropout(0.5)):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, True, False, False]


# ---- one key, one reference


def test_a_run_and_its_evaluation_have_one_reference(tiny, tmp_path):
    """Two adapters: the first is merged in training, so the second is compared with the model that has it."""
    train(tiny.recipe(tmp_path / "first", beta_mode="fixed", learning_rate=3e-2, max_steps=6))
    held_out = {"beta_mode": "fixed", "eval_dataset": "heldout", "eval_strategy": "steps", "eval_steps": 4}
    second = tiny.recipe(tmp_path / "second", adapter_name_or_path=str(tmp_path / "first"), **held_out)
    trained = train(second | {"create_new_adapter": True})
    assert abs(series(trained, "eval_margins/beta_free")[-1]) > 0.01
    both = f"{tmp_path / 'first'},{tmp_path / 'second'}"
    alone = tiny.recipe(
        tmp_path / "alone", do_train=False, do_eval=True, dataset=None, eval_dataset="heldout", beta_mode="fixed"
    )
    for changes in ({"disable_reference_cache": True}, {}, {"create_new_adapter": True}):
        out = train(alone | changes | {"adapter_name_or_path": both, "output_dir": str(tmp_path / str(len(changes)))})
        found = json.loads((out / "eval_results.json").read_text())["eval_margins/beta_free"]
        assert found == pytest.approx(series(trained, "eval_margins/beta_free")[-1], abs=1e-3)


# ---- layers that change in evaluation mode


class _Packing(torch.nn.Linear):
    """A linear layer that is lost for training once it is asked in evaluation mode, as bitsandbytes' on some CPUs."""

    packed = False

    def forward(self, x):
        """Return the layer's output; without a gradient from the first pass in evaluation mode on."""
        self.packed = self.packed or not (self.training or x.requires_grad)
        return super().forward(x.detach() if self.packed else x)


_Packing.__module__ = "bitsandbytes.nn.modules"


def test_no_pass_of_a_training_run_packs_quantised_weights(tiny, tmp_path):
    """Neither the trials before the first step, nor the reference's passes, nor an evaluation in between."""
    found = []

    def with_packing(model):
        for module in model.modules():
            if type(module) is torch.nn.Linear and not module.weight.requires_grad:
                module.__class__ = _Packing
                found.append(module)

    recipe = tiny.recipe(
        tmp_path / "run", beta_mode="fixed", eval_dataset="heldout", eval_strategy="steps", eval_steps=1, max_steps=3
    )
    plain = train(recipe | {"output_dir": str(tmp_path / "plain"), "disable_fused_lora": True})
    loader = importlib.import_module("llamafactory.model")
    original = loader.load_model

    def load_model(*args, **kwargs):
        model = original(*args, **kwargs)
        with_packing(model)
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ledpo_plugin.workflow.host_api", _pieces_with(load_model))
        run = train(recipe)
    assert found
    assert not any(module.packed for module in found)
    assert series(run, "grad_norm") == pytest.approx(series(plain, "grad_norm"), rel=1e-4)


def _pieces_with(load_model):
    from types import SimpleNamespace

    from ledpo_plugin.host.contract import host_api

    return lambda: SimpleNamespace(**(vars(host_api()) | {"load_model": load_model}))
