"""What launchers start: a worker's task, its command and its environment."""

import sys
from dataclasses import dataclass
from pathlib import Path

from ledpo_plugin.experiments.definition.experiment import Resources

WORKER = "ledpo_plugin.experiments.running.worker"


class NotEnough(RuntimeError):
    """There is no room for even one run; the message says what is missing and what to do."""


@dataclass(frozen=True)
class Task:
    """A folder that a worker shall finish."""

    name: str
    folder: Path
    resources: Resources


def worker_environ(resources: Resources) -> dict[str, str]:
    """Return what a worker's environment must say: bits depend on the number of threads."""
    return {"OMP_NUM_THREADS": str(resources.cpus), "TOKENIZERS_PARALLELISM": "false"}


def worker_command(folder: Path) -> list[str]:
    """Return the command of a worker."""
    return [sys.executable, "-m", WORKER, str(folder.absolute())]
