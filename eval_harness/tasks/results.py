"""What the tasks' YAML files call: documents in, metrics out. Pure but for reading the documents."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DOCUMENTS = "documents.jsonl"
Result = Sequence[tuple[float, bool]]  # log-probability of each choice, and whether it was the likeliest text


def documents(folder: Path, needed: Sequence[str], domain: str | None = None) -> dict[str, Any]:
    """Return the documents of a prepared folder as lm-eval wants them.

    Args:
        folder: holds documents.jsonl.
        needed: fields that every document of the task has; those without are none of its documents.
        domain: only its documents.

    Raises:
        ValueError: no document is left; the message says what the folder lacks.
    """
    from datasets import Dataset

    text = (folder / DOCUMENTS).read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.split("\n") if line]
    kept = [
        row for row in rows
        if all(row.get(name) is not None for name in needed) and (domain is None or row["domain"] == domain)
    ]  # fmt: skip
    if not kept:
        raise ValueError(
            f"{folder} has no document with {', '.join(needed)}" + (f" of the domain {domain}" if domain else "")
            + ". Prepare it again: pairs come from a data set of pairs, references from a trained run."
        )  # fmt: skip
    return {"test": Dataset.from_list(kept)}


def pair_choices(document: Mapping[str, Any]) -> list[str]:
    """Return the texts that are scored: chosen and rejected, and the prompt's end by itself."""
    return [*(document["moved"] + document[side] for side in ("chosen", "rejected")), *_moved(document)]


def answer_choices(document: Mapping[str, Any]) -> list[str]:
    """Return the texts that are scored: the answer, and the prompt's end by itself."""
    return [document["moved"] + document["chosen"], *_moved(document)]


def _moved(document: Mapping[str, Any]) -> list[str]:
    # lm-eval scores white space at the end of a prompt as the start of every answer. Scored by itself, too, it can
    # be taken off again.
    return [document["moved"]] if document["moved"] else []


def logps(document: Mapping[str, Any], results: Result, count: int) -> list[float]:
    """Return the log-probability of each of `count` answers (nats), without what was taken from the prompt's end."""
    moved = results[count][0] if document["moved"] else 0.0
    return [results[place][0] - moved for place in range(count)]


def win(difference: float) -> float:
    """Return 1 for a positive difference, one half for none, else 0."""
    return 0.5 if difference == 0 else float(difference > 0)


def of_pair(document: Mapping[str, Any], results: Result) -> dict[str, float]:
    """Return which answer of a pair is likelier: 1 for the chosen one, one half for a tie."""
    chosen, rejected = logps(document, results, 2)

    def apart(measure: str) -> float:
        return chosen / document[f"chosen_{measure}"] - rejected / document[f"rejected_{measure}"]

    return {
        "accuracy_sum": win(chosen - rejected),
        "accuracy_per_token": win(apart("tokens")),
        "accuracy_per_byte": win(apart("bytes")),
    }


def of_rewarded_pair(document: Mapping[str, Any], results: Result) -> dict[str, float]:
    """Return implicit rewards (DPO, arXiv:2305.18290, section 4), with the prompt's own beta."""
    chosen, rejected = (
        logp - document[f"reference_{side}"]
        for side, logp in zip(("chosen", "rejected"), logps(document, results, 2), strict=True)
    )
    beta, margin = document["beta"], chosen - rejected
    return {
        "reward_accuracy": win(margin),
        "margin": margin,
        "reward_margin": beta * margin,
        "chosen_reward": beta * chosen,
        "rejected_reward": beta * rejected,
    }


def of_answer(document: Mapping[str, Any], results: Result) -> dict[str, tuple[float, int]]:
    """Return the answer's log-probability with its tokens, and with its bytes."""
    (logp,) = logps(document, results, 1)
    return {"token_perplexity": (logp, document["chosen_tokens"]), "bits_per_byte": (logp, document["chosen_bytes"])}


def token_perplexity(items: Sequence[tuple[float, int]]) -> float:
    """Return exp of the negative log-likelihood per token, over all answers."""
    total, tokens = (math.fsum(column) for column in zip(*items, strict=True))
    return math.exp(-total / tokens)
