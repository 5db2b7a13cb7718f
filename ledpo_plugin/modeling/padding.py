"""Rows of token ids of different lengths as one batch: the one place where tokens are padded."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .logps import IGNORE


def padded(
    rows: Sequence[Sequence[int]], pad_id: int, *, left: bool = False, width: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return rows as ids and attention mask, both `[B, T]`, padded on the right unless `left` is set.

    Args:
        rows: token ids.
        pad_id: any id; padded positions are masked.
        left: whether padding comes before the tokens.
        width: `T`; left out: the length of the longest row.
    """
    width = max(map(len, rows)) if width is None else width
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for number, row in enumerate(rows):
        start = width - len(row) if left else 0
        ids[number, start : start + len(row)] = torch.tensor(list(row), dtype=torch.long)
        mask[number, start : start + len(row)] = 1
    return ids, mask


def answered_prompts(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], pad_id: int
) -> dict[str, Tensor]:
    """Return prompts, each followed by its answer, padded on the right, with labels on the answers only.

    Returns:
        `input_ids`, `labels` and `attention_mask`, all `[B, T]`.
    """
    rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    ids, mask = padded(rows, pad_id)
    labels = torch.full_like(ids, IGNORE)
    for number, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        labels[number, len(prompt) : len(row)] = ids[number, len(prompt) : len(row)]
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def unanswered_prompts(prompts: Sequence[Sequence[int]], pad_id: int) -> dict[str, Tensor]:
    """Return prompts, padded on the right, with one label each: where the answer would start.

    Returns:
        `input_ids`, `labels` and `attention_mask`, all `[B, T]`, where `T` is one more than the longest prompt.
    """
    ids, mask = padded(prompts, pad_id, width=max(map(len, prompts)) + 1)
    labels = torch.full_like(ids, IGNORE)
    labels[torch.arange(len(prompts)), mask.sum(1)] = pad_id
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}
