"""docs/gpu.md from the JSON that the GPU run left: tables, ratios against the targets, and what is missing.

python benchmarks/gpu/report.py [FOLDER]       FOLDER: docs/gpu unless given
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
STEPS = ("correct", "speed")
COMMAND = "benchmarks/gpu/pack.sh, then on the GPU machine: benchmarks/gpu/run.sh .parts OUT"
PEAK = 989e12  # dense bf16 operations a second of an H100 or H200 (SXM), by the vendor's datasheet
TARGETS = {"lf": 2.0, "trl": 1.3}


def speed_table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the table of seconds, MFU and memory."""
    lines = [
        "| model | tuning | tokens a side | pairs a step | contender | s a step, first epoch | later epochs | MFU | "
        "peak above the weights, GB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        case = f"| {row['shape']} | {row['tuning']} | {row['tokens']} | {row['pairs']} | {row.get('label', '')}"
        case += " (again)" if row.get("again") else ""
        if "error" in row:
            lines.append(f"{case} | failed: {row['error'].splitlines()[0][:100]} | | | |")
        elif "later_epochs" in row:
            rate = row["flops"] / row["later_epochs"] / PEAK
            lines.append(
                f"{case} | {row['first_epoch']:.3f} | {row['later_epochs']:.3f} | {rate:.1%} | {row['above_gb']:.2f} |"
            )
    return lines


def ratios(rows: list[dict[str, Any]]) -> list[str]:
    """Return, per case with LEDPO's head in it, the ratios against the targets."""
    lines = [
        "| case | against LLaMA-Factory as it comes (wanted 2.0 x) | against the best TRL setting (wanted 1.3 x) | "
        "memory (wanted 0.5 x) | head against fixed beta (wanted +1 %) |",
        "|---|---|---|---|---|",
    ]
    cases: dict[tuple, dict[str, dict]] = {}
    for row in rows:
        if "later_epochs" in row and not row.get("again"):
            key = (row["shape"], row["tuning"], row["tokens"], row["pairs"])
            cases.setdefault(key, {})[row["contender"]] = row
    for key, found in cases.items():
        if "ledpo_head" not in found:
            continue
        ours, cells = found["ledpo_head"], []
        others = {"lf": [found["lf"]] if "lf" in found else [], "trl": [r for n, r in found.items() if n[:3] == "trl"]}
        for name, wanted in TARGETS.items():
            best = min((row["later_epochs"] for row in others[name]), default=None)
            ratio = None if best is None else best / ours["later_epochs"]
            said = "not measured" if ratio is None else f"{ratio:.2f} x, {'' if ratio >= wanted else 'NOT '}reached"
            cells.append(said)
        share = ours["above_gb"] / found["lf"]["above_gb"] if "lf" in found else None
        cells.append("not measured" if share is None else f"{share:.2f} x, {'' if share <= 0.5 else 'NOT '}reached")
        fixed = found.get("ledpo_fixed")
        cost = ours["later_epochs"] / fixed["later_epochs"] - 1 if fixed else None
        cells.append("not measured" if cost is None else f"{cost:+.1%}, {'' if cost <= 0.01 else 'NOT '}reached")
        lines.append(f"| {' '.join(map(str, key))} | {' | '.join(cells)} |")
    return lines


def correct_table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the table of what was compared."""
    lines = ["| compared | dtype | largest relative difference | tolerance | |", "|---|---|---|---|---|"]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['what']} | {row['dtype']} | | | failed: {row['error'].splitlines()[0][:120]} |")
            continue
        told = f"{row['difference']:.1e}" if "difference" in row else ", ".join(row["sites"]) or "none"
        lines.append(
            f"| {row['what']} | {row['dtype']} | {told} | {row.get('tolerance', '')} | "
            f"{'passed' if row['passed'] else 'NOT passed'} |"
        )
    return lines


def markdown(folder: Path) -> str:
    """Return the document; a step without a file is named as not measured."""
    lines = ["# On a GPU", "", "Made by `python benchmarks/gpu/report.py` from docs/gpu; do not edit.", ""]
    for step in STEPS:
        lines += [f"## {step.capitalize()}", ""]
        path = folder / f"{step}.json"
        if not path.is_file():
            lines += [f"Not measured yet. The command: `{COMMAND}`.", ""]
            continue
        found = json.loads(path.read_text())
        versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
        lines += [
            f"{found['device']}, driver {found.get('driver', 'none')}, CUDA {found.get('cuda', 'none')}, "
            f"{found['cores']} cores; {found['date']}; commit {found['commit']}; {versions}.",
            "",
        ]
        if not found["complete"]:
            lines += ["The step was cut off by its time limit: what follows is what was done until then.", ""]
        if step == "correct":
            lines += correct_table(found["rows"])
        else:
            lines += [
                "Random weights in the shapes of published models, bf16, gradient checkpointing everywhere; rows of "
                "random text, half of a side the prompt. Medians of 3 steps of the first epoch and 7 later ones, one "
                "contender after the other; the first one again at the end. MFU: operations on unique tokens with "
                "logits of responses alone, of 989 TFLOP/s.",
                "",
                *speed_table(found["rows"]),
                "",
                *ratios(found["rows"]),
            ]
        lines.append("")
    lines += ["## Not measured yet", "", "Steps `study` and `rollouts` of the plan do not exist yet.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    source = Path(sys.argv[1]) if sys.argv[1:] else ROOT / "docs" / "gpu"
    (ROOT / "docs" / "gpu.md").write_text(markdown(source))
