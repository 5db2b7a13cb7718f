"""From what was measured of each example to the numbers that are reported. Pure; see `metrics` for what each means."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Columns = Mapping[str, Sequence[float]]


def of_pairs(columns: Columns) -> dict[str, float]:
    """Return the metrics of a data set of pairs; one that is undefined for these numbers is left out.

    Args:
        columns: margin, chosen_logps, rejected_logps, reference_chosen_logps, reference_rejected_logps (nats),
            chosen_length, rejected_length (tokens), and beta where it is learned; one number a pair.
    """
    values = {name: np.asarray(column, dtype=np.float64) for name, column in columns.items()}
    margin = values["margin"]
    per_token = {side: values[f"{side}_logps"] / values[f"{side}_length"] for side in ("chosen", "rejected")}
    found = {
        "accuracy": _win_rate(margin),
        "margin": margin.mean(),
        "logp_accuracy": _win_rate(per_token["chosen"] - per_token["rejected"]),
    }
    for side in ("chosen", "rejected"):
        change = values[f"{side}_logps"] - values[f"reference_{side}_logps"]
        found[f"{side}_shift"] = (change / values[f"{side}_length"]).mean()
    if "beta" in values:
        found |= _of_beta(values["beta"], margin)
    return _defined(found)


def _win_rate(difference: np.ndarray) -> float:
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


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
        rows: each with `ids` (token ids without the end) and `ended`.
    """
    if not rows:
        return {}
    bigrams = [gram for row in rows for gram in _grams(row["ids"], 2)]
    found = {
        "length": float(np.mean([len(row["ids"]) for row in rows])),
        "ended": float(np.mean([bool(row["ended"]) for row in rows])),
    }
    if bigrams:
        found["distinct2"] = len(set(bigrams)) / len(bigrams)
    repeated = [1 - len(set(grams)) / len(grams) for row in rows if (grams := _grams(row["ids"], 4))]
    if repeated:
        found["repetition"] = float(np.mean(repeated))
    return found


def _grams(ids: Sequence[int], size: int) -> list[tuple[int, ...]]:
    return [tuple(ids[start : start + size]) for start in range(len(ids) - size + 1)]


def _defined(found: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}


def named(prefix: str, found: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics under the name of what they are of: `general_heldout/accuracy`."""
    return {f"{prefix}/{name}": value for name, value in found.items()}


def merged(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the metrics of several data sets as one mapping."""
    return {name: value for part in parts for name, value in part.items()}
