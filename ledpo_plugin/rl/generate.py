"""Answers of the policy in training to prompts, sampled so that an answer depends on its prompt and its seed alone.

Each answer has a random stream of its own: one number in [0, 1) a token, by which the next token is chosen from the
distribution (inverse transform). So a resumed run, another batch size and another number of processes draw the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ledpo_plugin.modeling.generate import no_settings_of_its_own
from ledpo_plugin.modeling.padding import padded

_BELOW_ONE = 1 - 1e-6  # keeps a number off the end of the sum, behind which only excluded tokens come


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn."""

    max_new_tokens: int
    stops: tuple[int, ...]  # ids that end an answer
    pad_id: int
    temperature: float = 1.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    greedy: bool = False

    @classmethod
    def of(cls, arguments: Any, stops: Sequence[int], pad_id: int) -> "Sampling":
        """Return the settings of LLaMA-Factory's generating arguments."""
        return cls(
            max_new_tokens=arguments.max_new_tokens,
            stops=tuple(sorted(set(stops))),
            pad_id=pad_id,
            temperature=arguments.temperature,
            top_k=arguments.top_k,
            top_p=arguments.top_p,
            repetition_penalty=arguments.repetition_penalty,
            greedy=not arguments.do_sample,
        )


class Answer(NamedTuple):
    """Token ids of an answer, with the one that ended it if one did."""

    ids: list[int]
    ended: bool


class InverseTransform(LogitsProcessor):
    """Leaves one token a row: the one in whose share of the summed probabilities the row's next number falls."""

    def __init__(self, numbers: Tensor, start: int):
        """Take `[R, max_new_tokens]` numbers in [0, 1) and the width of the prompts."""
        self.numbers, self.start = numbers, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores `[R, V]`: 0 for the drawn token, -inf elsewhere."""
        shares = torch.softmax(scores.float(), dim=1).cumsum(dim=1)
        number = self.numbers[:, input_ids.shape[1] - self.start].unsqueeze(1) * shares[:, -1:] * _BELOW_ONE
        drawn = torch.searchsorted(shares, number, right=True).clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn, 0.0)


def numbers_of(seeds: Sequence[int], count: int) -> Tensor:
    """Return `count` numbers in [0, 1) for each answer, by its seed alone: `[R, count]`."""
    return torch.stack([torch.rand(count, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@torch.no_grad()
def generate(
    model: nn.Module, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling
) -> list[Answer]:
    """Return an answer to each prompt.

    Args:
        model: a causal language model with transformers' `generate`, whole, in evaluation mode.
        prompts: token ids.
        seeds: of each answer's random stream.
        sampling: how answers are drawn.
    """
    ids, mask = padded(prompts, sampling.pad_id, left=True)
    width = ids.shape[1]
    device = model.get_input_embeddings().weight.device
    processors = LogitsProcessorList()
    if not sampling.greedy:
        if sampling.temperature != 1:
            processors.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_k > 0:
            processors.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            processors.append(TopPLogitsWarper(sampling.top_p))
        processors.append(InverseTransform(numbers_of(seeds, sampling.max_new_tokens).to(device), width))
    config = GenerationConfig(
        do_sample=False,  # the draw is made by the processor above
        num_beams=1,
        max_new_tokens=sampling.max_new_tokens,
        repetition_penalty=sampling.repetition_penalty,
        eos_token_id=list(sampling.stops),
        pad_token_id=sampling.pad_id,
        use_cache=True,
    )
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    with no_settings_of_its_own(inner):
        found = inner.generate(
            ids.to(device), attention_mask=mask.to(device), generation_config=config, logits_processor=processors
        )
    stops = frozenset(sampling.stops)
    return [cut_behind_stop(row, stops) for row in found[:, width:].tolist()]


def cut_behind_stop(ids: list[int], stops: frozenset[int]) -> Answer:
    """Return the answer up to and with the first token that ends it."""
    end = next((place for place, token in enumerate(ids) if token in stops), None)
    return Answer(ids if end is None else ids[: end + 1], end is not None)
