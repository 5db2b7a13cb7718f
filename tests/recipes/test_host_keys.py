"""Every key of LLaMA-Factory is decided on, and those without effect under a LEDPO stage are refused."""

from dataclasses import fields

import pytest
from conftest import train

from ledpo_plugin.host import arguments
from ledpo_plugin.hparams import argument_fields
from ledpo_plugin.recipes import host_keys
from ledpo_plugin.recipes.check import RecipeError, check_recipe
from ledpo_plugin.stages import STAGES


def _host_fields() -> dict[str, set[str]]:
    """The installed host's argument classes, each with the keys that a recipe may have."""
    from llamafactory.hparams import parser

    return {cls.__name__: {item.name for item in fields(cls) if item.init} for cls in parser._TRAIN_ARGS}


def test_every_key_of_the_host_is_decided_on():
    undecided = {
        name: sorted(keys - host_keys.decided()) for name, keys in _host_fields().items() if keys - host_keys.decided()
    }
    assert undecided == {}, "decide in recipes/host_keys.py whether they act under a LEDPO stage"


@pytest.mark.parametrize("key", ["moe_aux_loss_coef", "flash_attn", "infer_backend", "use_muon"])
def test_a_decision_that_is_deleted_is_missed(monkeypatch, key):
    """The test above can fail: without any one decision it does."""
    for table in ("ACTS", "REFUSED", "IGNORED"):
        kept = {name: value for name, value in getattr(host_keys, table).items() if name != key}
        if table == "ACTS":
            kept = {name: keys - {key} for name, keys in kept.items()}
        monkeypatch.setattr(host_keys, table, kept)
    with pytest.raises(AssertionError, match=key):
        test_every_key_of_the_host_is_decided_on()


def test_a_key_is_decided_on_once_and_none_is_the_plugin_s():
    groups = [*host_keys.ACTS.values(), set(host_keys.REFUSED), set(host_keys.IGNORED)]
    assert sum(map(len, groups)) == len(host_keys.decided())
    assert not host_keys.decided() & set(argument_fields())
    assert set(host_keys.ACTS) == set(_host_fields())


VALUES = {bool: True, int: 3, float: 0.5, str: "x"}


@pytest.mark.parametrize("key", sorted(host_keys.REFUSED))
def test_each_refused_key_is_refused_with_what_to_do(tiny, tmp_path, key):
    rule = host_keys.REFUSED[key]
    value = False if True in rule.harmless else True if rule.harmless == host_keys.OFF else 0.01
    found = _problems(tiny.recipe(tmp_path, **{key: value}), key)
    assert any(rule.why in text and rule.fix in text for text in found), found
    for fine in rule.harmless:
        assert not any(rule.why in text for text in _problems(tiny.recipe(tmp_path) | {key: fine}, key))


def _problems(recipe: dict, key: str) -> list[str]:
    found = check_recipe(recipe, arguments.recipe_keys(), {}, with_files=False)
    return [str(item) for item in found if item.key == key]


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_decoding_is_refused_where_nothing_is_generated(tiny, tmp_path, stage):
    recipe = tiny.recipe(tmp_path, stage=stage, top_p=0.9)
    assert bool(_problems(recipe, "top_p")) is not STAGES[stage].rollouts


@pytest.mark.parametrize("stage,refused", [("ledpo", True), ("ledpo_kto", False)])
def test_pairs_have_no_length_to_be_grouped_by(tiny, tmp_path, stage, refused):
    recipe = tiny.recipe(tmp_path, stage=stage, train_sampling_strategy="group_by_length")
    assert bool(_problems(recipe, "train_sampling_strategy")) is refused


def test_the_router_s_loss_is_refused_before_anything_loads(tiny, tmp_path):
    with pytest.raises(RecipeError, match=r"moe_aux_loss_coef: 0.01 -> .*auxiliary loss.*Fix: remove"):
        train(tiny.recipe(tmp_path / "run", moe_aux_loss_coef=0.01))
    assert not (tmp_path / "run").exists()
