"""From what was measured of each example to the numbers that are reported. Pure; see `metrics` for what each means."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from eval_harness.text import text_metrics

Columns = Mapping[str, Sequence[float]]


def of_pairs(columns: Columns) -> dict[str, float]:
    """Return the metrics of a data set of pairs; one that is undefined for these numbers is left out.

    Args:
        columns: margin, chosen_logps, rejected_logps, reference_chosen_logps, reference_rejected_logps (nats),
            chosen_length, rejected_length (tokens), and beta where it is learned; one number a pair.
    """
    values = {name: np.asarray(column, dtype=np.float64) for name, column in columns.items()}
    found = {name: score(values).mean() for name, score in OF_EACH_PAIR.items()}
    if "beta" in values:
        found |= _of_beta(values["beta"], values["margin"])
    return _defined(found)


def won(difference: np.ndarray) -> np.ndarray:
    """Return 1 [N] where it is positive, one half where it is 0, else 0; nan where it is not finite."""
    return np.where(np.isfinite(difference), (difference > 0) + 0.5 * (difference == 0), np.nan)


def _per_token(columns: Mapping[str, np.ndarray], side: str) -> np.ndarray:
    return columns[f"{side}_logps"] / columns[f"{side}_length"]


def _shift(columns: Mapping[str, np.ndarray], side: str) -> np.ndarray:
    return (columns[f"{side}_logps"] - columns[f"reference_{side}_logps"]) / columns[f"{side}_length"]


# Metric -> its value for each pair [N], from the columns [N] that `of_pairs` takes; the metric is their mean.
OF_EACH_PAIR: Mapping[str, Callable[[Mapping[str, np.ndarray]], np.ndarray]] = MappingProxyType(
    {
        "accuracy": lambda columns: won(columns["margin"]),
        "margin": lambda columns: columns["margin"],
        "logp_accuracy": lambda columns: won(_per_token(columns, "chosen") - _per_token(columns, "rejected")),
        "chosen_shift": lambda columns: _shift(columns, "chosen"),
        "rejected_shift": lambda columns: _shift(columns, "rejected"),
    }
)


def _of_beta(beta: np.ndarray, margin: np.ndarray) -> dict[str, float]:
    found = {
        "beta_mean": beta.mean(),
        "beta_std": beta.std(),
        "beta_q10": np.quantile(beta, 0.1),
        "beta_q90": np.quantile(beta, 0.9),
    }
    if np.ptp(beta) > 0 and np.ptp(margin) > 0:
        found["beta_margin_corr"] = np.corrcoef(beta, margin)[0, 1]
    return found


def of_instructions(columns: Columns) -> dict[str, float]:
    """Return the metrics of a data set of instructions.

    Args:
        columns: nll (nats, summed over the answer), length (tokens of the answer); one number an instruction.
    """
    nll = math.fsum(columns["nll"]) / math.fsum(columns["length"])
    return _defined({"nll": nll, "perplexity": math.exp(min(nll, 700.0)) if nll < 700 else math.inf})


def of_generations(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the metrics of generated answers; n-grams are of tokens.

    Args:
        rows: each with `output` (the text), `ids` (token ids without the end) and `ended`.
    """
    return text_metrics(rows)


def of_answers(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the metrics of answers that a model drew itself.

    Args:
        rows: each with `output`, `ids`, `ended`, `logps` and `start_logps` (nats, summed) and `entropy` (nats, mean).
    """
    lengths = np.array([len(row["ids"]) + bool(row["ended"]) for row in rows], dtype=np.float64)
    entropy = np.array([row["entropy"] for row in rows], dtype=np.float64)
    found = {
        "kl": float(np.mean([row["logps"] - row["start_logps"] for row in rows])),
        "entropy": float((entropy * lengths).sum() / lengths.sum()),
    }
    return _defined({**found, **text_metrics(rows, drawn=True)})


def of_scores(scores: Sequence[float], start: Sequence[float]) -> dict[str, float]:
    """Return the metrics of what a reward model says of drawn answers, and of the start's to the same prompts."""
    ours, theirs = (np.asarray(values, dtype=np.float64) for values in (scores, start))
    return _defined({"score": ours.mean(), "win_rate": won(ours - theirs).mean()})


def _defined(found: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}


def named(prefix: str, found: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics under the name of what they are of: `general_heldout/accuracy`."""
    return {f"{prefix}/{name}": value for name, value in found.items()}


def merged(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the metrics of several data sets as one mapping."""
    return {name: value for part in parts for name, value in part.items()}
