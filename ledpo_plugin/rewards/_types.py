"""What a reward is asked and what it says: one number per answer, or none."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

NONE = float("nan")  # in place of a reward that is not known; never 0, which would be an opinion


class RewardError(RuntimeError):
    """A source of rewards that cannot give any; the message says what happened and what to do."""


@dataclass(frozen=True)
class RewardBatch:
    """`R` answers to be scored; rows of the tensors are right-padded to `S` tokens."""

    prompts: list[str]  # decoded, without special tokens
    responses: list[str]  # decoded, without special tokens
    texts: list[str]  # prompt and answer with their special tokens, as LLaMA-Factory sends them to a reward server
    input_ids: Tensor  # [R, S]
    attention_mask: Tensor  # [R, S]
    prompt_lengths: list[int]  # tokens of each prompt
    response_lengths: list[int]  # tokens of each answer, its end token included; 0 where it is empty

    @property
    def size(self) -> int:
        """The number of answers R."""
        return len(self.responses)

    @classmethod
    def from_ids(
        cls, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], tokenizer: Any, device: Any = None
    ) -> "RewardBatch":
        """Return the batch of prompts and answers given as tokens, without padding.

        Args:
            prompts: R lists of tokens.
            responses: R lists of tokens.
            tokenizer: of the policy.
            device: where the tensors go.
        """
        rows = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
        tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
        input_ids = pad_sequence(tensors, batch_first=True, padding_value=tokenizer.pad_token_id or 0)
        mask = pad_sequence([torch.ones_like(row) for row in tensors], batch_first=True)
        return cls(
            prompts=tokenizer.batch_decode(prompts, skip_special_tokens=True),
            responses=tokenizer.batch_decode(responses, skip_special_tokens=True),
            texts=tokenizer.batch_decode(rows, skip_special_tokens=False),
            input_ids=input_ids.to(device),
            attention_mask=mask.to(device),
            prompt_lengths=[len(prompt) for prompt in prompts],
            response_lengths=[len(response) for response in responses],
        )


@dataclass(frozen=True)
class RewardOutput:
    """What all sources together say of `R` answers."""

    total: Tensor  # [R], fp32, weighted sum, clipped; NaN where an answer has no reward
    parts: dict[str, Tensor]  # name of a source -> [R], fp32, what it said, before weight and clip; NaN where nothing
    failed: Tensor  # [R], bool: no reward, because a source that counts said nothing


class Source(Protocol):
    """Where rewards come from."""

    passes: float  # passes over an answer that one score takes, of a model as large as the policy; 0: none in here

    def score(self, batch: RewardBatch, model: nn.Module) -> Tensor:
        """Return one number per answer `[R]`, fp32, NaN where there is none.

        Raises:
            RewardError: the source cannot give any.
        """
        ...


def as_rewards(values: Sequence[float | None]) -> Tensor:
    """Return `[R]`, fp32, of numbers; None, NaN and infinities become NaN."""
    tensor = torch.tensor([NONE if value is None else value for value in values], dtype=torch.float32)
    return torch.where(torch.isfinite(tensor), tensor, NONE)
