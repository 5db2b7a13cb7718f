"""Every number of a report, as one JSON-like value: what `results.json` holds and the tables and plots show."""

from collections.abc import Mapping, Sequence
from typing import Any

from ledpo_plugin.common.stats import mean_interval, plain
from ledpo_plugin.experiments.results.collected import Collected, Run, number

from .contrasts import contrasts
from .costs import budget_summary, cost_summary, prerequisite_summary, provenance_summary
from .curves import beta_summary, convergence, curves, mixture_summary, stability
from .formatting import answer
from .per_item import per_item
from .reuse import reused
from .strategies import strategy_summary

FORMAT = 2  # 1: without per-item values


def summarise(found: Collected, others: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Return every number of the report; only JSON types, numbers that are not finite as None.

    Args:
        found: the results folder.
        others: the results of other experiments' reports, in which some of these runs may stand, too.
    """
    primary, secondary = found.evaluation["primary"], list(found.evaluation.get("secondary") or ())
    values = per_item(found)
    summary = {
        "format": FORMAT,
        "experiment": found.definition.get("name"),
        "profile": found.definition.get("profile_name"),
        "question": found.definition.get("question"),
        "prediction": found.profile.get("prediction"),
        "date": max((str(run.result.get("ended", "")) for run in found.runs if run.result), default=None),
        "baseline": found.baseline,
        "primary": primary,
        "secondary": secondary,
        "labels": {name: found.label(name) for name in found.variants},
        "runs": [_run(run) for run in found.runs],
        "bases": _bases(found),
        "metrics": {name: _metrics(found, name) for name in found.variants},
        "equivalence": dict(found.evaluation.get("equivalence") or {}),
        "contrasts": _named(found),
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
    return concluded(plain(summary | {"per_item": values}), others)


def concluded(
    summary: Mapping[str, Any], others: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Return a summary with what follows from its numbers alone: comparisons, runs that stand elsewhere, the answer.

    Args:
        summary: the other numbers; `per_item` is None where earlier results are read again.
        others: see `summarise`.
        before: comparisons of those earlier results, whose intervals over items are taken over.
    """
    metrics = [summary["primary"], *summary["secondary"]]
    rows = contrasts(
        summary["runs"], summary["contrasts"], metrics, per_item=summary["per_item"], margins=summary["equivalence"],
        before=before,
    )  # fmt: skip
    found = {**summary, "comparisons": plain(rows)}
    found["reused"] = reused(found, others)
    found["answer"] = answer(found)
    found["per_item"] = found.pop("per_item")  # last: it is long
    return found


def renewed(kept: Mapping[str, Any], others: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Return the content of an earlier `results.json` as this version would conclude from its numbers.

    Raises:
        ValueError: it is no such content, or of a later version of this package.
    """
    if kept.get("format") not in range(1, FORMAT + 1) or "comparisons" not in kept:
        raise ValueError(f"Its format is {kept.get('format')!r}; this version reads up to {FORMAT}.")
    known = dict.fromkeys(
        (row["variant"], row["label"], row["against"], row["against_label"]) for row in kept["comparisons"]
    )
    names = ("variant", "label", "against", "against_label")
    kept = {**kept, "curves": {**kept["curves"], "drawn": kept["curves"].get("drawn", {})}}
    earlier = {
        "contrasts": [dict(zip(names, row, strict=True)) for row in known],
        "equivalence": {},
        "per_item": None,
        "strategies": None,
        "prerequisites": [],
    }
    missing = {key: value for key, value in earlier.items() if key not in kept}
    return concluded({**_with_measured_tokens(kept), **missing, "format": FORMAT}, others, kept["comparisons"])


def _with_measured_tokens(kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return results with the tokens that were generated in measuring apart from those in training.

    When they were one number, no stage generated in training.
    """

    def apart(row: Mapping[str, Any], none: Any) -> dict[str, Any]:
        return {**row, "measure_tokens": row["generated_tokens"], "generated_tokens": none}

    budget, cost = kept["budget"]["variants"], kept["cost"]
    if all("measure_tokens" in row for row in cost.values()):
        return dict(kept)
    budget = {name: apart(row, [0.0] * len(row["generated_tokens"])) for name, row in budget.items()}
    cost = {name: apart(row, 0.0) for name, row in cost.items()}
    return {**kept, "budget": {**kept["budget"], "variants": budget}, "cost": cost}


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


def _named(found: Collected) -> list[dict[str, str]]:
    pairs = [(name, against) for name in found.variants if (against := found.compares_to(name))]
    return [
        {"variant": name, "label": found.label(name), "against": other, "against_label": found.label(other)}
        for name, other in pairs
    ]


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
