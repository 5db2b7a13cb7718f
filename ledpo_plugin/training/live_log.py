"""Every number that a run logs, as it is logged, for the web UI to draw.

LLaMA-Factory's own log for its web UI keeps the loss, the accuracy and the learning rate, and drops the rest.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ledpo_plugin.common.atomic import replace_file

NAME = "ledpo_live_log.jsonl"


def log_path(output_dir: str | os.PathLike) -> Path:
    """Return where a run's live log is."""
    return Path(output_dir) / NAME


class LiveLog(TrainerCallback):
    """Append a JSON line per log to `ledpo_live_log.jsonl`: the step, and every finite number by its name."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep what led to the step that training starts from, and drop what came after it or was another run."""
        if state.is_world_process_zero:
            path = log_path(args.output_dir)
            kept = [row for row in read_live_log(path) if row["step"] <= state.global_step]
            path.parent.mkdir(parents=True, exist_ok=True)
            text = "".join(json.dumps(row) + "\n" for row in kept if state.global_step > 0)
            replace_file(path, lambda new: new.write_text(text, encoding="utf-8"))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Write a line."""
        if state.is_world_process_zero and logs:
            numbers = {key: float(value) for key, value in logs.items() if isinstance(value, int | float)}
            row = {key: value for key, value in numbers.items() if math.isfinite(value)}
            with log_path(args.output_dir).open("a", encoding="utf-8") as file:
                file.write(json.dumps({**row, "step": state.global_step}) + "\n")


def read_live_log(path: str | os.PathLike) -> list[dict[str, float]]:
    """Return the rows of a live log; none where there is no file, and without a line that is still being written."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
    return rows
