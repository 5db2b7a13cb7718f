"""Where in a batch a model's predictions are needed: worked out on the CPU, while the batch is collated.

A plan says, for `R` responses with `N` tokens in all, which hidden states predict them and how the `N` results go
back to their responses. With it a pass needs the output layer at `N` positions only, and no step has to ask the
device for a shape.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from .logps import IGNORE, first_label

PREFIX = "ledpo_plan_"


@dataclass(frozen=True)
class Plan:
    """The places of `R` responses (and, where asked for, of their prompts' own tokens) in flattened positions."""

    predict: Tensor  # [N], flat position of the hidden state that predicts each response token
    target: Tensor  # [N], the token it predicts
    place: Tensor  # [R, L], which of the N belongs there; N where the response is shorter than L
    last_prompt: Tensor  # [R], flat position of the last prompt token
    prompt_predict: Tensor | None = None  # [M], the same for the tokens of the prompts, the first one excepted
    prompt_target: Tensor | None = None  # [M]
    prompt_place: Tensor | None = None  # [R, P]

    def to_batch(self, prefix: str = "") -> dict[str, Tensor]:
        """Return the plan as entries of a batch."""
        return {
            prefix + PREFIX + item.name: value
            for item in fields(self)
            if (value := getattr(self, item.name)) is not None
        }

    @classmethod
    def from_batch(cls, batch: Mapping[str, Any]) -> "Plan | None":
        """Return the plan that stands in the batch, or None."""
        found = {key.removeprefix(PREFIX): value for key, value in batch.items() if key.startswith(PREFIX)}
        return cls(**found) if found else None


def place_table(lengths: Tensor) -> Tensor:
    """Return `[R, L]`: the running numbers of each row's items, and their total where the row is over."""
    columns = torch.arange(int(lengths.max()), device=lengths.device)
    starts = lengths.cumsum(0) - lengths
    inside = columns < lengths.unsqueeze(1)
    return torch.where(inside, starts.unsqueeze(1) + columns, lengths.sum())


def plan_of_rows(input_ids: Tensor, labels: Tensor, attention_mask: Tensor, prompts: bool = False) -> Plan:
    """Plan a batch as the host collates it: one response a row, labels on the response only.

    Args:
        input_ids: `[R, T]`.
        labels: `[R, T]`.
        attention_mask: `[R, T]`.
        prompts: also plan the prompts' own tokens.
    """
    rows, width = labels.shape
    inside = labels[:, 1:] != IGNORE
    flat = torch.arange(rows * width, device=labels.device).view(rows, width)[:, :-1]
    first = first_label(labels)
    extra = {}
    if prompts:
        positions = torch.arange(1, width, device=labels.device)
        own = (positions < first.unsqueeze(1)) & attention_mask[:, 1:].bool() & attention_mask[:, :-1].bool()
        extra = {
            "prompt_predict": flat[own],
            "prompt_target": input_ids[:, 1:][own],
            "prompt_place": place_table(own.sum(1)),
        }
    return Plan(
        predict=flat[inside],
        target=labels[:, 1:][inside],
        place=place_table(inside.sum(1)),
        last_prompt=torch.arange(rows, device=labels.device) * width + (first - 1).clamp(min=0),
        **extra,
    )
