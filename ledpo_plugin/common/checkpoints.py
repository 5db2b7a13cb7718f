"""Checkpoints of a run; those that a kill left half-written are set aside so that the host resumes from a whole one."""

import json
import re
from pathlib import Path

# transformers writes this file last, so a checkpoint without it (or with half of it) is not whole.
LAST_FILE = "trainer_state.json"
SET_ASIDE = "incomplete-"


def is_complete(checkpoint: Path) -> bool:
    """Return whether the checkpoint folder was written to its end."""
    try:
        json.loads((checkpoint / LAST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def checkpoints_of(output_dir: Path) -> dict[int, Path]:
    """Return step -> folder of a run's checkpoints, ascending, whole or not."""
    found = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in output_dir.glob("checkpoint-*")}
    return dict(sorted((int(match[1]), path) for path, match in found.items() if match))


def set_aside_incomplete(output_dir: str | None) -> list[Path]:
    """Rename every half-written `checkpoint-N` of `output_dir` to `incomplete-checkpoint-N`; return the old paths.

    The host resumes from the highest N it sees, whole or not, and counts whatever starts with "checkpoint-" against
    save_total_limit; renamed, a broken one is not seen and not lost.
    """
    folder = Path(output_dir) if output_dir else None
    if folder is None or not folder.is_dir():
        return []
    moved = []
    for checkpoint in checkpoints_of(folder).values():
        if not is_complete(checkpoint):
            target = checkpoint.with_name(SET_ASIDE + checkpoint.name)
            while target.exists():
                target = target.with_name(target.name + "~")
            try:
                checkpoint.rename(target)
            except FileNotFoundError:
                continue  # another process of the same run was first
            moved.append(checkpoint)
    return moved
