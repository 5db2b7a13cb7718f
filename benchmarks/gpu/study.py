"""Step `study`: an experiment at its profile `study`, many runs side by side on one GPU, by `ledpo run`.

What of each finished run is needed to go on elsewhere, and to report, is copied at once: a cut loses the runs that were
at work, no others.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from common import Results
from prepare import TEMPLATE, prepared

ROOT = Path(__file__).parents[2]
EXPERIMENT, PROFILE = "fixed_beta_impact", "study"
GB_OF_A_RUN = 13  # of the GPU's memory, as measured: 8 pairs of up to 400 tokens in fp32, without checkpointing
LARGEST = 2 * 1024**2  # bytes of a file that is copied: results and measurements, no weights
POLL = 0.5  # seconds
# What fp32 products are computed with on the device, for all processes: the study's recipes say fp32, as on a CPU.
TF32 = {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}


def run(results: Results, work: Path, dry: bool) -> None:
    """Run the experiment until it is finished or the step's time is over; a row per finished run."""
    import torch

    root = prepared(work, dry)
    cuda = torch.cuda.is_available()
    side_by_side = seats(torch.cuda.get_device_properties(0).total_memory / 1024**3) if cuda else 0
    folder = adapted(root, dry, side_by_side)
    found, kept = root / "results", results.path.with_suffix("")
    environ = os.environ | TF32
    results.facts |= {"experiment": EXPERIMENT, "profile": PROFILE, "environment": TF32, "side_by_side": side_by_side}
    ledpo = str(Path(sys.executable).parent / "ledpo")
    command = [ledpo, "run", str(folder), "--profile", PROFILE, "--results", str(found)]
    with open(results.path.with_name("study_run.log"), "w", encoding="utf-8") as log:
        process = subprocess.Popen(command, cwd=root, env=environ, stdout=log, stderr=log, start_new_session=True)
        watch = Watch(results, found, kept)
        try:
            while process.poll() is None:
                time.sleep(POLL)
                watch.look()
            watch.look()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
    if process.returncode:
        raise RuntimeError(f"ledpo run ended with status {process.returncode}; see study_run.log")


def seats(gigabytes: float) -> int:
    """Return how many runs the GPU takes at once: by its memory, and a core for each, which launches its kernels."""
    return max(1, min(int(gigabytes / GB_OF_A_RUN), (os.cpu_count() or 1) - 2))


def adapted(root: Path, dry: bool, side_by_side: int) -> Path:
    """Return a copy of the experiment that shares the GPU and makes nothing first; in a dry run a tiny one.

    Args:
        root: the folder that holds `.ledpo`.
        dry: two variants, a step each.
        side_by_side: runs on the GPU at once; 0 where there is none.
    """
    folder = root / EXPERIMENT
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "yaml_recipes" / EXPERIMENT, folder)
    path = folder / "experiment.yaml"
    definition = yaml.safe_load(path.read_text(encoding="utf-8"))
    own = definition["profiles"][PROFILE]
    own.pop("prepare", None)  # it was made by the step `prepare`
    own["resources"] = {"cpus": 1, "memory_gb": 5, "gpus": 1 / side_by_side if side_by_side else 0, "disk_gb": 1}
    if dry:
        others = [name for name in own.get("variants") or definition["variants"] if name != definition["baseline"]]
        own |= {"variants": [definition["baseline"], others[0]], "seeds": [1], "budget": {"examples": 8}}
        own["resources"]["memory_gb"] = 1
        for file in (folder / PROFILE).glob("*.yaml"):
            told = yaml.safe_load(file.read_text(encoding="utf-8"))
            told.pop("default_system", None)
            told |= {**TEMPLATE, "max_steps": 2, "warmup_steps": 0, "per_device_train_batch_size": 4}
            file.write_text(yaml.safe_dump(told), encoding="utf-8")
    path.write_text(yaml.safe_dump(definition, sort_keys=False), encoding="utf-8")
    return folder


class Watch:
    """Sees runs begin, start training and finish; writes a row and keeps the files of each that finished."""

    def __init__(self, results: Results, folder: Path, kept: Path):
        self.results, self.folder, self.kept = results, folder, kept
        self.begun: dict[Path, float] = {}
        self.trained: dict[Path, float] = {}
        self.done: set[Path] = set()

    def look(self) -> None:
        """Note what is new."""
        now = time.time()
        for log in self.folder.glob("runs/*/*/worker.log"):
            run_ = log.parent
            self.begun.setdefault(run_, now)
            record = next(iter(run_.glob("**/ledpo_run.json")), None)  # written when training starts
            if record is not None:
                self.trained.setdefault(run_, record.stat().st_mtime)
            if run_ not in self.done and (run_ / "result.json").is_file():
                self.done.add(run_)
                self._keep(run_)
                self.results.measure({"variant": run_.parent.name, "run": run_.name}, lambda r=run_: self._row(r, now))
        for path in self.folder.glob("*.json"):
            self._copy(path)
        for path in self.folder.glob("base/*/**/*"):
            self._copy(path)

    def _row(self, run_: Path, now: float) -> dict[str, Any]:
        result = json.loads((run_ / "result.json").read_text())
        started = self.trained.get(run_)
        return {
            "seconds": now - self.begun[run_],
            "start_up": None if started is None else started - self.begun[run_],
            "training": result["usage"].get("seconds"),
            "measuring": result["usage"].get("measure_seconds"),
            "final": {name: value for name, value in result["final"].items() if isinstance(value, float)},
        }

    def _keep(self, run_: Path) -> None:
        for path in run_.rglob("*"):
            self._copy(path)

    def _copy(self, path: Path) -> None:
        if not path.is_file() or path.stat().st_size > LARGEST or path.suffix in (".safetensors", ".pt", ".bin"):
            return
        if path.name.startswith("tokenizer"):
            return
        target = self.kept / path.relative_to(self.folder)
        if target.is_file() and target.stat().st_mtime >= path.stat().st_mtime:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
