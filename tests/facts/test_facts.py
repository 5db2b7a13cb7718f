"""The tables of facts: free of torch, read-only, and every row names something that is there and is that."""

import subprocess
import sys
from collections import Counter

import pytest

from ledpo_plugin import betas, losses, rewards
from ledpo_plugin.facts import BETAS, DEFAULT_REWARD, LOSSES, REWARDS, either, implementation, is_learned, readers
from ledpo_plugin.hparams import argument_fields
from ledpo_plugin.recipes import rewards as reward_checks
from ledpo_plugin.recipes.rewards import idle_in

ROWS = [(BETAS, betas), (LOSSES, losses), (REWARDS, rewards)]
each_row = pytest.mark.parametrize(
    ("row", "package"),
    [(row, package) for table, package in ROWS for row in table.values()],
    ids=[f"{package.__name__.rpartition('.')[2]} {name}" for table, package in ROWS for name in table],
)


def test_the_tables_and_the_recipe_keys_need_no_torch():
    code = (
        "import sys, ledpo_plugin.hparams, ledpo_plugin.stages; "
        "print([name for name in sys.modules if name.split('.')[0] in ('torch', 'numpy', 'transformers')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@each_row
def test_a_row_names_what_is_there_and_what_it_names_is_of_its_package(row, package):
    found = implementation(row.where, package.__name__)
    assert callable(found)
    assert found.__module__.startswith(f"{package.__name__}.")
    assert found.__name__ == row.where.partition(":")[2]
    assert found.__doc__


def test_no_two_rows_name_the_same():
    for table, _ in ROWS:
        assert [where for where, count in Counter(row.where for row in table.values()).items() if count > 1] == []


def test_the_tables_are_read_only():
    for table, _ in ROWS:
        with pytest.raises(TypeError):
            table["new"] = next(iter(table.values()))


def test_what_a_row_names_is_an_attribute_of_its_package():
    assert losses.simpo is losses.function_of("simpo")
    assert betas.HeadBeta is betas.strategy_class("head")
    for package in (losses, betas):
        with pytest.raises(AttributeError, match="has no attribute 'none_such'"):
            package.none_such  # noqa: B018


def test_learned_betas_share_the_keys_of_learning():
    """A learned mode that is added reads them without being listed anywhere."""
    for key in ("beta_min", "beta_max", "beta_penalty", "beta_lr_ratio", "beta_head_path", "freeze_policy"):
        assert set(argument_fields()[key].metadata["modes"]) == set(filter(is_learned, BETAS))


def test_the_readers_of_a_key_are_the_losses_that_have_it_as_an_option():
    assert readers()["simpo_gamma"] == ("simpo", "alphapo")
    assert readers()["dpop_lambda"] == ("dpop",)
    assert {name for names in readers().values() for name in names} == {n for n, loss in LOSSES.items() if loss.options}


def test_rewards_and_their_checks_agree():
    assert DEFAULT_REWARD == "lora"
    assert set(reward_checks._CHOICES) | set(reward_checks._FILES) <= set(REWARDS)
    assert all(bool(reward.keys) == bool(reward.without) for reward in REWARDS.values())
    for name, reward in REWARDS.items():
        idle = idle_in({"reward_model": "x", "reward_model_type": name})
        assert not set(reward.keys) & set(idle)
        assert {key for other in REWARDS.values() if other is not reward for key in other.keys} == set(idle)


def test_names_as_in_a_sentence():
    assert either(["a"]) == "a"
    assert either(name for name in "abc") == "a, b or c"
