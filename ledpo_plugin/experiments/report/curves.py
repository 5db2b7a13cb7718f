"""How training went: curves, speed, stability, beta where it is learned, and the two parts of a mixture. Pure."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ledpo_plugin.common.stats import censored_median, first_reached, mean_interval, spikes, variation
from ledpo_plugin.experiments.results.collected import Collected, Run, number
from ledpo_plugin.experiments.results.merging import PHASE

MOST_POINTS = 120  # of a training curve; more are averaged in bins
MOST_DOTS = 300  # of a scatter


def main_dataset(found: Collected) -> str | None:
    """Return the data set of pairs that margins and betas are shown of: the primary metric's, or the first."""
    pairs = list(found.evaluation.get("pairs") or ())
    dataset = found.evaluation["primary"].rpartition("/")[0]
    return dataset if dataset in pairs else next(iter(pairs), None)


def curve_metrics(found: Collected) -> list[str]:
    """Return the metrics whose curves are shown: the primary one, the margin, and the shift of chosen answers."""
    dataset = main_dataset(found)
    names = [found.evaluation["primary"]] + [f"{dataset}/{short}" for short in ("margin", "chosen_shift") if dataset]
    return list(dict.fromkeys(names))


def drawn_metrics(found: Collected) -> list[str]:
    """Return the metrics of drawn answers whose curves are shown."""
    answers = found.evaluation.get("answers") or {}
    names = [f"{role}/{short}" for role, short in (("reward", "score"), ("judge", "win_rate")) if answers.get(role)]
    return [*names, "answers/kl", "answers/entropy"] if answers else []


def points(found: Collected, run: Run, metric: str) -> list[dict[str, float]]:
    """Return a run's measurements in order, the untrained model first: step, flops, value."""
    base = found.bases.get(str(run.result.get("base")))
    rows = []
    if base is not None and metric in base.metrics:
        rows.append({"step": 0, "flops": 0.0, "value": number(base.metrics[metric])})
    for checkpoint in run.result.get("checkpoints") or ():
        if metric in (checkpoint.get("metrics") or {}):
            value = number(checkpoint["metrics"][metric])
            rows.append({"step": checkpoint["step"], "flops": number(checkpoint.get("flops")), "value": value})
    return rows


def curves(found: Collected) -> dict[str, Any]:
    """Return per metric and variant the mean, least and greatest value over seeds at each measurement and step."""
    measured = {
        metric: {name: _measured(found, name, metric) for name in found.variants}
        for metric in dict.fromkeys([*curve_metrics(found), *drawn_metrics(found)])
    }
    logged = (
        "loss",
        "grad_norm",
        "margins/beta_free",
        "beta/mean",
        "beta/q10",
        "beta/q90",
        "preference_loss",
        "sft_nll",
    )
    training = {
        key: {name: curve for name in found.variants if (curve := _logged(found.finished(name), key))["step"]}
        for key in logged
    }
    return {"measured": measured, "training": training, "drawn": drawn_metrics(found)}


def convergence(found: Collected) -> dict[str, Any] | None:
    """Return per variant how soon the target was reached: steps and FLOPs, median over seeds, not reached as later."""
    target = found.evaluation.get("target")
    if not target:
        return None
    bounds = {"at_least": target.get("at_least"), "at_most": target.get("at_most")}
    rows = {}
    for variant in found.variants:
        runs = [points(found, run, target["metric"]) for run in found.finished(variant)]
        reached = {
            axis: [first_reached([(row[axis], row["value"]) for row in rows_], **bounds) for rows_ in runs]
            for axis in ("step", "flops")
        }
        rows[variant] = {
            "n": len(runs),
            "reached": sum(step is not None for step in reached["step"]),
            "at_start": any(step == 0 for step in reached["step"]),
            "steps": reached["step"],
            "flops": reached["flops"],
            "median_steps": censored_median(reached["step"]),
            "median_flops": censored_median(reached["flops"]),
        }
    return {"metric": target["metric"], **bounds, "variants": rows}


def stability(found: Collected) -> dict[str, Any]:
    """Return per variant spikes, values that are not finite, gradient variation, and the chosen answers' likelihood."""
    dataset = main_dataset(found)
    return {name: _stability(found, name, f"{dataset}/chosen_shift") for name in found.variants}


def _stability(found: Collected, variant: str, shift: str) -> dict[str, Any]:
    runs = found.finished(variant)
    per_run = []
    for run in runs:
        losses, norms = (_series(run, key)[1] for key in ("loss", "grad_norm"))
        spiked, judged = _spikes(run)
        shifts = [row["value"] for row in points(found, run, shift)]
        if shifts and not (found.bases.get(str(run.result.get("base")))):
            shifts = [0.0, *shifts]  # no shift from itself: true of every model before training
        steps = list(pairwise(shifts))
        per_run.append(
            {
                "seed": run.seed,
                "spikes": spiked,
                "judged": judged,
                "not_finite": sum(not math.isfinite(value) for value in [*losses, *norms]),
                "gradient_variation": variation(norms),
                "chosen_shift": shifts[-1] if shifts else None,
                "fell": sum(after < before for before, after in steps),
                "checkpoints": len(steps),
                "unreadable_log_lines": run.result.get("unreadable_log_lines") or 0,
            }
        )
    variations = [row["gradient_variation"] for row in per_run if row["gradient_variation"] is not None]
    return {
        "runs": per_run,
        "spikes": sum(len(row["spikes"]) for row in per_run),
        "judged": sum(row["judged"] for row in per_run),
        "not_finite": sum(row["not_finite"] for row in per_run),
        "gradient_variation": float(np.mean(variations)) if variations else None,
        "chosen_shift": mean_interval([number(row["chosen_shift"]) for row in per_run]),
        "below_start": sum(row["chosen_shift"] is not None and row["chosen_shift"] < 0 for row in per_run),
        "fell": sum(row["fell"] for row in per_run),
        "checkpoints": sum(row["checkpoints"] for row in per_run),
    }


def _spikes(run: Run) -> tuple[list[int], int]:
    """Return the steps whose loss spiked, and how many were judged; losses of different kinds are judged apart."""
    rows = [row for row in run.result.get("training") or () if "loss" in row and "step" in row]
    found: list[int] = []
    judged = 0
    for kind in dict.fromkeys(row.get(PHASE) for row in rows):
        own = [row for row in rows if row.get(PHASE) == kind]
        places, count = spikes([number(row["loss"]) for row in own])
        found += [int(own[place]["step"]) for place in places]
        judged += count
    return sorted(found), judged


def beta_summary(found: Collected) -> dict[str, Any]:
    """Return per variant whose beta moved or differs among prompts what it was on held-out prompts."""
    dataset = main_dataset(found)
    rows = {}
    for variant in found.variants:
        runs = [run for run in found.finished(variant) if _moves(run)]
        if not runs:
            continue
        columns = [each for run in runs if (each := run.items("pairs", dataset)) and "beta" in each]
        beta = np.concatenate([each["beta"] for each in columns]) if columns else np.zeros(0)
        margin = np.concatenate([each["margin"] for each in columns]) if columns else np.zeros(0)
        first = columns[0] if columns else {}
        rows[variant] = {
            "mode": found.value(variant, "beta_mode"),
            "start": found.value(variant, "pref_beta"),
            "dataset": dataset,
            "n": len(beta),
            "quantiles": [float(q) for q in np.quantile(beta, np.linspace(0, 1, 51))] if len(beta) else [],
            "beta": list(first.get("beta", ()))[:MOST_DOTS],  # of the first seed
            "margin": list(first.get("margin", ()))[:MOST_DOTS],
            "metrics": {
                key: mean_interval([number((run.result.get("final") or {}).get(f"{dataset}/{key}")) for run in runs])
                for key in ("beta_mean", "beta_std", "beta_q10", "beta_q90", "beta_margin_corr")
            },
            "not_positive_margin": float((margin <= 0).mean()) if len(margin) else None,
        }
    return rows


def mixture_summary(found: Collected) -> dict[str, Any]:
    """Return per variant that trained on instructions, too, the least and greatest share of them in any step."""
    rows = {}
    for variant in found.variants:
        shares = [v for run in found.finished(variant) for v in _series(run, "sft_share")[1] if math.isfinite(v)]
        if not shares and not found.value(variant, "sft_ratio"):
            continue
        declared = number(found.value(variant, "sft_ratio"))
        by = found.value(variant, "sft_ratio_by") or "examples"
        rows[variant] = {
            "declared": declared if math.isfinite(declared) else None,
            "by": by,
            "least": min(shares, default=None),
            "greatest": max(shares, default=None),
            "logged": len(shares),
        }
    return rows


def binned(curve: Mapping[str, list[Any]], size: int) -> dict[str, list[Any]]:
    """Return a curve with every `size` points in a row made one: their mean, their least and their greatest value."""
    reduce: Mapping[str, Callable[[list[float]], float]] = {"least": min, "greatest": max, "n": max}
    return {
        name: [reduce.get(name, _mean)(values[start : start + size]) for start in range(0, len(values), size)]
        for name, values in curve.items()
    }


def _moves(run: Run) -> bool:
    final = run.result.get("final") or {}
    if any(number(value) > 1e-9 for key, value in final.items() if key.endswith("/beta_std")):
        return True
    means = [value for value in _series(run, "beta/mean")[1] if math.isfinite(value)]
    return bool(means) and max(means) - min(means) > 1e-6 * abs(max(means, key=abs))


def _series(run: Run, key: str) -> tuple[list[int], list[float]]:
    rows = [row for row in run.result.get("training") or () if key in row and "step" in row]
    return [int(row["step"]) for row in rows], [number(row[key]) for row in rows]


def _measured(found: Collected, variant: str, metric: str) -> dict[str, list[Any]]:
    """Line up the seeds' measurements by their number: steps may differ where tokens or FLOPs are the budget.

    The last one of each is the end of its training, and stands with the others' ends; of those before it as many are
    shown as every seed has.
    """
    seeds = [rows for run in found.finished(variant) if (rows := points(found, run, metric))]
    before = min((len(rows) - 1 for rows in seeds), default=0)
    rows = []
    for index in [*range(before), -1]:
        here = [seed[index] for seed in seeds if math.isfinite(seed[index]["value"])]
        if here:
            values = [row["value"] for row in here]
            rows.append(
                {
                    "step": _mean([row["step"] for row in here]),
                    "flops": _mean([row["flops"] for row in here]),
                    **_band(values),
                }
            )
    return _columns(rows, ("step", "flops", "mean", "least", "greatest", "n"))


def _logged(runs: Sequence[Run], key: str) -> dict[str, list[Any]]:
    by_step: dict[int, list[float]] = {}
    for run in runs:
        for step, value in zip(*_series(run, key), strict=True):
            if math.isfinite(value):
                by_step.setdefault(step, []).append(value)
    rows = [{"step": step, **_band(by_step[step])} for step in sorted(by_step)]
    return binned(_columns(rows, ("step", "mean", "least", "greatest", "n")), -(-len(rows) // MOST_POINTS) or 1)


def _band(values: list[float]) -> dict[str, float]:
    return {"mean": _mean(values), "least": min(values), "greatest": max(values), "n": len(values)}


def _mean(values: Sequence[float]) -> float:
    return float(sum(values) / len(values))


def _columns(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in names}
