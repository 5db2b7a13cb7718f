"""Every number of a report, as one JSON-like value: what `results.json` holds and the tables and plots show."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from .behaviour import beta_summary, convergence, curves, mixture_summary, stability
from .collected import Collected, Run, number
from .costs import budget_summary, cost_summary, prerequisite_summary, provenance_summary
from .measured import OF_EACH_PAIR, won
from .metrics import OF_SCORES
from .stats import Estimate, bootstrap_difference, holm, mean_interval, paired_difference
from .strategies import strategy_summary
from .words import answer, verdict, verdict_words

FORMAT = 1
BOOTSTRAP_SEED = 20240229


def summarise(found: Collected) -> dict[str, Any]:
    """Return every number of the report; only JSON types, numbers that are not finite as None."""
    primary, secondary = found.evaluation["primary"], list(found.evaluation.get("secondary") or ())
    summary = {
        "format": FORMAT,
        "experiment": found.definition.get("name"),
        "profile": found.definition.get("profile_name"),
        "question": found.definition.get("question"),
        "date": max((str(run.result.get("ended", "")) for run in found.runs if run.result), default=None),
        "baseline": found.baseline,
        "primary": primary,
        "secondary": secondary,
        "labels": {name: found.label(name) for name in found.variants},
        "runs": [_run(run) for run in found.runs],
        "bases": _bases(found),
        "metrics": {name: _metrics(found, name) for name in found.variants},
        "comparisons": _comparisons(found, [primary, *secondary]),
        "datasets": _datasets(found),
        "budget": budget_summary(found),
        "cost": cost_summary(found),
        "convergence": convergence(found),
        "stability": stability(found),
        "beta": beta_summary(found),
        "mixture": mixture_summary(found),
        "strategies": strategy_summary(found),
        "prerequisites": prerequisite_summary(found),
        "curves": curves(found),
        "provenance": provenance_summary(found),
    }
    summary = plain(summary)
    return {**summary, "answer": answer(summary)}


def plain(value: Any) -> Any:
    """Return the value in JSON types; a number that is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Estimate):
        return plain(asdict(value))
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(item) for item in value]
    if isinstance(value, bool | str | int | None):
        return value
    if isinstance(value, float | np.floating | np.integer):
        return float(value) if math.isfinite(value) else None
    return str(value)


def item_differences(found: Collected, ours: Run, theirs: Run, metric: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Return ours minus theirs per held-out item [N], and the items' weights in the mean [N].

    None for a metric that is no mean over items, or where the two did not measure the same items.
    """
    dataset, _, short = metric.rpartition("/")
    kind = "instructions" if short == "nll" else "scores" if short in OF_SCORES else "pairs"
    columns = [_columns(found, run, kind, dataset) for run in (ours, theirs)]
    if short not in _SCORES or None in columns:
        return None
    try:
        scores = [_SCORES[short](each) for each in columns]
    except KeyError:
        return None
    if scores[0].shape != scores[1].shape or scores[0].size == 0:
        return None
    weights = columns[0]["length"] if short == "nll" else np.ones(len(scores[0]))
    return scores[0] - scores[1], weights


def _columns(found: Collected, run: Run, kind: str, dataset: str) -> dict[str, np.ndarray] | None:
    columns = run.items(kind, dataset)
    base = found.bases.get(str(run.result.get("base"))) if kind == "scores" else None
    start = None if base is None else base.items(kind, dataset)
    return columns if columns is None or start is None else {**columns, "start": start["score"]}


_SCORES = {
    **OF_EACH_PAIR,
    "nll": lambda columns: columns["nll"] / columns["length"],
    "score": lambda columns: columns["score"],
    "win_rate": lambda columns: won(columns["score"] - columns["start"]),
}


def _run(run: Run) -> dict[str, Any]:
    result = run.result or {}
    kept = ("recipe_sha256", "started", "ended", "base", "budget", "usage", "final", "unreadable_log_lines")
    return {
        "variant": run.variant,
        "seed": run.seed,
        "phase": run.phase,
        "error": run.error,
        **{key: result.get(key) for key in kept},
    }


def _bases(found: Collected) -> list[dict[str, Any]]:
    used: dict[str, list[str]] = {}
    for variant in found.variants:
        base = found.base_of(variant)
        if base is not None:
            used.setdefault(base.name, []).append(variant)
    return [
        {
            "base": name,
            "model": found.bases[name].model,
            "variants": variants,
            "metrics": dict(found.bases[name].metrics),
        }
        for name, variants in used.items()
    ]


def _metrics(found: Collected, variant: str) -> dict[str, Any]:
    finals = [run.result.get("final") or {} for run in found.finished(variant)]
    names = dict.fromkeys(name for final in finals for name in final)
    return {name: mean_interval([number(final.get(name)) for final in finals]) for name in names}


def _comparisons(found: Collected, metrics: list[str]) -> list[dict[str, Any]]:
    rows = []
    for metric in metrics:
        of_metric = [_comparison(found, variant, metric) for variant in found.variants if found.compares_to(variant)]
        if metric == metrics[0]:
            for row, corrected in zip(of_metric, holm([row["difference"].p for row in of_metric]), strict=True):
                row["p_holm"] = corrected
                row["items"] = _over_items(found, row)
                facts = plain(row)
                row["verdict"] = verdict(facts)
                row["words"] = verdict_words({**facts, "verdict": row["verdict"]})
        rows += of_metric
    return rows


def _comparison(found: Collected, variant: str, metric: str) -> dict[str, Any]:
    against = found.compares_to(variant)
    ours, theirs = (
        {run.seed: number((run.result.get("final") or {}).get(metric)) for run in found.finished(name)}
        for name in (variant, against)
    )
    return {
        "metric": metric,
        "variant": variant,
        "label": found.label(variant),
        "against": against,
        "against_label": found.label(against),
        "difference": paired_difference(ours, theirs),
    }


def _over_items(found: Collected, row: Mapping[str, Any]) -> Estimate | None:
    runs = [{run.seed: run for run in found.finished(row[key])} for key in ("variant", "against")]
    differences = [
        item_differences(found, runs[0][seed], runs[1][seed], row["metric"]) for seed in row["difference"].seeds
    ]
    if not differences or None in differences or len({len(each) for each, _ in differences}) > 1:
        return None
    return bootstrap_difference(np.stack([each for each, _ in differences]), differences[0][1], seed=BOOTSTRAP_SEED)


def _datasets(found: Collected) -> dict[str, dict[str, int]]:
    """Return per kind and data set the number of held-out items that the first run measured."""
    counts: dict[str, dict[str, int]] = {"pairs": {}, "instructions": {}}
    for kind, sizes in counts.items():
        for dataset in found.evaluation.get(kind) or ():
            for run in (run for variant in found.variants for run in found.finished(variant)):
                columns = run.items(kind, dataset)
                if columns:
                    sizes[dataset] = max((len(column) for column in columns.values()), default=0)
                    break
    return counts
