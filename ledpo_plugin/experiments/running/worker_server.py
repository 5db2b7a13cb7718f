"""A process that has imported the large libraries, and forks workers from itself: no run waits for imports.

    python -m ledpo_plugin.experiments.running.worker_server FOLDER

Started by the local launcher, which writes a line of JSON for every worker to its standard input and reads lines of
JSON about them; FOLDER only tells, in lists of processes, whose it is. A worker forks its training from itself, too.

Only third-party libraries are imported here: the host asks for the GPU as it is imported, and a process that has asked
cannot fork others that use it.
"""

import json
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ledpo_plugin.experiments.processes import die_with_parent, forked

WORKER_SERVER = "ledpo_plugin.experiments.running.worker_server"
POLL = 0.1  # seconds
# What every run imports, sooner or later. None of it looks at the GPU.
LIBRARIES = (
    "torch",
    "transformers",
    "transformers.trainer",
    "transformers.models.auto.modeling_auto",
    "peft",
    "accelerate",
    "datasets",
    "omegaconf",
    "scipy.stats",
)


# ---- the launcher's side


class WorkerServer:
    """The server as its launcher sees it; it dies with the launcher, and its workers with it."""

    def __init__(self, log: Path, environ: Mapping[str, str]):
        """Start it; it is ready when its libraries are imported, and workers asked for before that wait.

        Args:
            log: where it says what is wrong with itself: the log of the first run.
            environ: what libraries read as they are imported, above all the number of threads.
        """
        # Whether there is a GPU must be found out without touching it.
        environ = os.environ | environ | {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", WORKER_SERVER, str(log.parent.absolute())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=environ,
                preexec_fn=die_with_parent,
            )
        self._rest = b""
        self._workers: dict[str, ForkedWorker] = {}

    def start(self, folder: Path, log: Path, environ: Mapping[str, str]) -> "ForkedWorker":
        """Have it fork a worker for a run."""
        worker = ForkedWorker(self, str(folder.absolute()))
        self._workers[worker.folder] = worker
        told = {"folder": worker.folder, "log": str(log.absolute()), "environ": dict(environ)}
        try:
            self.process.stdin.write((json.dumps(told) + "\n").encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            self.read()
        return worker

    def read(self) -> None:
        """Take in what it has said about its workers; if it is gone, so are they."""
        stream = self.process.stdout
        while select.select([stream], [], [], 0)[0]:
            part = os.read(stream.fileno(), 65536)
            if not part:
                self.process.wait()
                for worker in self._workers.values():
                    worker.returncode = -signal.SIGKILL if worker.returncode is None else worker.returncode
                self._workers.clear()
                return
            *lines, self._rest = (self._rest + part).split(b"\n")
            for line in lines:
                told = json.loads(line)
                worker = self._workers[told["folder"]]
                worker.pid = told["pid"]
                if told["status"] is not None:
                    worker.returncode = told["status"]
                    del self._workers[told["folder"]]

    @property
    def gone(self) -> bool:
        """Whether it has ended."""
        return self.process.poll() is not None

    def stop(self) -> None:
        """End it, and its workers."""
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class ForkedWorker:
    """A worker of a server, with as much of the ways of a `subprocess.Popen` as a launcher needs."""

    def __init__(self, server: WorkerServer, folder: str):
        self.server, self.folder = server, folder
        self.pid: int | None = None  # until it was forked
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return its exit status, or None while it runs."""
        if self.returncode is None:
            self.server.read()
        return self.returncode


# ---- the server's side


def main(work: Callable[[Path], int]) -> None:
    """Import the libraries, then fork a worker per line of standard input, until that is closed.

    Args:
        work: what a worker does with its folder; returns its exit status.
    """
    channel = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever libraries print is no message
    for name in LIBRARIES:
        __import__(name)
    require_untouched_gpu()
    children: dict[int, str] = {}
    rest = b""
    while True:
        if select.select([0], [], [], POLL)[0]:
            part = os.read(0, 65536)
            if not part:
                return
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                told = json.loads(line)
                children[_fork(told, work, channel)] = told["folder"]
        for pid in list(children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                _say(channel, children.pop(pid), pid, os.waitstatus_to_exitcode(status))


def require_untouched_gpu() -> None:
    """Refuse to go on where a library has taken hold of the GPU: processes forked from here could not use it.

    Raises:
        RuntimeError: one has.
    """
    import torch

    if torch.cuda.is_initialized():
        raise RuntimeError(
            "A library took hold of the GPU while it was imported, so that no run can be forked. Set "
            "LEDPO_FORK_RUNS=0: then every run is a process that imports its libraries itself."
        )


def _fork(told: Mapping[str, Any], work: Callable[[Path], int], channel: BinaryIO) -> int:
    def be_worker() -> int:
        channel.close()
        os.setsid()
        os.environ.update(told["environ"])
        return work(Path(told["folder"]))

    with open(told["log"], "ab") as log:
        pid = forked(be_worker, log)
    _say(channel, told["folder"], pid, None)
    return pid


def _say(channel: BinaryIO, folder: str, pid: int, status: int | None) -> None:
    channel.write((json.dumps({"folder": folder, "pid": pid, "status": status}) + "\n").encode())


if __name__ == "__main__":
    from .worker import main as work

    try:
        main(work)
    except RuntimeError:
        traceback.print_exc()
        sys.exit(1)
