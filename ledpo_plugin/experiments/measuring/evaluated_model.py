"""The model that is measured: built as training builds it, once; each checkpoint's weights are put into it in turn.

The start is what is loaded first, so what is needed of it is computed before any other weights are put in.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ledpo_plugin.training.usage import Cost

from .loader import load
from .pair_scorer import PairScorer
from .sampler import Sampler
from .weights import Weights


class EvaluatedModel:
    """A run's model with the data it is measured on: its `weights`, a `scorer` of rows and a `sampler` of answers."""

    def __init__(
        self,
        recipe: Mapping[str, Any],
        evaluation: Mapping[str, Any],
        folder: Path,
        log: Callable[[str], None],
        head: str | None = None,
    ):
        """Load tokenizer, data and model; compute what the start says of all pairs.

        Args:
            recipe: of the run.
            evaluation: pairs, instructions, generations.
            folder: for temporary files.
            log: called with sentences.
            head: whose hidden state the run's beta reads ("reference", "policy", or None).

        Raises:
            ValueError: a data set is unknown, of the wrong kind, or has no row that can be used; or several GPUs are
                visible.
        """
        if torch.cuda.device_count() > 1:
            raise ValueError(
                f"Measuring uses one device, and {torch.cuda.device_count()} are visible to this process. Set "
                "CUDA_VISIBLE_DEVICES to one of them."
            )
        reads_reference = head == "reference"
        self.loaded = load(recipe, evaluation, folder, log, reference_model=reads_reference)
        model, start = self.loaded.model, self.loaded.trainer.reference
        self.weights = Weights(model, start, keep_start=bool(evaluation.get("answers")))
        pairs = list(dict.fromkeys(evaluation.get("pairs") or ()))
        self.scorer = PairScorer(self.loaded, self.weights, pairs, reads_reference=reads_reference)
        self.sampler = Sampler(self.loaded, self.weights)

    @property
    def cost(self) -> Cost:
        """What a pass of the model costs in operations."""
        return self.loaded.trainer.usage.cost

    @property
    def dropped(self) -> dict[str, int]:
        """How many rows of each data set cannot be used."""
        return self.loaded.dropped

    def items(self, name: str) -> list[str]:
        """Return what each row of a data set is called in results: 16 hex digits of its token ids, never its text."""
        data = self.loaded.data[name]
        columns = [column for column in ("chosen_input_ids", "rejected_input_ids", "input_ids") if column in data[0]]
        return [item_id([row[column] for column in columns]) for row in data]


def item_id(value: Any) -> str:
    """Return 16 hex digits that tell one item of a data set from another."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
