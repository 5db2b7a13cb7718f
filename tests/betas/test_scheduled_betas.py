"""Betas that follow the steps of the run: a strategy of this file, known by one row, in the real trainer."""

import json

import pytest
import torch
from conftest import history, series, train
from test_betas import NoHostSync

from ledpo_plugin.betas import FINISHED, BetaFeatures, BetaOutput, BetaStrategy, Progress, strategy_class
from ledpo_plugin.facts import BETAS, LOSSES, BetaMode, Check, betas
from ledpo_plugin.host import arguments
from ledpo_plugin.modeling.head_file import progress_of
from ledpo_plugin.modeling.inference import beta_of_prompts
from ledpo_plugin.recipes.check import check_recipe, resolve_recipe

MODE = "falling"


class Falling(BetaStrategy):
    """beta0 (1 - share / 2): half of beta0 once the run is over."""

    def __init__(self, *, beta0: float = 0.1) -> None:
        super().__init__()
        self.register_buffer("beta", torch.tensor(beta0), persistent=False)

    @classmethod
    def from_arguments(cls, args, *, beta0, hidden_size, seed=0):
        return cls(beta0=beta0)

    def forward(self, features):
        return BetaOutput((self.beta * (1 - features.need_progress().share / 2)).expand(features.size))


@pytest.fixture(autouse=True)
def row(monkeypatch):
    row = BetaMode(
        name=MODE,
        where=f"{__name__}:Falling",
        kind="scheduled",
        formula="beta0 (1 - t / 2)",
        source="this test",
        summary="It falls.",
        check=Check("nothing", ()),
    )
    monkeypatch.setitem(betas.ROWS, MODE, row)
    return row


def expected(*shares):
    return pytest.approx([0.4 * (1 - share / 2) for share in shares], rel=1e-6)


# --- Training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "loss", "stage"),
    [
        ({"max_steps": 4}, "sigmoid", "ledpo"),
        ({"max_steps": 4, "gradient_accumulation_steps": 3}, "exo_pair", "ledpo"),
        ({"max_steps": None, "num_train_epochs": 1, "gradient_accumulation_steps": 3}, "hinge", "ledpo"),
        ({"max_steps": 4, "gradient_accumulation_steps": 2}, None, "ledpo_kto"),
    ],
    ids=["plain", "accumulated", "an epoch of accumulated steps", "kto"],
)
def test_beta_follows_the_steps_of_the_run(tiny, tmp_path, length, loss, stage):
    """48 pairs, 4 at a time, accumulated by 3: an epoch is 4 steps, too. All batches of a step have its beta."""
    length = {**length, "save_steps": 2, "save_strategy": "steps"}
    recipe = tiny.recipe(
        tmp_path / "run", stage=stage, pref_loss=loss, beta_mode=MODE, pref_beta=0.4, eval_dataset="heldout", **length
    )
    if stage == "ledpo":
        recipe |= {"eval_strategy": "steps", "eval_steps": 2}
    else:
        del recipe["eval_dataset"]
    run = train(recipe)
    assert series(run, "beta/mean") == expected(0, 1 / 4, 2 / 4, 3 / 4)
    assert series(run, "beta/std") == pytest.approx([0] * 4, abs=1e-7)
    assert progress_of(run) == Progress(4, 4)
    if stage == "ledpo":
        assert series(run, "eval_beta/mean") == expected(2 / 4, 1)
        # Read again from disk, as `ledpo beta` and everything that asks a finished run for its beta does.
        assert [row["beta"] for row in beta_of_prompts(run, ["any"])] == expected(1)
        assert [row["beta"] for row in beta_of_prompts(run / "checkpoint-2", ["any"])] == expected(2 / 4)


def test_a_resumed_run_goes_on_where_the_schedule_was(tiny, tmp_path):
    common = {"beta_mode": MODE, "pref_beta": 0.4, "max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    common |= {"gradient_accumulation_steps": 2}
    whole = train(tiny.recipe(tmp_path / "whole", **common))
    resumed = train(tiny.recipe(tmp_path / "part", **common, resume_from_checkpoint=str(whole / "checkpoint-3")))
    assert series(whole, "beta/mean") == expected(*(step / 6 for step in range(6)))
    for key in ("beta/mean", "loss"):
        assert series(resumed, key) == series(whole, key)
    assert [row["step"] for row in history(resumed) if "beta/mean" in row] == [1, 2, 3, 4, 5, 6]


# --- Alone -----------------------------------------------------------------------------------------------------------


def test_progress_is_a_share_of_the_run():
    assert [Progress(step, 4).share for step in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    # Evaluation without training: the host knows of no steps, and nothing is left to follow.
    assert Progress(0, 0).share == FINISHED.share == 1


def test_without_progress_it_says_so_and_with_it_it_waits_for_no_device():
    strategy = strategy_class(MODE)(beta0=0.4)
    with pytest.raises(ValueError, match="follows the steps of the run, and the progress of the run is not set"):
        strategy(BetaFeatures(size=2))
    with NoHostSync():
        strategy(BetaFeatures(size=2, progress=Progress(1, 3)))


def test_a_folder_that_does_not_say_is_of_a_run_that_is_over(tmp_path):
    assert progress_of(tmp_path) == FINISHED
    for text in ("{", "[]", json.dumps({"global_step": 3}), json.dumps({"global_step": None, "max_steps": 2})):
        (tmp_path / "trainer_state.json").write_text(text)
        assert progress_of(tmp_path) == FINISHED


def test_a_strategy_knows_its_row(row):
    assert Falling().mode is row
    assert Falling().needs == frozenset()

    class Stranger(Falling):
        pass

    with pytest.raises(LookupError, match="Stranger is the strategy of no beta mode"):
        Stranger().mode  # noqa: B018


# --- Recipes ---------------------------------------------------------------------------------------------------------

START = {"stage": "ledpo", "do_train": True, "model_name_or_path": "a/model", "dataset": "pairs", "template": "chatml"}
PPO = {"stage": "ledpo_ppo", "reward_model": "a/reward"}


def problems(**changes):
    return check_recipe({**START, "beta_mode": MODE, **changes}, arguments.recipe_keys(), {}, with_files=False)


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.data == "pairs"])
def test_a_recipe_may_choose_it_with_every_loss(name):
    assert problems(pref_loss=name) == []
    resolved = resolve_recipe({**START, "beta_mode": MODE, "pref_loss": name})
    assert resolved["beta_mode"] == MODE
    assert not {"beta_min", "beta_head_source", "beta_lr_ratio"} & resolved.keys()


@pytest.mark.parametrize(
    ("changes", "key", "why"),
    [
        ({"beta_min": 0.01}, "beta_min", "beta_mode is falling, and it acts only with global, head or ppl"),
        ({"budget_flops": 1e9, "lr_scheduler_type": "constant"}, "budget_flops", "beta_mode falling has to know it"),
        (PPO, "beta_mode", "changes beta in a preference loss, and stage ledpo_ppo trains on none"),
        (PPO | {"kl_control": "beta"}, "kl_control", "has no beta(x) that could weigh the KL"),
        ({"beta_mode": "fallin"}, "beta_mode", "falling"),
    ],
)
def test_a_recipe_in_which_it_cannot_work_is_refused(changes, key, why):
    found = [str(one) for one in problems(**changes) if one.key == key]
    assert any(why in text for text in found), found


def test_everything_that_lists_beta_modes_lists_it():
    from ledpo_plugin.cli.tables import betas_table, losses_table
    from ledpo_plugin.webui.keys import form_keys

    assert "| `falling` | `beta0 (1 - t / 2)` | no | no | It falls. | this test |" in betas_table()
    assert losses_table().count("`falling`") == len(LOSSES) - 1  # sigmoid admits all
    form_keys.cache_clear()
    try:
        assert MODE in form_keys()["beta_mode"].choices
    finally:
        form_keys.cache_clear()
    assert MODE in BETAS
