"""What an experiment will cost, before it runs: from finished runs where there are any, else from recipes and files."""

import json
import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ledpo_plugin.common.files import read_json
from ledpo_plugin.experiments.definition.experiment import Experiment
from ledpo_plugin.experiments.definition.plan import Run
from ledpo_plugin.experiments.results.kept import kept_file
from ledpo_plugin.experiments.results.store import RESULT, state_of

from .progress import duration, seconds_of


def parameters(model: str) -> int | None:
    """Return the number of a local model's weights, from the headers of its safetensors files; None where unknown."""
    files = sorted(Path(model).glob("*.safetensors")) if Path(model).is_dir() else []
    try:
        return sum(_in_file(path) for path in files) or None
    except (OSError, ValueError, struct.error):
        return None


def _in_file(path: Path) -> int:
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        if size > 100_000_000:
            raise ValueError(f"{path} has no header of a safetensors file")
        header = json.loads(file.read(size))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def estimate(experiment: Experiment, run: Run) -> dict[str, Any]:
    """Return a run's expected use: `steps`, `examples`, `tokens`, `flops`, each an upper bound or None, and `seconds`.

    A finished run's figures are those it used, and `measured` is then True.
    """
    result = read_json(run.folder / RESULT)
    if isinstance(result, dict):
        usage = result["usage"]
        return {
            "steps": usage["steps"],
            "tokens": usage["policy_tokens"] + usage["reference_tokens"],
            "flops": usage["flops"],
            "seconds": seconds_of(state_of(run.folder)),
            "measured": True,
        }
    processes, budget = experiment.resources.processes, experiment.budget
    of_each = [training.steps for training in run.trainings]
    steps = None if None in of_each else sum(of_each)
    rows = run.recipe.get("per_device_train_batch_size", 8) * run.recipe.get("gradient_accumulation_steps", 1)
    tokens = budget.amount if budget.unit == "tokens" else None
    if steps is not None:
        # At most cutoff_len for each answer with its prompt, once through the policy and once through the reference.
        tokens = steps * rows * processes * 2 * 2 * run.recipe.get("cutoff_len", 2048)
    weights = parameters(str(run.recipe.get("model_name_or_path")))
    flops = budget.amount if budget.unit == "flops" else None
    if flops is None and tokens is not None and weights is not None:
        flops = 6 * weights * tokens  # forward and backward through all weights: more than an adapter needs
    return {"steps": steps, "tokens": tokens, "flops": flops, "seconds": experiment.seconds_per_run, "measured": False}


def dry_run(experiment: Experiment, results: Path, runs: Sequence[Run], slots: int, kept: Path | None = None) -> str:
    """Return a table of the runs and what they are expected to cost; `kept` is a folder of kept runs, if any."""
    lines = [
        f"{experiment.name} (profile {experiment.profile}): {len(runs)} runs, budget "
        f"{experiment.budget.amount:g} {experiment.budget.unit} each, results in {results}",
        f"{'run':<36} {'state':<12} {'steps':>8} {'tokens':>12} {'FLOPs':>10} {'time':>10}",
    ]
    open_seconds: list[float | None] = []
    for run in runs:
        row, phase = estimate(experiment, run), state_of(run.folder)["phase"]
        if phase != "finished" and kept is not None and kept_file(kept, results, run).is_file():
            phase = "kept"
        sign = "" if row["measured"] else "<="
        if phase not in ("finished", "kept"):
            open_seconds.append(row["seconds"])
        steps, tokens = _shown(row["steps"], "", ",.0f"), _shown(row["tokens"], sign, ",.0f")
        flops, took = _shown(row["flops"], sign, ".1e"), duration(row["seconds"])
        lines.append(f"{run.name:<36} {phase:<12} {steps:>8} {tokens:>12} {flops:>10} {took:>10}")
    total = None if None in open_seconds else sum(open_seconds) / max(1, min(slots, len(open_seconds)))
    lines.append(f"Time for what is open, {slots} side by side: about {duration(total)}. Nothing was run.")
    if experiment.prerequisites:
        names = ", ".join(one.name for one in experiment.prerequisites)
        lines.append(f"Before the runs are trained, once: {names}, whose time is not in this.")
    if experiment.study is not None:
        lines.append(f"Then a study of the trained models ({experiment.study['kind']}), whose time is not in this.")
    if any(row is not None for row in open_seconds):
        lines.append(
            "Tokens and FLOPs with <= are bounds from cutoff_len; times are of the machine named in the recipe."
        )
    return "\n".join(lines)


def _shown(value: float | None, sign: str, style: str) -> str:
    return "unknown" if value is None else f"{sign}{value:{style}}"
