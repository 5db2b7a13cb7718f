"""The order of steps and prompts, the drawing of answers, scores token by token, and rollouts on disk."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from ledpo_plugin.modeling.head_file import HeadFileError
from ledpo_plugin.modeling.logps import IGNORE
from ledpo_plugin.rl.generate import Answer, InverseTransform, Sampling, cut_behind_stop, generate, numbers_of
from ledpo_plugin.rl.rollout import Rollout, load_rollout, save_rollout
from ledpo_plugin.rl.sampler import NO_ROW, PromptOrder, Schedule, Sizes, SlotBatches, rows_of_update
from ledpo_plugin.rl.scores import answers_batch, score_answers
from ledpo_plugin.rl.targets import best_and_worst, pair_row

SIZES = Sizes(batch=2, accumulated=2, buffer=3, epochs=2, group=4)


# ---- order


def test_a_schedule_says_which_steps_are_ppos():
    schedule = Schedule.read("3:2")
    assert [schedule.is_ppo(step) for step in range(10)] == [False, False, False, True, True] * 2
    # Each step's number among the PPO steps is how many came before it.
    assert [schedule.ppo_steps_before(step) for step in range(10) if schedule.is_ppo(step)] == [0, 1, 2, 3]
    alone = Schedule(0, 1)
    assert [alone.ppo_steps_before(step) for step in range(4)] == [0, 1, 2, 3]


@pytest.mark.parametrize("text", ["4", "4:", ":4", "4:0", "0:4", "a:b", "-1:2", "1.5:2", "4:4:4"])
def test_a_schedule_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match=r"k:m|without a step"):
        Schedule.read(text)


def test_every_pass_over_the_prompts_has_each_once_in_an_order_of_its_own():
    order = PromptOrder(7, seed=3)
    rows = order.rows(0, 21)
    passes = [rows[start : start + 7] for start in (0, 7, 14)]
    assert all(sorted(one) == list(range(7)) for one in passes)
    assert len({tuple(one) for one in passes}) == 3
    # Any stretch can be asked for, in any order, as after a resume.
    fresh = PromptOrder(7, seed=3)
    assert fresh.rows(12, 6) == rows[12:18]
    assert fresh.rows(2, 4) == rows[2:6]
    assert PromptOrder(7, seed=4).rows(0, 7) != passes[0]
    assert PromptOrder(5, seed=3, shuffled=False).rows(3, 4) == [3, 4, 0, 1]


def test_the_updates_of_a_rollout_use_each_answer_once_an_epoch():
    for epoch in range(SIZES.epochs):
        used = [
            row
            for part in range(SIZES.buffer)
            for row in rows_of_update(SIZES, 1, iteration=5, update=epoch * SIZES.buffer + part, rank=0)
        ]
        assert sorted(used) == list(range(SIZES.rollout))
    first = rows_of_update(SIZES, 1, 5, 0, rank=0)
    assert first != rows_of_update(SIZES, 1, 5, SIZES.buffer, rank=0)
    assert first != rows_of_update(SIZES, 1, 6, 0, rank=0)


def test_batches_of_an_alternating_epoch_hold_every_pair_once_in_ledpo_steps():
    batches = SlotBatches(12, sizes=Sizes(2, 1, 1, 2, 1), processes=1, schedule=Schedule(2, 2), seed=0)
    found = list(batches)
    # 12 pairs, 2 a step: 6 LEDPO steps, 3 cycles of 4 steps.
    assert len(found) == len(batches) == 12
    pairs = [batch for step, batch in enumerate(found) if step % 4 < 2]
    assert sorted(row for batch in pairs for row in batch) == list(range(12))
    assert all(batch == [NO_ROW] * 2 for step, batch in enumerate(found) if step % 4 >= 2)
    batches.set_epoch(1)
    assert list(batches) != found


def test_an_epoch_of_ppo_is_a_pass_over_the_prompts():
    # A rollout of one process answers 3 prompts (2 * 2 * 3 answers, 4 each): 2 processes need 2 rollouts for 10.
    batches = SlotBatches(10, sizes=SIZES, processes=2, schedule=Schedule(0, 1), seed=0)
    assert batches.steps == 2 * SIZES.updates
    assert len(batches) == batches.steps * SIZES.accumulated * 2


# ---- drawing


def test_a_draw_takes_each_token_as_often_as_its_probability():
    """Numbers evenly spread over [0, 1): of 4000 a token of probability p gets 4000 p, give or take one."""
    scores = torch.tensor([[0.3, -1.0, 2.0, float("-inf"), 0.0]]).expand(4000, 5)
    numbers = ((torch.arange(4000) + 0.5) / 4000).unsqueeze(1)
    drawn = InverseTransform(numbers, start=3)(torch.zeros(4000, 3, dtype=torch.long), scores).argmax(1)
    counts = torch.bincount(drawn, minlength=5)
    expected = torch.softmax(scores[0], 0) * 4000
    assert (counts - expected).abs().max() <= 1.5
    assert counts[3] == 0


@pytest.mark.parametrize("number", [0.0, 1 - 2**-24])
def test_the_ends_of_the_numbers_draw_no_token_that_was_excluded(number):
    scores = torch.tensor([[float("-inf"), 1.0, 2.0, float("-inf")]])
    drawn = InverseTransform(torch.tensor([[number]]), start=0)(torch.zeros(1, 0, dtype=torch.long), scores).argmax(1)
    assert drawn.item() in (1, 2)


@pytest.fixture(scope="module")
def model(tiny):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny.model).eval()


def sampling(**changes) -> Sampling:
    return Sampling(**({"max_new_tokens": 6, "stops": (258,), "pad_id": 256} | changes))


PROMPTS = [[257, 70, 71, 72], [257, 80], [257, 90, 91, 92, 93, 94], [257, 81, 82]]


def test_an_answer_depends_on_its_prompt_and_seed_alone(model):
    together = generate(model, PROMPTS, [11, 12, 13, 14], sampling())
    alone = [generate(model, [p], [s], sampling())[0] for p, s in zip(PROMPTS, [11, 12, 13, 14], strict=True)]
    assert together == alone
    assert generate(model, PROMPTS[:1], [99], sampling())[0] != alone[0]
    assert all(1 <= len(answer.ids) <= 6 for answer in alone)


def test_filters_and_greedy_answers_are_transformers_own(model):
    import torch.nn.functional as F

    greedy = generate(model, PROMPTS[:1], [0], sampling(greedy=True))[0]
    assert generate(model, PROMPTS[:1], [5], sampling(top_k=1))[0] == greedy
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(PROMPTS[:1])).logits[0, -1]
    assert greedy.ids[0] == logits.argmax()
    # The first token of 300 seeds at temperature 0.5 and top_k 3: only the three, as often as their probabilities say.
    top = logits.topk(3).indices.tolist()
    drawn = generate(model, PROMPTS[:1] * 300, list(range(300)), sampling(top_k=3, temperature=0.5, max_new_tokens=1))
    share = torch.tensor([sum(answer.ids[0] == token for answer in drawn) / 300 for token in top])
    assert share.sum() == 1
    expected = F.softmax(logits[top] / 0.5, 0)
    assert (share - expected).abs().max() < 4 * (0.25 / 300) ** 0.5


def test_an_answer_ends_with_the_token_that_ends_it():
    assert cut_behind_stop([4, 5, 9, 7], frozenset({9})) == Answer([4, 5, 9], True)
    assert cut_behind_stop([4, 5], frozenset({9})) == Answer([4, 5], False)


def test_the_numbers_of_an_answer_follow_from_its_seed():
    both = numbers_of([3, 4], 5)
    assert torch.equal(both[1], numbers_of([4], 5)[0])
    assert ((both >= 0) & (both < 1)).all()


# ---- scores


def test_scores_of_answers_are_those_of_the_models_logits(model):
    answers = [[65, 66, 258], [70], [71, 72], [73, 74, 75, 258]]
    batch = answers_batch(PROMPTS, answers, 256, plan_prompts=True)
    with torch.no_grad():
        found = score_answers(model, batch, frozenset({"states", "hidden", "prompt_nll"}), temperature=0.7)
        for row, (prompt, answer) in enumerate(zip(PROMPTS, answers, strict=True)):
            output = model(input_ids=torch.tensor([prompt + answer]), output_hidden_states=True)
            logps = torch.log_softmax(output.logits[0], 1)
            cooled = torch.log_softmax(output.logits[0] / 0.7, 1)
            places = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
            own = torch.stack([cooled[place, token] for place, token in zip(places, answer, strict=True)])
            torch.testing.assert_close(found.logps[row, : len(answer)], own, rtol=1e-4, atol=1e-5)
            assert not found.logps[row, len(answer) :].any()
            states = output.hidden_states[-1][0, len(prompt) - 1 : -1]
            torch.testing.assert_close(found.states[row, : len(answer)], states, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found.hidden[row], states[0], rtol=1e-4, atol=1e-5)
            nll = -torch.stack([logps[i, prompt[i + 1]] for i in range(len(prompt) - 1)]).mean()
            torch.testing.assert_close(found.prompt_nll[row], nll, rtol=1e-4, atol=1e-5)


def test_a_temperature_is_refused_where_the_output_layer_has_a_bias(model):
    import copy

    biased = copy.deepcopy(model)
    old = biased.get_output_embeddings()
    biased.set_output_embeddings(torch.nn.Linear(old.in_features, old.out_features, bias=True))
    batch = answers_batch(PROMPTS[:1], [[65]], 256)
    score_answers(biased, batch)
    with pytest.raises(ValueError, match=r"Set temperature: 1\.0"):
        score_answers(biased, batch, temperature=0.7)


# ---- pairs


def test_pairs_are_best_against_worst_where_they_differ():
    scores = torch.tensor([1.0, 3.0, 2.0, 5.0, 5.0, 5.0, 0.0, 9.0, 4.0])
    valid = torch.tensor([True, True, True, True, True, True, True, False, True])
    # The last prompt's best answer has no reward, the middle one's answers are worth the same.
    assert best_and_worst(scores, valid, 3) == [(1, 0), (8, 6)]
    assert best_and_worst(scores, torch.zeros(9, dtype=torch.bool), 3) == []


def test_a_pair_of_answers_looks_like_a_pair_of_the_data(tiny, tmp_path):
    row = pair_row([1, 2], [3, 4], [5])
    assert row["chosen_input_ids"] == [1, 2, 3, 4]
    assert row["rejected_labels"] == [IGNORE, IGNORE, 5]
    assert row["rejected_attention_mask"] == [1, 1, 1]


# ---- on disk


def rollout() -> Rollout:
    rows = torch.arange(6.0).view(2, 3)
    return Rollout(
        iteration=4,
        prompts=[[1, 2], [3]],
        answers=[[4, 5, 6], [7]],
        mask=torch.tensor([[True, True, True], [True, False, False]]),
        old_logps=rows,
        reference_logps=rows + 1,
        advantages=torch.tensor([0.5, -0.5]),
        coefficient=torch.tensor([0.1, 0.2]),
    )


def test_a_rollout_comes_back_from_disk_as_it_was(tmp_path):
    pool = [pair_row([1], [2], [3])]
    save_rollout(tmp_path, 1, rollout(), pool)
    found, kept = load_rollout(tmp_path, 1)
    assert kept == pool
    assert (found.iteration, found.prompts, found.answers, found.values) == (4, [[1, 2], [3]], [[4, 5, 6], [7]], None)
    for name in Rollout.tensor_names():
        before, after = getattr(rollout(), name), getattr(found, name)
        assert (before is None and after is None) or torch.equal(before, after), name
    assert found.rows("old_logps", [1], 1).tolist() == [[3.0]]
    save_rollout(tmp_path, 0, None, [])
    assert load_rollout(tmp_path, 0) == (None, [])


@pytest.mark.parametrize("damage", ["missing", "cut", "other tensors"])
def test_a_damaged_rollout_is_refused(tmp_path, damage):
    save_rollout(tmp_path, 0, rollout(), [])
    path = tmp_path / "ledpo_rollout_0.safetensors"
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:50])
    else:
        save_file(load_file(path) | {"surprise": torch.zeros(1)}, path)
    with pytest.raises(HeadFileError, match="with the same number of processes"):
        load_rollout(tmp_path, 0)
