"""What a model answers to a study's prompts, and what other models say of the answers: files that are kept."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ledpo_plugin.experiments.files import read_json, write_json

from .parts import digest

OUTPUTS, SCORES = "outputs.json", "scores.json"
BATCH = 8


def answer(folder: Path, job: Mapping[str, Any], log: Any) -> dict[str, Any]:
    """Have one model answer every prompt.

    Args:
        folder: takes outputs.json, in AlpacaEval's format with what else is known of each answer.
        job: `model`, `prompts_file`, `decoding`, `seed`, `max_new_tokens`, `batch_size`.
        log: called with sentences.
    """
    from eval_harness.generation import generate, load, read_decoding

    model = job["model"]
    loaded = load(**model["load"])
    rows = generate(
        loaded,
        [row["prompt"] for row in read_prompts(job)],
        read_decoding(job["decoding"]),
        seed=job["seed"],
        max_new_tokens=job["max_new_tokens"],
        batch_size=job["batch_size"],
        folder=folder / "batches",
    )
    rows = [{**row, "generator": model["model"]} for row in rows]
    write_json(folder / OUTPUTS, rows)
    log(f"{model['model']}: {len(rows)} answers")
    return {"model": model, "n": len(rows), "outputs_sha256": digest(rows)}


def read_prompts(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the prompts that a job names."""
    return read_json(Path(job["prompts_file"]))["prompts"]


def read_outputs(folder: Path) -> list[dict[str, Any]]:
    """Return a model's answers, in the order of the prompts.

    Raises:
        RuntimeError: they are not there.
    """
    rows = read_json(folder / OUTPUTS)
    if not isinstance(rows, list):
        raise RuntimeError(f"{folder / OUTPUTS} is missing or damaged. Delete {folder} and run this again.")
    return rows


def score(folder: Path, job: Mapping[str, Any], log: Any) -> dict[str, Any]:
    """Have one trained model and the one it started from say how likely every answer of every model is.

    Args:
        folder: takes scores.json: model -> columns, one number an answer.
        job: `by` (the trained model), `outputs` (model -> folder), `prompts_file`, `batch_size`.
        log: called with sentences.
    """
    from eval_harness.generation import load, score_outputs

    loaded = load(**job["by"]["load"])
    prompts = [row["prompt"] for row in read_prompts(job)]
    found = {}
    for name, place in job["outputs"].items():
        path = folder / "models" / f"{name}.json"
        rows = read_outputs(Path(place))
        kept = read_json(path)
        if not isinstance(kept, dict) or kept.get("outputs_sha256") != digest(rows):
            columns = score_outputs(loaded, prompts, [row["ids"] for row in rows], batch_size=job["batch_size"])
            kept = {"outputs_sha256": digest(rows), "columns": columns}
            write_json(path, kept)
            log(f"{name}: {len(rows)} answers scored")
        found[name] = kept["columns"]
    write_json(folder / SCORES, found)
    return {"by": job["by"], "models": list(found)}


def per_token(columns: Mapping[str, Sequence[float]], key: str) -> list[float | None]:
    """Return a column of sums as means per token; None for an answer without tokens."""
    return [total / length if length else None for total, length in zip(columns[key], columns["lengths"], strict=True)]
