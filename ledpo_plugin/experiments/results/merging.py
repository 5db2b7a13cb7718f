"""Several trainings of one run as one: their logs one after the other, and what they used together. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

GREATEST = ("peak_memory_bytes",)
RUNNING = ("policy_tokens", "reference_tokens", "flops", "rollouts", "generated_tokens")  # logged as sums so far
PHASE = "phase"  # in a row of the log: which kind of training it is of


def merged_usage(usages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the sum of what each training used; of memory the most."""
    found: dict[str, Any] = {}
    for usage in usages:
        for key, value in usage.items():
            if not isinstance(value, int | float):
                found.setdefault(key, value)
            elif key in GREATEST:
                found[key] = max(found.get(key, value), value)
            else:
                found[key] = found.get(key, 0) + value
    return found


def merged_log(
    logs: Sequence[Sequence[Mapping[str, Any]]], usages: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the rows of all trainings in order: steps and sums go on from one to the next.

    Args:
        logs: rows of each training, with `step` and the sums of `RUNNING` so far.
        usages: what each training used in all.
        names: of the trainings; a row of a named one says whose it is.
    """
    rows: list[dict[str, Any]] = []
    steps, sums = 0, dict.fromkeys(RUNNING, 0)
    for log, usage, name in zip(logs, usages, names, strict=True):
        for row in log:
            own = {**row, "step": row["step"] + steps}
            own |= {key: row[key] + sums[key] for key in RUNNING if row.get(key) is not None}
            rows.append({**own, PHASE: name} if name else own)
        steps += usage["steps"]
        for key in RUNNING:
            sums[key] += usage.get("answers" if key == "rollouts" else key) or 0
    return rows
