"""From a model's predictions to the next token, each row of a batch as if it were alone."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from .decoding import Decoding

# Setting -> transformers' own filter, in the order in which transformers applies them.
WARPERS = (
    ("temperature", TemperatureLogitsWarper),
    ("top_k", TopKLogitsWarper),
    ("top_p", TopPLogitsWarper),
    ("min_p", MinPLogitsWarper),
    ("typical_p", TypicalLogitsWarper),
)


class Penalty(LogitsProcessor):
    """Transformers' penalty on tokens that occurred, without those that only pad the row."""

    def __init__(self, penalty: float, starts: Sequence[int]):
        """Take the penalty, and where each row's prompt starts behind its padding."""
        self.penalty, self.starts = RepetitionPenaltyLogitsProcessor(penalty), list(starts)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores [R, V]; rows of the same prompt (beams) follow each other."""
        each = scores.shape[0] // len(self.starts)
        rows = [
            self.penalty(input_ids[row : row + 1, self.starts[row // each] :], scores[row : row + 1])
            for row in range(scores.shape[0])
        ]
        return torch.cat(rows)


class Filters(LogitsProcessor):
    """Temperature and truncation by transformers' own filters; one setting may differ from row to row."""

    def __init__(self, decoding: Decoding, values: Sequence[float] | None):
        """Take the settings, and the adapted one's value for every row where there is one."""
        of = decoding.adaptive.of if decoding.adaptive else None
        self.steps = []
        for name, warper in WARPERS:
            if name == of:
                self.steps.append([warper(value) if value != 1 or name != "top_p" else None for value in values])
            elif getattr(decoding, name) is not None:
                self.steps.append(warper(getattr(decoding, name)))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the filtered scores [B, V]."""
        for step in self.steps:
            if isinstance(step, list):
                rows = [
                    own if warper is None else warper(input_ids[row : row + 1], own)
                    for row, (warper, own) in enumerate(zip(step, scores.split(1), strict=True))
                ]
                scores = torch.cat(rows)
            else:
                scores = step(input_ids, scores)
        return scores
