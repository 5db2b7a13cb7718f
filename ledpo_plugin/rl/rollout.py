"""A rollout: what one policy answered, what is to be learned of it, and how it is kept in a checkpoint."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ledpo_plugin.common.atomic import replace_file
from ledpo_plugin.modeling.head_file import HeadFileError


@dataclass(frozen=True)
class Rollout:
    """`R` answers of at most `T` tokens, of one process; tensors are on the CPU."""

    iteration: int  # how many rollouts came before
    prompts: list[list[int]]
    answers: list[list[int]]
    mask: Tensor  # [R, T] bool, tokens to learn from; all False where an answer has no reward
    old_logps: Tensor  # [R, T]
    reference_logps: Tensor  # [R, T]
    advantages: Tensor  # [R, T], or [R] where all tokens of an answer share one
    coefficient: Tensor  # [R], of the KL
    values: Tensor | None = None  # [R, T], the value head's, with gae
    returns: Tensor | None = None  # [R, T]
    pair_hidden: Tensor | None = None  # [N, d], of the prompts that have a best and a worst answer
    pair_nll: Tensor | None = None  # [N]
    pair_margin: Tensor | None = None  # [N], log-ratio of the best answer less that of the worst

    def rows(self, name: str, rows: Sequence[int], width: int) -> Tensor:
        """Return some rows of a tensor, cut to `width` tokens where it has tokens."""
        tensor = getattr(self, name)[torch.tensor(rows)]
        return tensor[:, :width] if tensor.dim() > 1 else tensor

    @classmethod
    def tensor_names(cls) -> list[str]:
        """Return the names of the fields that are tensors."""
        return [item.name for item in fields(cls) if "Tensor" in str(item.type)]


def _files(folder: str | Path, rank: int) -> tuple[Path, Path]:
    return Path(folder) / f"ledpo_rollout_{rank}.safetensors", Path(folder) / f"ledpo_rollout_{rank}.json"


def save_rollout(folder: str | Path, rank: int, rollout: Rollout | None, pool: Sequence[dict[str, Any]]) -> None:
    """Write a process's rollout, and the pairs made of it that were not trained on yet, into a checkpoint."""
    tensors_file, text_file = _files(folder, rank)
    tensors = {}
    if rollout is not None:
        found = {name: getattr(rollout, name) for name in Rollout.tensor_names()}
        tensors = {name: value.contiguous() for name, value in found.items() if value is not None}
    kept = {
        "iteration": None if rollout is None else rollout.iteration,
        "prompts": [] if rollout is None else rollout.prompts,
        "answers": [] if rollout is None else rollout.answers,
        "pool": list(pool),
    }
    replace_file(tensors_file, lambda path: save_file(tensors, path))
    replace_file(text_file, lambda path: path.write_text(json.dumps(kept), encoding="utf-8"))


def load_rollout(folder: str | Path, rank: int) -> tuple[Rollout | None, list[dict[str, Any]]]:
    """Return what `save_rollout` wrote.

    Raises:
        HeadFileError: the files are missing or damaged; going on without them would not be the same training.
    """
    tensors_file, text_file = _files(folder, rank)
    try:
        tensors = load_file(tensors_file)
        kept = json.loads(text_file.read_text(encoding="utf-8"))
        pool = kept.pop("pool")
        rollout = None if kept["iteration"] is None else Rollout(**kept, **tensors)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise HeadFileError(
            f"{tensors_file} or {text_file.name} is missing or damaged ({error}), so training cannot be resumed "
            "exactly. Resume from an earlier checkpoint, or with the same number of processes."
        ) from None
    return rollout, pool
