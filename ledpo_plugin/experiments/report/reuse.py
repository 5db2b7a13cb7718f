"""Runs that stand in more than one report: found by what they measured, and marked in each.

Whether a run was copied or the same recipe was run again does not matter: the same numbers are no second finding.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ledpo_plugin.common.files import read_json

# Metrics of held-out data that take any value: two trainings that are not the same differ in them. The others, as
# accuracies of a few pairs, agree by chance.
TELLING = ("margin", "chosen_shift", "rejected_shift", "nll")
SAME = 1e-9  # relative


def other_results(results: Path, beside: Sequence[Path] = ()) -> list[dict[str, Any]]:
    """Return the content of the results.json of other experiments, by name.

    Those that lie as this one does are found: NAME/results.json beside NAME, NAME/PROFILE beside NAME/PROFILE.

    Args:
        results: the folder of this experiment's results.
        beside: more folders of results.

    Raises:
        ValueError: one of `beside` holds no results.
    """
    place = results.resolve()
    near = {path.parent: path.parent.name for path in place.parent.glob("*/results.json")}
    near |= {path.parent: path.parent.parent.name for path in place.parent.parent.glob(f"*/{place.name}/results.json")}
    found = {}
    for folder, name in sorted(near.items()):
        content = read_json(folder / "results.json") if folder != place else None
        if isinstance(content, dict) and content.get("experiment") == name and "comparisons" in content:
            found[folder] = content
    for folder in beside:
        content = read_json(Path(folder) / "results.json")
        if not isinstance(content, dict) or "comparisons" not in content:
            raise ValueError(f"--beside {folder}: there is no results.json of a report in it. Name such a folder.")
        found[Path(folder).resolve()] = content
    return [content for folder, content in found.items() if folder != place]


def reused(summary: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the reports in which some of a report's runs stand as well.

    Args:
        summary: of the report: `experiment`, `profile`, `runs`, `labels`, `comparisons`.
        others: contents of other results.json; the same experiment under the same profile is no other report.

    Returns:
        Of each other report `experiment` and `profile`; `runs`, with `variant` and `seed` here and there; and
        `contrasts` of the answering metric whose runs are the same in both, with the `verdict` there.
    """
    found = []
    for other in others:
        if (other.get("experiment"), other.get("profile")) == (summary["experiment"], summary["profile"]):
            continue
        runs = _shared(summary["runs"], other["runs"])
        if runs:
            row = {"experiment": other["experiment"], "profile": other["profile"], "runs": runs}
            found.append(row | {"contrasts": _shared_contrasts(summary, other, runs)})
    return found


def same_run(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether two runs have the same seed, used as much, and measured the same to nine digits on the same data."""
    if ours["seed"] != theirs["seed"] or {ours["phase"], theirs["phase"]} != {"finished"}:
        return False
    tokens = [(run.get("usage") or {}).get("policy_tokens") for run in (ours, theirs)]
    first, second = ours.get("final") or {}, theirs.get("final") or {}
    common = [name for name in first if name in second and name.rpartition("/")[2] in TELLING]
    return tokens[0] == tokens[1] and bool(common) and all(_same(first[name], second[name]) for name in common)


def _same(ours: Any, theirs: Any) -> bool:
    return ours == theirs or (None not in (ours, theirs) and math.isclose(ours, theirs, rel_tol=SAME, abs_tol=1e-12))


def _shared(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for run in ours:
        same = next((other for other in theirs if same_run(run, other)), None)
        if same is not None:
            rows.append({"variant": run["variant"], "seed": run["seed"], "there": same["variant"]})
    return rows


def _shared_contrasts(
    summary: Mapping[str, Any], other: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    there = {(row["variant"], row["seed"]): row["there"] for row in runs}
    rows = []
    for row in summary["comparisons"]:
        seeds = row["difference"].get("seeds") or ()
        names = [{there.get((row[side], seed)) for seed in seeds} for side in ("variant", "against")]
        if row["metric"] != summary["primary"] or any(len(each) != 1 or None in each for each in names):
            continue
        wanted = (row["metric"], next(iter(names[0])), next(iter(names[1])))
        same = next(
            (one for one in other["comparisons"] if (one["metric"], one["variant"], one["against"]) == wanted), None
        )
        if same is not None and same.get("verdict") and list(same["difference"].get("seeds") or ()) == list(seeds):
            rows.append({"variant": row["variant"], "against": row["against"], "verdict": same["verdict"]})
    return rows
