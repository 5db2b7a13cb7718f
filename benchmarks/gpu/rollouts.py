"""Step `rollouts`: an iteration of stage ledpo_ppo against one of TRL's PPOTrainer, and generation's share of each."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import Results
from prepare import prepared
from study import TF32

SCRIPT = Path(__file__).parents[1] / "ppo_speed.py"
ITERATIONS = 4  # the first one warms up and is left out
TRL = "trl_head"  # its value model's trunk frozen: what comes nearest to ours


def run(results: Results, work: Path, dry: bool) -> None:
    """Run both in turn, each a process of its own that holds its model; a row each."""
    root, folder = prepared(work, dry), work / "ppo"
    folder.mkdir(exist_ok=True)
    figures = folder / "figures.json"
    command = [sys.executable, str(SCRIPT), "--iterations", str(1 if dry else ITERATIONS), "--only", TRL, "ledpo"]
    command += ["--work", str(folder), "--json", str(figures)]
    environ = os.environ | TF32 | {"LEDPO_BENCHMARK_WORK": str(root / ".ledpo")}
    results.facts |= {"environment": TF32, "iterations": ITERATIONS}
    with open(results.path.with_name("rollouts_run.log"), "w", encoding="utf-8") as log:
        try:
            done = subprocess.run(command, env=environ, stdout=log, stderr=log, check=False)
        finally:
            for path in folder.glob("*.log"):
                log.write(f"== {path.name}\n{path.read_text(encoding='utf-8')[-20_000:]}\n")
    if done.returncode:
        raise RuntimeError(f"ppo_speed.py ended with status {done.returncode}; see rollouts_run.log")
    for row in json.loads(figures.read_text())["contenders"]:
        results.measure({"contender": row["name"], "label": row["label"]}, lambda r=row: of_contender(r))


def of_contender(row: dict[str, Any]) -> dict[str, Any]:
    """Return the seconds of an iteration, generation's share of them and the peak of memory of one contender."""
    warm = 1 if len(row["seconds"]) > 1 else 0
    seconds = row["seconds"][warm:]
    per_iteration = len(row["generation"]) // len(row["seconds"])  # one in generating stands behind the last iteration
    generation = row["generation"][warm * per_iteration : len(row["seconds"]) * per_iteration]
    return {
        "seconds": seconds,
        "median": statistics.median(seconds),
        "generation_share": sum(generation) / sum(seconds),
        "device_memory_gb": row["device_memory"],
        "tokens_an_answer": row["length"],
    }
