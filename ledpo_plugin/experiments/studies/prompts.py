"""The prompts of a study, taken from data sets once and kept beside its results."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval_harness.data import Example, read_dataset
from ledpo_plugin.common.files import write_json
from ledpo_plugin.experiments.definition.experiment import Experiment

from .parts import FOLDER, digest

FILE = "prompts.json"
CALCULATED = ("medical", "finance")  # domains of the offline data whose answers end in the number that was asked for


def write_prompts(experiment: Experiment, results: Path) -> dict[str, str]:
    """Write the study's prompts into the results folder; return their file and what tells them from others.

    Prompts of several turns, and those that occurred before, are left out and counted.

    Raises:
        ValueError: a data set cannot be read, or none of its prompts can be used.
    """
    folder = experiment.variants[0].recipe.get("dataset_dir") or "data"
    rows: list[dict[str, Any]] = []
    left_out: dict[str, int] = {}
    for name, count in experiment.study["prompts"].items():
        own, skipped = _rows_of(name, read_dataset(name, folder), count, {row["prompt"] for row in rows})
        if not own:
            raise ValueError(f"No prompt of {name} in {folder} can be used: each has several turns or occurred before.")
        rows += own
        if skipped:
            left_out[name] = skipped
    path = (results / FOLDER / FILE).absolute()
    write_json(path, {"prompts": rows, "left_out": left_out})
    return {"prompts_file": str(path), "prompts_sha256": digest(rows)}


def _rows_of(name: str, examples: list[Example], count: int, seen: set[str]) -> tuple[list[dict[str, Any]], int]:
    rows, skipped = [], 0
    for example in examples:
        if len(rows) == count:
            break
        if not example.single_turn or example.prompt in seen:
            skipped += 1
            continue
        seen.add(example.prompt)
        rows.append(
            {
                "prompt": example.prompt,
                "dataset": name,
                "task": str(example.row.get("domain") or name),
                "row": example.place,
                "of": len(examples),
                **_answers(example),
            }
        )
    return rows, skipped


def _answers(example: Example) -> dict[str, Any]:
    """Return what the data says is right: chosen and rejected, or one answer; and the answer that ends in a number."""
    answers = dict(zip(("chosen", "rejected"), example.answers, strict=False))
    return answers | {"answer": answers.get("chosen") if _is_calculation(example.row) else None}


def _is_calculation(row: Mapping[str, Any]) -> bool:
    """Return whether the answer is right if its last number is: the made-up exercises in arithmetic say their task."""
    return row.get("domain") in CALCULATED or ("task" in row and "tests" not in row)
