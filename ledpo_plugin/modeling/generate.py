"""What a model answers: greedy, in batches, ended by the template's own end of an answer."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from .padding import padded

MARK = "\N{OBJECT REPLACEMENT CHARACTER}"


@torch.no_grad()
def greedy(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    stops: Sequence[int],
    pad_id: int,
    max_new_tokens: int,
    batch_size: int,
) -> list[dict[str, Any]]:
    """Return the likeliest next tokens, one after the other, of every prompt.

    Args:
        model: a causal language model, in evaluation mode.
        prompts: token ids.
        stops: ids that end an answer.
        pad_id: any id; padded positions are masked.
        max_new_tokens: where an answer is cut off.
        batch_size: prompts at a time, in their order.

    Returns:
        A row a prompt: `ids`, without what ended the answer, and `ended`, whether it ended by itself.
    """
    return _answers(model, prompts, stops, pad_id, max_new_tokens, batch_size, None)


def drawn(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    seed: int,
    stops: Sequence[int],
    pad_id: int,
    max_new_tokens: int,
    batch_size: int,
) -> list[dict[str, Any]]:
    """Return an answer to every prompt drawn from the model's own distribution: temperature 1, nothing cut off.

    A prompt's random stream follows from seed, place and prompt alone: models that hardly differ draw hardly different
    answers, which makes their comparison sharper.

    Args:
        model: a causal language model, in evaluation mode.
        prompts: token ids.
        seed: of the draws.
        stops: ids that end an answer.
        pad_id: any id; padded positions are masked.
        max_new_tokens: where an answer is cut off.
        batch_size: prompts at a time, in their order.

    Returns:
        Rows as of `greedy`, with `end`, the id that ended the answer, or None.
    """
    seeds = [row_seed(seed, f"{place} {list(prompt)}") for place, prompt in enumerate(prompts)]
    return _answers(model, prompts, stops, pad_id, max_new_tokens, batch_size, seeds)


def _answers(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    stops: Sequence[int],
    pad_id: int,
    max_new_tokens: int,
    batch_size: int,
    seeds: Sequence[int] | None,
) -> list[dict[str, Any]]:
    rows = []
    for start in range(0, len(prompts), batch_size):
        part = prompts[start : start + batch_size]
        ids, mask = padded(part, pad_id, left=True)
        width = ids.shape[1]
        noise = [] if seeds is None else [GumbelNoise(seeds[start : start + batch_size])]
        config = GenerationConfig(
            do_sample=False,  # a draw is made by the noise
            num_beams=1,
            max_new_tokens=max_new_tokens,
            eos_token_id=list(stops),
            pad_token_id=pad_id,
            use_cache=True,
        )
        device = model.get_input_embeddings().weight.device
        with no_settings_of_its_own(model):
            found = model.generate(
                ids.to(device),
                attention_mask=mask.to(device),
                generation_config=config,
                logits_processor=LogitsProcessorList(noise),
            )
        for new in found[:, width:].tolist():
            row = cut_at_stop(new, frozenset(stops))
            rows.append(row if seeds is None else {**row, "end": new[len(row["ids"])] if row["ended"] else None})
    return rows


def cut_at_stop(ids: list[int], stops: frozenset[int]) -> dict[str, Any]:
    """Return the answer's `ids` up to the first that ends it, and whether it `ended` by itself."""
    end = next((place for place, token in enumerate(ids) if token in stops), None)
    return {"ids": ids[:end], "ended": end is not None}


@contextmanager
def no_settings_of_its_own(model: nn.Module) -> Iterator[None]:
    """Keep what a model says about generating, such as a penalty on repetition, out of a greedy answer."""
    kept = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = kept


def readable_prompt(ids: Sequence[int], tokenizer: Any, template: Any) -> str:
    """Return the user's words of a tokenized prompt; more of the prompt where it is not of one turn, or was cut."""
    text = tokenizer.decode(ids, skip_special_tokens=False)
    messages = [{"role": "user", "content": MARK}, {"role": "assistant", "content": ""}]
    empty = tokenizer.decode(template.encode_oneturn(tokenizer, messages)[0], skip_special_tokens=False)
    before, mark, after = empty.partition(MARK)
    if mark and text.startswith(before) and text.endswith(after) and len(text) >= len(before) + len(after):
        return text[len(before) : len(text) - len(after)]
    return tokenizer.decode(ids, skip_special_tokens=True)


class GumbelNoise(LogitsProcessor):
    """Adds Gumbel noise, so that the likeliest token is a draw from the distribution (Gumbel 1954; Maddison 2014).

    Each row has a random stream of its own, by its seed: its draws do not depend on what else is in the batch.
    """

    def __init__(self, seeds: Sequence[int]):
        """Take a seed for every row."""
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores [B, V] with noise."""
        noise = torch.empty(scores.shape, dtype=torch.float32)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        # -ln of an exponential variable is a Gumbel variable; 0 would be infinite.
        gumbel = -noise.clamp_(min=torch.finfo(torch.float32).tiny).log_()
        return scores.float() + gumbel.to(scores.device)


def row_seed(seed: int, prompt: str) -> int:
    """Return the seed of a prompt's random stream."""
    digest = hashlib.sha256(f"{seed}\0{prompt}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1
