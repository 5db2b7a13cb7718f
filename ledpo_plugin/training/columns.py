"""Columns of per-example numbers between two logs, and the guard that stops training once a loss is not finite."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class NonFiniteLoss(FloatingPointError):
    """The loss of some example became NaN or infinite."""


class FiniteLosses:
    """Remembers whether all losses were finite, without waiting for the device at each step."""

    def __init__(self) -> None:
        self._all_finite: Tensor | None = None

    def note(self, finite: Tensor) -> None:
        """Take in whether the losses of a batch are all finite, a scalar of booleans on any device."""
        self._all_finite = finite if self._all_finite is None else self._all_finite & finite

    def require(self, *, step: int, settings: str) -> None:
        """Do nothing if all losses since the last call were finite.

        Raises:
            NonFiniteLoss: some were not, at `step` or before.
        """
        if self._all_finite is not None and not bool(self._all_finite):
            raise NonFiniteLoss(
                f"The loss of some example became NaN or infinite at or before step {step} ({settings}). Checkpoints "
                "saved before that are good. Lower learning_rate or beta_lr_ratio, check that the model's own weights "
                "are finite, and set logging_steps: 1 to find the step."
            )
        self._all_finite = None


class ColumnLog:
    """Per-example numbers of each split ("train", "eval", "sft") since they were last taken."""

    def __init__(self) -> None:
        self._parts: dict[str, list[dict[str, Tensor]]] = defaultdict(list)

    def add(self, split: str, columns: Mapping[str, Tensor]) -> None:
        """Take in the columns `[n]` of a batch."""
        self._parts[split].append(dict(columns))

    def take(self, split: str) -> dict[str, Tensor]:
        """Return and forget this process's columns `[N]` of a split; nothing where there are none."""
        parts = self._parts.pop(split, [])
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]} if parts else {}

    def take_gathered(self, split: str, accelerator: Any) -> dict[str, Tensor]:
        """Return and forget the columns `[N]` of a split, of all processes."""
        columns = self.take(split)
        if not columns or accelerator.num_processes == 1:
            return columns
        names = sorted(columns)
        matrix = torch.stack([torch.ones_like(columns[names[0]]), *(columns[name] for name in names)], dim=1)
        matrix = accelerator.gather(accelerator.pad_across_processes(matrix, dim=0))
        matrix = matrix[matrix[:, 0] == 1]  # ranks may have seen different numbers of examples
        return dict(zip(names, matrix[:, 1:].unbind(1), strict=True))


def mixture_metrics(preferences: Mapping[str, Tensor], instructions: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the losses of preferences and instructions apart, and the share of instructions among the examples."""
    count = instructions["nll"].shape[0] if instructions else 0
    logs = {"sft_share": count / (count + preferences["losses"].shape[0])} if preferences else {}
    if preferences:
        logs["preference_loss"] = preferences["losses"].mean().item()
    if count:
        logs["sft_nll"] = instructions["nll"].mean().item()
    return logs


def without_nan(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that say something: NaN says that there was nothing to measure."""
    return {key: value for key, value in metrics.items() if value == value}
