"""Log-probabilities, the place of the last prompt token, and what else a pass gives."""

import pytest
import torch
from llamafactory.train.trainer_utils import get_batch_logps
from transformers import AutoModelForCausalLM

from ledpo_plugin.forward import KEEP_FROM, add_keep_from, forward_rows
from ledpo_plugin.logps import IGNORE, first_label, prompt_nll, response_entropy, sum_logps, token_logps


@pytest.fixture(scope="module")
def model(tiny):
    """The tiny model, in fp32."""
    return AutoModelForCausalLM.from_pretrained(tiny.model).eval()


def _batch(pad: int, prompts=(5, 9, 5, 9), responses=(4, 3, 7, 2)) -> dict[str, torch.Tensor]:
    """Rows as the host's collator makes them: right-padded, labels only on the response."""
    generator = torch.Generator().manual_seed(5)
    width = max(p + r for p, r in zip(prompts, responses, strict=True)) + 3
    ids = torch.full((len(prompts), width), pad)
    labels = torch.full_like(ids, IGNORE)
    mask = torch.zeros_like(ids)
    for i, (p, r) in enumerate(zip(prompts, responses, strict=True)):
        row = torch.randint(1, 250, (p + r,), generator=generator)
        ids[i, : p + r], mask[i, : p + r], labels[i, p : p + r] = row, 1, row[p:]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("ld_alpha", [None, 0.0, 0.5, 1.0])
def test_log_probabilities_equal_the_host_s(ld_alpha):
    batch = _batch(pad=256)
    logits = torch.randn(4, batch["labels"].shape[1], 259, generator=torch.Generator().manual_seed(1)).double()
    expected, lengths = get_batch_logps(logits, batch["labels"], ld_alpha=ld_alpha)
    labels = batch["labels"][:, 1:]
    got = sum_logps(token_logps(logits[:, :-1], labels), labels, ld_alpha)
    torch.testing.assert_close(got, expected.float(), rtol=1e-5, atol=1e-5)
    assert lengths.tolist() == [4, 3, 7, 2]


@pytest.mark.parametrize("pad", [0, 256, 17])
def test_the_last_prompt_token_is_found_whatever_the_pad_id(pad):
    """With a pad id that is not 0 (Qwen), counting ids that differ from 0 lands inside the response: the old leak."""
    batch = _batch(pad=pad)
    assert first_label(batch["labels"]).tolist() == [5, 9, 5, 9]


def test_the_hidden_state_is_that_of_the_last_prompt_token_and_knows_nothing_of_the_answer(model):
    batch = _batch(pad=256)
    hidden = forward_rows(model, batch, wants=frozenset({"hidden"})).hidden
    for row, prompt in enumerate((5, 9, 5, 9)):
        alone = model.model(batch["input_ids"][row : row + 1, :prompt]).last_hidden_state[0, -1]
        torch.testing.assert_close(hidden[row], alone, rtol=1e-4, atol=1e-5)
    other = {key: value.clone() for key, value in batch.items()}
    place = other["labels"] != IGNORE
    other["input_ids"][place] = other["labels"][place] = (other["labels"][place] + 7) % 250
    torch.testing.assert_close(forward_rows(model, other, wants=frozenset({"hidden"})).hidden, hidden)


def test_logits_before_the_responses_are_not_needed(model):
    batch = _batch(pad=256)
    whole = forward_rows(model, batch, wants=frozenset({"hidden"}))
    add_keep_from(batch)
    assert batch[KEEP_FROM] == 4
    part = forward_rows(model, batch, wants=frozenset({"hidden", "logits"}))
    assert part.logits.shape[1] == batch["labels"].shape[1] - 4 - 1
    torch.testing.assert_close(part.logps, whole.logps, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(part.hidden, whole.hidden)
    torch.testing.assert_close(part.lengths, torch.tensor([4, 3, 7, 2]))


def test_prompt_nll_is_the_mean_over_the_prompt_s_own_tokens(model):
    batch = _batch(pad=256)
    got = forward_rows(model, batch, wants=frozenset({"prompt_nll"})).prompt_nll
    for row, prompt in enumerate((5, 9, 5, 9)):
        ids = batch["input_ids"][row : row + 1, :prompt]
        expected = model(input_ids=ids, labels=ids).loss
        torch.testing.assert_close(got[row], expected, rtol=1e-4, atol=1e-5)


def test_prompt_nll_of_a_single_token_prompt_is_zero():
    logits = torch.randn(1, 4, 10)
    ids = torch.tensor([[3, 1, 2, 4]])
    assert prompt_nll(logits, ids, torch.ones_like(ids), torch.tensor([1])).item() == 0.0


def test_response_entropy_by_hand():
    """Uniform logits have entropy ln|V|, so 1 after division; a sure prediction has 0; their mean is 0.5."""
    logits = torch.zeros(1, 3, 8)
    logits[0, 1, 2] = 1e4
    labels = torch.tensor([[1, 2, IGNORE]])
    assert response_entropy(logits, labels).item() == pytest.approx(0.5, abs=1e-6)


def test_gradients_reach_the_policy_through_log_probabilities_only(model):
    batch = _batch(pad=256)
    model.zero_grad()
    output = forward_rows(model, batch, wants=frozenset({"hidden", "prompt_nll", "entropy", "logits"}))
    assert not output.hidden.requires_grad
    assert not output.prompt_nll.requires_grad
    assert not output.entropy.requires_grad
    assert not output.logits.requires_grad
    output.logps.sum().backward()
    assert model.model.embed_tokens.weight.grad.abs().sum() > 0
    model.zero_grad()
