"""docs/gpu.md from the JSON that the GPU run left: tables, ratios against the targets, and what is missing.

python benchmarks/gpu/report.py [FOLDER]       FOLDER: docs/gpu unless given; docs/gpu.md is written beside it
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from common import STEPS

ROOT = Path(__file__).parents[2]
PLOT = "gpu.png"
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
            memory = f"{row['above_gb']:.2f}" if "above_gb" in row else "–"  # a CPU's is not measured
            lines.append(f"{case} | {row['first_epoch']:.3f} | {row['later_epochs']:.3f} | {rate:.1%} | {memory} |")
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
        measured = "lf" in found and "above_gb" in ours
        share = ours["above_gb"] / found["lf"]["above_gb"] if measured else None
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


def kernel_tables(rows: list[dict[str, Any]]) -> list[str]:
    """Return, per profiled step, how busy the device was and the tables of what took its time and the CPU's."""
    lines = []
    for row in rows:
        lines += [f"### {row['shape']}, {row['tokens']} tokens a side, {row['pairs']} pairs a step: {row['label']}", ""]
        if "error" in row:
            lines += [f"Failed: {row['error'].splitlines()[0][:200]}", ""]
            continue
        busy = row["device_seconds"] / row["seconds"]
        lines += [
            f"A step took {row['seconds']:.3f} s, of which kernels ran {row['device_seconds']:.3f} s ({busy:.0%}); "
            f"{row['launches']:,} launches.",
            "",
        ]
        for title, key in (("kernel", "kernels"), ("operator, by the CPU's time in itself", "operators")):
            lines += [f"| {title} | calls | share |", "|---|---|---|"]
            lines += [f"| `{name.replace('|', '/')}` | {count:,} | {share:.1%} |" for name, count, share in row[key]]
            lines.append("")
    return lines


def study_table(rows: list[dict[str, Any]]) -> list[str]:
    """Return how long the runs of the study took; what they found is in the experiment's own report."""
    done = [row for row in rows if "error" not in row and "variant" in row]
    lines = [f"{len(done)} runs were finished; what they found is in the experiment's report (docs/results)."]
    failed = [row for row in rows if "error" in row]
    lines += [f"Failed: {row['error'].splitlines()[0][:200]}" for row in failed]
    lines.append("")
    if done:
        lines += ["| | median | lowest | highest |", "|---|---|---|---|"]
        for key, label in (
            ("seconds", "a run, whole"),
            ("start_up", "from its start to the start of training (wanted: under 15)"),
            ("training", "training"),
            ("measuring", "measuring"),
        ):
            values = sorted(row[key] for row in done if row.get(key) is not None)
            if values:
                middle = statistics.median(values)
                lines.append(f"| {label}, seconds | {middle:.1f} | {values[0]:.1f} | {values[-1]:.1f} |")
    return lines


def rollout_table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the table of PPO iterations, and the ratio of the two."""
    lines = ["| contender | s an iteration | generation's share | tokens an answer | peak memory, GB |"]
    lines.append("|---|---|---|---|---|")
    found = {}
    for row in rows:
        if "error" in row:
            lines.append(f"| {row.get('label', '')} | failed: {row['error'].splitlines()[0][:120]} | | | |")
            continue
        found[row["contender"]] = row["median"]
        memory = "" if row["device_memory_gb"] is None else f"{row['device_memory_gb']:.2f}"
        lines.append(
            f"| {row['label']} | {row['median']:.3f} | {row['generation_share']:.0%} | {row['tokens_an_answer']} | "
            f"{memory} |"
        )
    if "ledpo" in found and "trl_head" in found:
        lines += ["", f"LEDPO makes {found['trl_head'] / found['ledpo']:.2f} x as many iterations a second as TRL."]
    return lines


NOTES = {
    "correct": "Losses of runs with every fast path on, against the same runs in the ordinary layout.",
    "speed": (
        "Random weights in the shapes of published models, bf16, gradient checkpointing everywhere; rows of random "
        "text, half of a side the prompt. Medians of 3 steps of the first epoch and 7 later ones, one contender after "
        "the other; the first one again at the end. MFU: operations on unique tokens with logits of responses alone, "
        "of 989 TFLOP/s."
    ),
    "kernels": "One step of a later epoch under torch's profiler: the 15 kernels and the 15 operators that took most.",
    "study": "An experiment at its profile `study`, many runs side by side on one GPU; fp32 with TF32 products.",
    "rollouts": "Iterations of PPO in turn, as in docs/ppo_performance.md; fp32 with TF32 products.",
}


def tables_of(step: str, rows: list[dict[str, Any]]) -> list[str]:
    """Return what is shown of a step's rows."""
    if step == "speed":
        return [*speed_table(rows), "", *ratios(rows)]
    return {"correct": correct_table, "kernels": kernel_tables, "study": study_table, "rollouts": rollout_table}[step](
        rows
    )


def markdown(folder: Path) -> str:
    """Return the document; a step without a file, or that was cut off, is named."""
    lines = ["# On a GPU", "", "Made by `python benchmarks/gpu/report.py` from docs/gpu; do not edit.", ""]
    files = {step: folder / f"{step}.json" for step in STEPS}
    missing = [step for step, path in files.items() if not path.is_file()]
    if missing:
        lines += [f"Not measured yet: {', '.join(missing)}. The command: `{COMMAND}`.", ""]
    for step, path in files.items():
        lines += [f"## {step.capitalize()}", ""]
        if step in missing:
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
            then = "what follows is what was done until then" if found["rows"] else "nothing was finished before"
            lines += [f"The step was cut off by its time limit: {then}.", ""]
            if not found["rows"]:
                continue
        lines += [NOTES[step], "", *tables_of(step, found["rows"]), ""]
    return "\n".join(lines)


def plot(folder: Path, target: Path) -> None:
    """Draw the seconds of a step of every contender of each case, if the step `speed` was run."""
    path = folder / "speed.json"
    if not path.is_file():
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases: dict[str, list[tuple[str, float]]] = {}
    for row in json.loads(path.read_text())["rows"]:
        if "later_epochs" in row and not row.get("again"):
            name = f"{row['shape']}, {row['tuning']}, {row['pairs']} pairs of {row['tokens']} tokens a side"
            cases.setdefault(name, []).append((row["label"], row["later_epochs"]))
    if not cases:
        return
    figure, axes = pyplot.subplots(len(cases), 1, figsize=(9, 0.6 + sum(0.4 * len(c) + 0.9 for c in cases.values())),
                                   squeeze=False, height_ratios=[len(case) + 2 for case in cases.values()])  # fmt: skip
    for axis, (name, bars) in zip(axes[:, 0], cases.items(), strict=True):
        labels, values = zip(*reversed(bars), strict=True)
        colours = ["tab:orange" if label.startswith("LEDPO") else "tab:grey" for label in labels]
        drawn = axis.barh(labels, values, color=colours)
        axis.bar_label(drawn, fmt="%.2f", padding=3)
        axis.set_title(name, loc="left", fontsize=10)
        axis.set_xlim(0, max(values) * 1.12)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel("seconds a step, later epochs")
    figure.tight_layout()
    figure.savefig(target, dpi=110, metadata={"Software": None})


def document(folder: Path) -> str:
    """Return the document with the plot in it, where there is one beside the folder."""
    text = markdown(folder)
    if (folder.parent / PLOT).is_file():
        text = text.replace("## Speed\n", f"## Speed\n\n![Seconds a step]({PLOT})\n", 1)
    return text


if __name__ == "__main__":
    source = Path(sys.argv[1]) if sys.argv[1:] else ROOT / "docs" / "gpu"
    plot(source, source.parent / PLOT)
    (source.parent / "gpu.md").write_text(document(source))
