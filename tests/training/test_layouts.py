"""The fast ways are the default and change no result: against the ordinary layout, for every loss and beta mode."""

import pytest
import torch
from conftest import series, train

from ledpo_plugin.facts import BETAS, LOSSES

PLAIN = {
    "disable_shared_prompt": True,
    "disable_response_logits": True,
    "disable_reference_cache": True,
    "disable_fused_lora": True,
}
# Adam divides by the gradient's own size: with its usual epsilon an entry that is 0 but for rounding moves as far as
# any other, in a direction that rounding decides. This epsilon is far below every gradient that means something here.
STEADY = {"adam_epsilon": 1e-5}
# epsilon-DPO counts a pair up or down by comparing two numbers. Where they are equal but for rounding, one pair of four
# counts otherwise, which moves the mean beta by a quarter of epsilon, and the next step's by as much again.
OF_STEPS = {"epsilon_dpo": 1e-2}
PAIRWISE = sorted(name for name, row in LOSSES.items() if row.data == "pairs")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """What other tests left in the cache came from other batches, and differs in the last bits; some losses have a kink
    or a quotient of rounding at the start, which makes more of them."""
    monkeypatch.setenv("LEDPO_CACHE", str(tmp_path / "cache"))


def _compare(tiny, tmp_path, keys=("loss", "margins/beta_free", "beta/mean"), **changes):
    runs = []
    for name, switches in (("plain", PLAIN), ("fast", {})):
        runs.append(train(tiny.recipe(tmp_path / name, **{"max_steps": 20, **STEADY, **changes, **switches})))
    plain, fast = runs
    for key in keys:
        expected = series(plain, key)
        # Beta has an optimizer of its own, which makes a little more of rounding. Margins are differences of sums of
        # about 200 nats, of which fp32 keeps 2e-5 each.
        of_beta = OF_STEPS.get(changes.get("beta_mode"), 1e-3)
        rel, slack = {"loss": (1e-4, 0.0), "beta/mean": (of_beta, 0.0)}.get(key, (1e-4, 1e-3))
        assert series(fast, key) == pytest.approx(expected, rel=rel, abs=slack), key
    assert len(set(series(plain, "loss"))) > 1
    return plain, fast


@pytest.mark.parametrize("loss", PAIRWISE)
def test_every_loss_has_the_same_trajectory(tiny, tmp_path, loss):
    # dpop's usual weight of 50 makes 50 times as much of the rounding of one log-ratio.
    options = {"dpop_lambda": 5.0} if loss == "dpop" else {}
    _compare(tiny, tmp_path, pref_loss=loss, beta_mode="fixed", learning_rate=1e-3, **options)


@pytest.mark.parametrize("mode", BETAS)
def test_every_beta_mode_has_the_same_trajectory(tiny, tmp_path, mode):
    _compare(tiny, tmp_path, beta_mode=mode, learning_rate=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"disable_gradient_checkpointing": False},
        {"finetuning_type": "full", "lora_rank": None, "lora_target": None, "learning_rate": 1e-4},
        {"ld_alpha": 0.5, "pref_ftx": 0.2},
        {"beta_head_source": "policy"},
        {"flash_attn": "disabled"},
    ],
    ids=["gradient checkpointing", "full tuning", "ld_alpha and pref_ftx", "policy head", "eager attention"],
)
def test_so_have_other_settings(tiny, tmp_path, changes):
    _compare(tiny, tmp_path, **{"beta_mode": "head", "learning_rate": 1e-3, **changes})


def test_each_part_can_be_turned_off(tiny, tmp_path, monkeypatch):
    """Counted where it happens: shared rows, planned positions and passes of the reference."""
    from ledpo_plugin.modeling import forward
    from ledpo_plugin.training import collator, passes

    counts: dict[str, int] = {}

    def count(module, name):
        original = getattr(module, name)

        def counted(*args, **kwargs):
            counts[name] = counts.get(name, 0) + 1
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, counted)

    count(collator, "shared_batch")
    count(forward, "_planned")
    count(forward, "_plain")
    count(passes, "to_values")
    monkeypatch.setenv("LEDPO_CACHE", str(tmp_path / "cache"))
    steps = {"max_steps": 12, "beta_mode": "head"}  # one epoch, so that the second run finds everything
    seen = {}
    for name, switches in (
        ("all", {}),
        ("again", {}),
        ("no cache", {"disable_reference_cache": True}),
        ("rows", {"disable_shared_prompt": True}),
        ("plain", PLAIN),
    ):
        counts.clear()
        train(tiny.recipe(tmp_path / name, **steps, **switches))
        seen[name] = dict(counts)
    check = 1  # the trial of each layout on the loaded model
    assert seen["all"] == {"_plain": check, "_planned": 2 * check + 24, "shared_batch": check + 12, "to_values": 12}
    assert seen["again"] == {"_plain": check, "_planned": 2 * check + 12, "shared_batch": check + 12}
    assert seen["no cache"] == {"_plain": check, "_planned": 2 * check + 24, "shared_batch": check + 12}
    assert seen["rows"] == {"_plain": check, "_planned": check + 12}
    assert seen["plain"] == {"_plain": 24}


def _by_place(logits):
    """Scale the logits of each token by how far it is from the first."""
    return logits * (1 + 0.02 * torch.arange(logits.shape[1])).view(1, -1, 1)


BEHIND = {"cap": lambda logits: 3.0 * logits.tanh(), "by place": _by_place}


@pytest.mark.parametrize("kind", list(BEHIND))
def test_a_model_that_answers_otherwise_is_trained_in_the_ordinary_layout(tiny, tmp_path, monkeypatch, kind):
    """A cap behind the output layer is kept in every layout; what depends on the place is found by the trial."""
    from transformers import LlamaForCausalLM

    original = LlamaForCausalLM.forward

    def otherwise(self, *args, **kwargs):
        output = original(self, *args, **kwargs)
        output.logits = BEHIND[kind](output.logits)
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", otherwise)
    monkeypatch.setenv("LEDPO_CACHE", str(tmp_path / "cache"))
    from ledpo_plugin.training import trainer

    notes = []
    decide = trainer.enable_fast_paths

    def noting(*args, **kwargs):
        chosen, why = decide(*args, **kwargs)
        notes.extend(why)
        return chosen, why

    monkeypatch.setattr(trainer, "enable_fast_paths", noting)
    _compare(tiny, tmp_path, beta_mode="fixed", learning_rate=1e-3, max_steps=4)
    if kind == "cap":
        assert notes == []
        return
    assert len(notes) == 1
    assert "Logits at response positions only: not used, because the model gives other log-probabilities" in notes[0]
