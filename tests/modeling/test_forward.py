"""Log-probabilities, the place of the last prompt token, and what else a pass gives."""

import pytest
import torch
from llamafactory.train.trainer_utils import get_batch_logps
from transformers import AutoModelForCausalLM

from ledpo_plugin.modeling import pair_attention
from ledpo_plugin.modeling.forward import Mixture, forward_rows
from ledpo_plugin.modeling.logit_positions import plan_of_rows
from ledpo_plugin.modeling.logps import (
    IGNORE,
    first_label,
    left_aligned,
    prompt_nll,
    response_entropy,
    sum_logps,
    token_logps,
)
from ledpo_plugin.modeling.shared_prompt import Costs, arrange, shared_batch


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
    aligned = left_aligned(token_logps(logits[:, :-1], labels), labels)
    got = sum_logps(aligned, (labels != IGNORE).sum(1), ld_alpha)
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


EVERYTHING = frozenset({"hidden", "prompt_nll", "entropy", "logits"})


def _features(rng_seed: int, prompts=(5, 9, 30, 1), chosen=(4, 3, 11, 6), rejected=(7, 2, 5, 6)) -> list[dict]:
    """Tokenized pairs as the host's dataset holds them."""
    generator = torch.Generator().manual_seed(rng_seed)

    def draw(n: int) -> list[int]:
        return torch.randint(1, 250, (n,), generator=generator).tolist()

    rows = []
    for p, c, r in zip(prompts, chosen, rejected, strict=True):
        prompt = draw(p)
        row = {}
        for side, n in (("chosen", c), ("rejected", r)):
            answer = draw(n)
            row[f"{side}_input_ids"] = prompt + answer
            row[f"{side}_labels"] = [IGNORE] * p + answer
            row[f"{side}_attention_mask"] = [1] * (p + n)
        rows.append(row)
    return rows


def _ordinary(features: list[dict]) -> dict[str, torch.Tensor]:
    """The host's layout: one answer a row, right-padded, chosen first."""
    rows = [
        {kind: row[f"{side}_{kind}"] for kind in ("input_ids", "labels", "attention_mask")}
        for side in ("chosen", "rejected")
        for row in features
    ]
    width = max(len(row["input_ids"]) for row in rows) + 3
    fill = {"input_ids": 256, "labels": IGNORE, "attention_mask": 0}
    return {k: torch.tensor([row[k] + [v] * (width - len(row[k])) for row in rows]) for k, v in fill.items()}


def _compare(a, b) -> None:
    for name in ("logps", "hidden", "prompt_nll", "entropy"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-4, atol=1e-4)
    assert a.lengths.tolist() == b.lengths.tolist()


@pytest.mark.parametrize("attention", ["sdpa", "eager", pair_attention.NAME])
@pytest.mark.parametrize("ld_alpha", [None, 0.5])
def test_all_three_layouts_give_the_same_numbers(tiny, attention, ld_alpha):
    model = AutoModelForCausalLM.from_pretrained(tiny.model, attn_implementation=attention).eval()
    features = _features(1)
    batch = _ordinary(features)
    plain = forward_rows(model, batch, wants=EVERYTHING, ld_alpha=ld_alpha)
    plan = plan_of_rows(batch["input_ids"], batch["labels"], batch["attention_mask"], prompts=True)
    planned = forward_rows(model, batch | plan.to_batch(), wants=EVERYTHING, ld_alpha=ld_alpha)
    shared = shared_batch(features, 256, Costs(1.0, 0.01), prompts=True)
    together = forward_rows(model, shared, wants=EVERYTHING, ld_alpha=ld_alpha)
    assert shared["input_ids"].numel() < batch["input_ids"].numel()
    _compare(plain, planned)
    _compare(plain, together)
    torch.testing.assert_close(planned.logits, plain.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together.logits, plain.logits, rtol=1e-4, atol=1e-4)
    mixture = Mixture(torch.randn(plain.logits.shape, generator=torch.Generator().manual_seed(2)), 0.1)
    mixed = forward_rows(model, batch, mixture=mixture).mixtures
    for other in (batch | plan.to_batch(), shared):
        for a, b in zip(mixed, forward_rows(model, other, mixture=mixture).mixtures, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("attention", ["sdpa", "eager", pair_attention.NAME])
@pytest.mark.parametrize("frozen_output", [True, False], ids=["LoRA", "full tuning"])
def test_all_three_layouts_give_the_same_gradients(tiny, monkeypatch, frozen_output, attention):
    """With the output layer frozen the gradient is made in the forward pass; else chunks are computed again."""
    from ledpo_plugin.modeling import scoring

    monkeypatch.setattr(scoring, "CHUNK_NUMBERS", 5 * 259)  # several chunks
    model = AutoModelForCausalLM.from_pretrained(tiny.model, attn_implementation=attention).double()
    model.lm_head.weight.requires_grad_(not frozen_output)  # tied: the embedding, too
    features = _features(1)
    batch = _ordinary(features)
    plan = plan_of_rows(batch["input_ids"], batch["labels"], batch["attention_mask"])
    weights = torch.randn(8, generator=torch.Generator().manual_seed(4))
    gradients = []
    for layout in (batch, batch | plan.to_batch(), shared_batch(features, 256, Costs())):
        model.zero_grad()
        (forward_rows(model, layout).logps * weights).sum().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad})
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=2e-4, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_attention_in_pieces_survives_checkpointed_layers(tiny):
    """A checkpointed layer runs again in the backward pass, when the batch is long forgotten."""
    gradients = []
    for reentrant in (None, True, False):
        model = AutoModelForCausalLM.from_pretrained(tiny.model, attn_implementation=pair_attention.NAME).train()
        if reentrant is not None:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        output = forward_rows(model, shared_batch(_features(1), 256, Costs()))
        forward_rows(model, shared_batch(_features(2), 256, Costs()))  # another arrangement in between
        output.logps.sum().backward()
        gradients.append(model.model.layers[0].self_attn.q_proj.weight.grad.clone())
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-4, atol=1e-6)


def test_the_output_layer_is_itself_again_after_a_pass(model):
    features = _features(1)
    forward_rows(model, shared_batch(features, 256, Costs()))
    assert "forward" not in vars(model.lm_head)
    with pytest.raises(IndexError):
        forward_rows(model, shared_batch(features, 256, Costs()) | {"ledpo_plan_predict": torch.tensor([10**6])})
    assert "forward" not in vars(model.lm_head)


def test_pairs_are_arranged_with_little_padding_and_the_cheaper_way():
    lengths = [100, 200, 300, 400]
    assert arrange(lengths, Costs(1.0, 0.0)) == [[0, 1, 2, 3]] or len(arrange(lengths, Costs(1.0, 0.0))) <= 2
    # Attention makes long rows dear: two rows of 500 each, no padding.
    assert sorted(map(sorted, arrange(lengths, Costs(1.0, 0.01)))) == [[0, 3], [1, 2]]
    for costs in (Costs(1.0, 0.0), Costs(1.0, 1.0)):
        rows = arrange([70, 333, 512, 40, 128], costs)
        width = max(sum([70, 333, 512, 40, 128][i] for i in row) for row in rows)
        assert 1 - sum([70, 333, 512, 40, 128]) / (len(rows) * width) <= 0.05


def test_halves_with_different_prompts_are_not_shared():
    features = _features(1)
    features[0]["rejected_input_ids"][0] += 1
    assert shared_batch(features, 256, Costs()) is None


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


def _goes_on_behind(tiny, kind: str):
    """A tiny model that does something to its logits, with states wide enough for it to matter."""
    from transformers import AutoConfig, CohereConfig, Gemma2Config, GraniteConfig

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "vocab_size": AutoConfig.from_pretrained(tiny.model).vocab_size}
    sizes |= {"pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 258}
    config = {
        "cap": lambda: Gemma2Config(**sizes, head_dim=8, final_logit_softcapping=2.0),
        "scale": lambda: CohereConfig(**sizes, logit_scale=3.0),
        "divisor": lambda: GraniteConfig(**sizes, logits_scaling=0.25),
    }[kind]()
    torch.manual_seed(4)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    return model


@pytest.mark.parametrize("kind", ["cap", "scale", "divisor"])
def test_what_a_model_does_behind_its_output_layer_counts(tiny, kind):
    model = _goes_on_behind(tiny, kind)
    batch = _ordinary(_features(1))
    plan = plan_of_rows(batch["input_ids"], batch["labels"], batch["attention_mask"], prompts=True)
    mixture = Mixture(torch.randn(len(plan.predict), model.config.vocab_size), 0.1)
    found, slopes = [], []
    for rows in (batch, batch | plan.to_batch()):
        model.zero_grad()
        found.append(forward_rows(model, rows, wants=EVERYTHING, mixture=mixture))
        found[-1].logps.sum().backward()
        slopes.append(model.get_input_embeddings().weight.grad.clone())
    again = forward_rows(model, batch | plan.to_batch(), wants=EVERYTHING, mixture=mixture)
    for other in (found[1], again):
        _compare(found[0], other)
        torch.testing.assert_close(other.logits, found[0].logits, rtol=1e-4, atol=1e-4)
        for one, two in zip(other.mixtures, found[0].mixtures, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_rollouts_are_scored_as_they_are_drawn_from_such_models(tiny, temperature):
    from ledpo_plugin.rl.scores import answers_batch, score_answers

    model = _goes_on_behind(tiny, "cap")
    prompts, answers = [[5, 6, 7], [8]], [[9, 10], [11, 12, 13]]
    scores = score_answers(model, answers_batch(prompts, answers, 256), frozenset({"states"}), temperature)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        wanted = (logits / temperature).log_softmax(-1)[torch.arange(len(answer)), torch.tensor(answer)]
        torch.testing.assert_close(scores.logps[row, : len(answer)], wanted, rtol=1e-4, atol=1e-4)
    assert scores.states.shape == (2, 3, 32)
