"""Rows that cannot train, dropped and counted before training: they would turn into NaN or silent zeros."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ledpo_plugin.modeling.logps import IGNORE

from .token_rows import token_rows


class NoUsableData(ValueError):
    """Nothing is left of a dataset after the rows that cannot train were dropped."""


def _start(labels: Sequence[int]) -> int | None:
    """Return the position of the first response token; None where there is none."""
    inside = np.asarray(labels) != IGNORE
    return int(inside.argmax()) if inside.any() else None


def pair_fault(row: Mapping[str, Any]) -> str | None:
    """Return why this tokenized pair cannot train, or None."""
    chosen, rejected = _start(row["chosen_labels"]), _start(row["rejected_labels"])
    if chosen is None or rejected is None:
        return "empty response"
    if chosen == 0 or rejected == 0:
        return "no prompt token left by cutoff_len"
    if np.array_equal(row["chosen_input_ids"], row["rejected_input_ids"]):
        return "chosen and rejected identical (within cutoff_len)"
    return None


def unpaired_fault(row: Mapping[str, Any]) -> str | None:
    """Return why this tokenized answer cannot train, or None."""
    own, neighbour = _start(row["labels"]), _start(row["kl_labels"])
    if own is None or neighbour is None:
        return "empty response"
    if own == 0 or neighbour == 0:
        return "no prompt token left by cutoff_len"
    return None


def instruction_fault(row: Mapping[str, Any]) -> str | None:
    """Return why this tokenized instruction cannot train, or None."""
    start = _start(row["labels"])
    if start is None:
        return "empty response"
    return "no prompt token left by cutoff_len" if start == 0 else None


FAULTS = {"pairs": pair_fault, "unpaired": unpaired_fault, "instructions": instruction_fault}


def drop_unusable(
    dataset: Any, name: str, data: str, log, media: Callable[[Mapping[str, Any]], str | None] | None = None
) -> Any:
    """Return `dataset` without the rows that cannot train, and log how many were dropped and why.

    Args:
        dataset: a tokenized `datasets.Dataset`, an iterable one (dropped as they come, not counted), or a dict.
        name: for the log line, e.g. "train".
        data: "pairs", "unpaired" or "instructions".
        log: called with the sentence.
        media: says of a whole row why it cannot train for its images, videos or sounds; None: there are none.

    Raises:
        NoUsableData: no row is left.
    """
    fault = FAULTS[data]
    if isinstance(dataset, dict):
        return {key: drop_unusable(part, key, data, log, media) for key, part in dataset.items()}
    if not hasattr(dataset, "__len__"):
        return dataset.filter(lambda row: fault(row) is None and (media is None or media(row) is None))
    columns = [c for c in dataset.column_names if c.endswith(("labels", "input_ids"))]
    faults = [fault(row) for row in token_rows(dataset, columns)]
    if media is not None and {"images", "videos", "audios"} & set(dataset.column_names):
        faults = [found or media(dataset[i]) for i, found in enumerate(faults)]
    reasons = Counter(reason for reason in faults if reason)
    if not reasons:
        return dataset
    keep = [i for i, reason in enumerate(faults) if reason is None]
    counted = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    if not keep:
        raise NoUsableData(
            f"No row of the {name} dataset can train: of {len(faults)}, {counted}. "
            "Check the dataset's columns in dataset_info.json, or raise cutoff_len."
        )
    log(f"Dropped {len(faults) - len(keep)} of {len(faults)} rows of the {name} dataset: {counted}.")
    return dataset.select(keep)
