"""What the runs used against what they were to use, what it all cost, and where the numbers come from. Pure."""

from collections.abc import Mapping
from typing import Any

from ledpo_plugin.experiments.definition.metrics import SCORERS
from ledpo_plugin.experiments.measuring.operations import reward_model_flops, summed
from ledpo_plugin.experiments.results.collected import Collected, Run, number

USED = (
    "steps",
    "examples",
    "sft_examples",
    "policy_tokens",
    "sft_tokens",
    "reference_tokens",
    "reference_tokens_run",
    "flops",
    "seconds",
    "peak_memory_bytes",
    "generated_tokens",
    "measure_seconds",
    "measure_tokens",
)
COMPARED = ("cpu", "cores", "gpus", "threads")


def budget_summary(found: Collected) -> dict[str, Any]:
    """Return what was declared and what was used per variant and run; `off`: runs that missed it by over a step."""
    (unit, amount) = next(iter((found.profile.get("budget") or {"steps": None}).items()))
    rows = {}
    for variant in found.variants:
        runs = found.finished(variant)
        used = [number((run.result.get("budget") or {}).get("used")) for run in runs]
        rows[variant] = {
            "answers": str(found.value(variant, "stage")) in ("kto", "ledpo_kto"),
            "used": used,
            "off": [run.seed for run, value in zip(runs, used, strict=True) if _off(run, value, amount)],
            **{key: [_used(run, key) for run in runs] for key in USED},
        }
    return {"unit": unit, "amount": amount, "variants": rows}


SUMMED = ("seconds", "measure_seconds", "flops", "policy_tokens", "reference_tokens_run", "generated_tokens",
          "measure_tokens")  # fmt: skip


def cost_summary(found: Collected) -> dict[str, Any]:
    """Return sums over all finished runs of each variant; of operations by kind the mean of a run, where known."""
    rows = {}
    for variant in found.variants:
        runs = found.finished(variant)
        kinds = [(run.result.get("usage") or {}).get("flops_by_kind") for run in runs]
        total = summed(kinds)
        rows[variant] = {
            "runs": len(runs),
            **{key: sum(_used(run, key) or 0.0 for run in runs) for key in SUMMED},
            "by_kind": None if total is None else {kind: value / len(runs) for kind, value in total.items()},
        }
    return rows


def _cost(found: Collected) -> Mapping[str, float] | None:
    """Return what a pass of the model costs, as one of the runs says."""
    runs = [run for variant in found.variants for run in found.finished(variant)]
    return next((run.result["cost"] for run in runs if run.result.get("cost")), None)


def prerequisite_summary(found: Collected) -> list[dict[str, Any]]:
    """Return what was trained before the runs: what for, on what, how well, and what it cost."""
    rows = []
    for name, settings in (found.definition.get("prerequisites") or {}).items():
        result = found.prerequisites.get(name)
        if result is None:
            continue
        figures = result.get("figures") or {}
        place = str((result.get("recipe") or {}).get("output_dir") or "")
        roles = [role for role in SCORERS if (found.evaluation.get("answers") or {}).get(role) == name]
        rows.append(
            {
                "name": name,
                "label": str((settings or {}).get("label") or name),
                "note": str((settings or {}).get("note") or ""),
                "dataset": (result.get("recipe") or {}).get("dataset"),
                "evaluated_on": (result.get("recipe") or {}).get("eval_dataset"),
                "roles": roles,
                "used_by": [variant for variant in found.variants if found.names(variant, place)],
                "accuracy": figures.get("eval_accuracy"),
                "train_seconds": figures.get("train_runtime"),
                "flops": reward_model_flops(_cost(found), result.get("tokens"), result.get("recipe") or {}),
                "recipe_sha256": result.get("recipe_sha256"),
            }
        )
    return rows


def provenance_summary(found: Collected) -> dict[str, Any]:
    """Return versions, hardware, git states, model and data hashes that occur, and warnings where runs differ."""
    sources = [(run, (run.result.get("provenance") or {})) for run in found.runs if run.result]
    warnings = []
    versions: dict[str, list[str]] = {}
    for _, source in sources:
        for name, version in (source.get("versions") or {}).items():
            _add(versions, name, "absent" if version is None else str(version))
    hardware: dict[str, list[str]] = {}
    for _, source in sources:
        for name, value in (source.get("hardware") or {}).items():
            _add(hardware, name, _text(value))
    data: dict[str, list[str]] = {}
    models: dict[str, list[str]] = {}
    for run, source in sources:
        for name, value in (source.get("data_sha256") or {}).items():
            _add(data, name, str(value))
        if source.get("model_sha256"):
            model = str((run.result.get("recipe") or {}).get("model_name_or_path", "model"))
            _add(models, model, str(source["model_sha256"]))
    commits: dict[str, list[str]] = {}
    for _, source in sources:
        git = source.get("git") or {}
        if git.get("commit"):
            _add(commits, "commit", str(git["commit"]) + (" with changes not committed" if git.get("dirty") else ""))
    for what, table, names in (
        ("the version of", versions, versions),
        ("hardware:", hardware, [name for name in COMPARED if name in hardware]),
        ("the content of data set", data, data),
        ("the weights of", models, models),
        ("the git", commits, commits),
    ):
        warnings += [
            f"Runs differ in {what} {name}: {', '.join(table[name])}." for name in names if len(table[name]) > 1
        ]
    if any("not committed" in commit for commit in commits.get("commit", ())):
        warnings.append("Runs were made with changes that are not committed: the commit alone does not repeat them.")
    return {
        "versions": versions,
        "hardware": hardware,
        "data_sha256": data,
        "model_sha256": models,
        "git": commits.get("commit", []),
        "started": min((str(r.result.get("started", "")) for r in found.runs if r.result), default=None),
        "ended": max((str(r.result.get("ended", "")) for r in found.runs if r.result), default=None),
        "warnings": warnings,
        "recipes": {
            name: {str(run.seed): run.result.get("recipe_sha256") for run in found.finished(name)}
            for name in found.variants
        },
    }


def _used(run: Run, key: str) -> float | None:
    usage: Mapping[str, Any] = run.result.get("usage") or {}
    return number(usage[key]) if usage.get(key) is not None else None


def _off(run: Run, used: float, amount: Any) -> bool:
    """Whether a run's use differs from the budget by more than one of its optimizer steps.

    Steps differ in size where answers are generated in some of them: then the log says what the last one used.
    """
    steps = _used(run, "steps")
    log = [number(row["flops"]) for row in run.result.get("training") or () if row.get("flops") is not None]
    if (run.result.get("budget") or {}).get("unit") == "flops" and amount and len(log) == steps:
        return used < float(amount) or (len(log) > 1 and log[-2] >= float(amount))
    return bool(amount) and bool(steps) and abs(used - float(amount)) > used / steps * (1 + 1e-9)


def _add(table: dict[str, list[str]], name: str, value: str) -> None:
    if value not in table.setdefault(name, []):
        table[name].append(value)


def _text(value: Any) -> str:
    return (", ".join(map(str, value)) or "none") if isinstance(value, list | tuple) else str(value)
