"""What a result rests on: versions, the state of the checkout, hashes of model and data, the machine."""

import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ledpo_plugin.common.run_record import package_versions
from ledpo_plugin.experiments.definition.checks import read_registry
from ledpo_plugin.quickstart.downloads import sha256_of
from ledpo_plugin.recipes.files import DATA_CONFIG, DATA_KEYS
from ledpo_plugin.recipes.reading import split_names
from ledpo_plugin.reference.cache import default_folder, files_hash


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return the commit of the checkout a folder is in and whether anything differs from it; None outside of one."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()


def hardware() -> dict[str, Any]:
    """Return what machine this is."""
    import psutil
    import torch

    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "threads": torch.get_num_threads(),
        "host": platform.node(),
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def data_hashes(recipes: Iterable[Mapping[str, Any]], names: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 of each data set's file, or the name of the hub it is on.

    Args:
        recipes: whose data sets are meant, and in whose `dataset_dir` they are.
        names: further data sets than the recipes' own.
    """
    places: dict[str, Path | str] = {}
    for recipe in recipes:
        folder = Path(recipe.get("dataset_dir") or "data")
        own = [name for key in DATA_KEYS for name in split_names(recipe.get(key))]
        try:
            known = read_registry(folder / DATA_CONFIG)
        except (OSError, ValueError):
            known = {}
        for name in [*own, *names]:
            entry = known.get(name) or {}
            path = folder / str(entry.get("file_name", name))
            hub = entry.get("hf_hub_url") or entry.get("ms_hub_url") or path
            places[name] = path if path.is_file() else str(hub)
    return {name: sha256_of(place) if isinstance(place, Path) else place for name, place in places.items()}


def provenance(recipe: Mapping[str, Any], held_out: Sequence[str]) -> dict[str, Any]:
    """Return everything that a run's numbers depend on beside its recipe."""
    return {
        "versions": package_versions(),
        "model_sha256": files_hash(recipe.get("model_name_or_path"), default_folder()),
        "data_sha256": data_hashes([recipe], held_out),
        "hardware": hardware(),
        "git": git_state(Path.cwd()),
    }
