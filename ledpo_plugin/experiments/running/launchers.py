"""Where runs are started: on this machine, or (`launch_ray`) on a Ray cluster. Both start the same worker."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from ledpo_plugin.experiments.definition.experiment import Resources
from ledpo_plugin.experiments.processes import die_with_parent
from ledpo_plugin.experiments.results.store import WORKER_LOG

from .tasks import NotEnough, Task, worker_command, worker_environ
from .worker_server import ForkedWorker, WorkerServer

RESERVED_GB = 1.0  # memory left to everything else
# Runs are forked from a process that has imported the libraries, where that is safe: on Linux. 0: each imports them.
FORK = "LEDPO_FORK_RUNS"


class Launcher(Protocol):
    """Starts workers. A task that was started is running until `finished` names it."""

    slots: int  # how many tasks are started at once, at most

    def start(self, task: Task) -> None:
        """Start a worker."""

    def finished(self) -> dict[str, int]:
        """Return name -> exit status of the tasks that ended since the last call."""

    def stop(self) -> None:
        """Stop all workers that still run."""


class LocalLauncher:
    """Workers on this machine, as many as memory, cores and accelerators allow."""

    def __init__(self, resources: Resources, jobs: int | None = None):
        """Count the slots.

        Args:
            resources: what one run needs.
            jobs: runs side by side; left out: as many as there is room for.

        Raises:
            NotEnough: there is no room for one run.
            ValueError: `jobs` is not positive.
        """
        if jobs is not None and jobs < 1:
            raise ValueError(f"--jobs {jobs}: at least one run must be at work. Set it to 1 or more, or leave it out.")
        # A device stands there once for every run that may be on it; the first runs are on different ones.
        self.free = _devices() * resources.sharing if resources.gpus else []
        room = _room(resources, self.free)
        self.slots = min(room) if jobs is None else jobs
        self.running: dict[str, tuple[subprocess.Popen | ForkedWorker, Task, list[str]]] = {}
        self.server: WorkerServer | None = None
        if resources.gpus:
            self.slots = min(self.slots, len(self.free) // resources.devices)

    def start(self, task: Task) -> None:
        """Start a worker in a process group of its own; it dies with this process."""
        taken = [self.free.pop(0) for _ in range(task.resources.devices)]
        environ = worker_environ(task.resources)
        if taken:
            environ["CUDA_VISIBLE_DEVICES"] = ",".join(taken)
        task.folder.mkdir(parents=True, exist_ok=True)
        begin = self._fork if forks() else _spawn
        self.running[task.name] = begin(task.folder, environ), task, taken

    def _fork(self, folder: Path, environ: dict[str, str]) -> ForkedWorker:
        if self.server is None or self.server.gone:
            threads = {key: value for key, value in environ.items() if key != "CUDA_VISIBLE_DEVICES"}
            self.server = WorkerServer(folder / WORKER_LOG, threads)
        return self.server.start(folder, folder / WORKER_LOG, environ)

    def finished(self) -> dict[str, int]:
        """Return name -> exit status of the workers that ended since the last call."""
        ended = {}
        for name, (process, _, taken) in list(self.running.items()):
            status = process.poll()
            if status is not None:
                ended[name] = status
                self.free += taken
                del self.running[name]
        return ended

    def stop(self) -> None:
        """Kill all workers with everything they started; their runs go on from their checkpoints another time."""
        for process, _, _ in self.running.values():
            process.poll()
            if process.pid is None:  # not forked yet; it dies with the server
                continue
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            if isinstance(process, subprocess.Popen):
                process.wait()
        self.running.clear()
        if self.server is not None:
            self.server.stop()
            self.server = None


def forks() -> bool:
    """Whether runs are forked from a process that has their libraries."""
    return sys.platform == "linux" and os.environ.get(FORK, "1") != "0"


def _spawn(folder: Path, environ: dict[str, str]) -> subprocess.Popen:
    """Start a worker as a process that imports its libraries itself."""
    with (folder / WORKER_LOG).open("ab") as log:
        return subprocess.Popen(
            worker_command(folder),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | environ,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )


def _devices() -> list[str]:
    """Return the accelerators that may be used, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [device.strip() for device in named.split(",") if device.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def _room(resources: Resources, seats: list[str]) -> list[int]:
    """Return how many runs there is room for, by cores, memory and accelerators.

    Args:
        resources: what one run needs.
        seats: the accelerators, each as often as runs may be on it.

    Raises:
        NotEnough: one of them has room for none.
    """
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = psutil.virtual_memory().available / 1e9 - RESERVED_GB
    room = [max(1, cores // resources.cpus)]  # too few cores make a run slow, not impossible
    room.append(int(memory / resources.memory_gb) if resources.memory_gb else room[0])
    if room[-1] < 1:
        raise NotEnough(
            f"A run needs {resources.memory_gb:g} GB of memory and {memory:.1f} GB are free. Free some, or lower "
            f"resources.memory_gb in experiment.yaml if a run needs less."
        )
    if resources.gpus:
        room.append(len(seats) // resources.devices)
        if room[-1] < 1:
            raise NotEnough(
                f"A run needs {resources.gpus:g} GPU(s) and there are {len(set(seats))} here. Use --profile cpu, or "
                f"--launcher ray with a cluster that has them."
            )
    return room


def _ray(resources: Resources, **options: Any) -> Launcher:
    from .launch_ray import RayLauncher

    return RayLauncher(resources, **options)


def _local(resources: Resources, *, jobs: int | None = None, **_: Any) -> Launcher:
    return LocalLauncher(resources, jobs)


# Name on the command line (`--launcher`) -> what makes it of a run's resources and the options.
LAUNCHERS: Mapping[str, Any] = MappingProxyType({"local": _local, "ray": _ray})
