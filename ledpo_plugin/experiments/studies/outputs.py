"""What a model answers to a study's prompts, and what other models say of the answers: files that are kept."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ledpo_plugin.common.files import read_json, write_json

from .parts import digest, safe

OUTPUTS, SCORES = "outputs.json", "scores.json"
BATCH = 16
DATA = "the data's answers"  # scored beside the models' own


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


class Scorer:
    """Scores answers to a study's prompts; an answer that was scored before is not scored again."""

    def __init__(self, loaded: Any, prompts: Sequence[str], batch_size: int):
        """Take the model, the prompts, and how many answers go through it at a time."""
        self.loaded, self.prompts, self.batch_size = loaded, list(prompts), batch_size
        self.known: dict[tuple[int, tuple[int, ...]], dict[str, Any]] = {}

    def remember(self, answers: Sequence[Sequence[int]], columns: Mapping[str, Sequence[Any]]) -> None:
        """Take what is known of an answer to each prompt."""
        for place, ids in enumerate(answers):
            self.known[place, tuple(ids)] = {key: values[place] for key, values in columns.items()}

    def columns(self, answers: Sequence[Sequence[int]]) -> dict[str, list[Any]]:
        """Return the columns of `score_outputs` of an answer to each prompt."""
        from eval_harness.generation import score_outputs

        keys = [(place, tuple(ids)) for place, ids in enumerate(answers)]
        asked = [key for key in keys if key not in self.known]
        if asked:
            prompts = [self.prompts[place] for place, _ in asked]
            found = score_outputs(self.loaded, prompts, [ids for _, ids in asked], batch_size=self.batch_size)
            for index, key in enumerate(asked):
                self.known[key] = {name: values[index] for name, values in found.items()}
        return {name: [self.known[key][name] for key in keys] for name in self.known[keys[0]]}


def score(folder: Path, job: Mapping[str, Any], log: Any) -> dict[str, Any]:
    """Have one trained model and the one it started from say how likely every answer of every model is.

    Args:
        folder: takes scores.json: model -> columns, one number an answer.
        job: `by` (the trained model), `outputs` (model -> folder), `prompts_file`, `batch_size`.

    Beside them the data's own (chosen) answers are scored, which says how hard a prompt is.

        log: called with sentences.
    """
    from eval_harness.generation import load

    loaded = load(**job["by"]["load"])
    if not loaded.has_beta:
        raise ValueError(
            f"{job['by']['model']} has no beta(x), so that it gives no implicit rewards. Name a variant under `reward` "
            "whose beta_mode is head, ppl, global or fixed."
        )
    scorer = Scorer(loaded, [row["prompt"] for row in read_prompts(job)], job["batch_size"])
    found = {}
    answers = {name: [row["ids"] for row in read_outputs(Path(place))] for name, place in job["outputs"].items()}
    answers[DATA] = [_ids(loaded, row["prompt"], row.get("chosen")) for row in read_prompts(job)]
    for name, ids in answers.items():
        own = _scored_before(job, name)
        if own is not None:
            found[name] = own
            scorer.remember(ids, own)
    for name, ids in answers.items():
        if name in found:
            continue
        path = folder / "models" / f"{safe(name)}.json"
        key = digest([ids, job["by"]])
        kept = read_json(path)
        if not isinstance(kept, dict) or kept.get("of") != key:
            kept = {"of": key, "columns": scorer.columns(ids)}
            write_json(path, kept)
            log(f"{name}: {len(ids)} answers scored")
        found[name] = kept["columns"]
        scorer.remember(ids, found[name])
    write_json(folder / SCORES, found)
    return {"by": job["by"], "models": list(found)}


def _scored_before(job: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """Return what the scoring model said of its own answers when it gave them; None of others."""
    if name.split(".")[0] != job["by"]["model"]:
        return None
    kept = read_json(Path(job["outputs"][name]) / SCORES)
    return kept["columns"] if isinstance(kept, dict) and kept["outputs_sha256"] == job["outputs_sha256"][name] else None


def _ids(loaded: Any, prompt: str, answer: str | None) -> list[int]:
    """Return the tokens of an answer after a prompt, as training writes them, without what ends it."""
    if not answer:
        return []
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    ids = loaded.template.encode_oneturn(loaded.tokenizer, messages)[1]
    stops = set(loaded.stops())
    return list(ids[: next((place for place, token in enumerate(ids) if token in stops), len(ids))])


def per_token(columns: Mapping[str, Sequence[float]], key: str) -> list[float | None]:
    """Return a column of sums as means per token; None for an answer without tokens."""
    return [total / length if length else None for total, length in zip(columns[key], columns["lengths"], strict=True)]
