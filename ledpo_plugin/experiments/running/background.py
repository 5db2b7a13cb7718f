"""`ledpo run` in the background: started so that it outlives its starter, found again by anyone, and stopped whole."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from ledpo_plugin.common.files import read_json, write_json
from ledpo_plugin.common.lock import LOCK, is_locked
from ledpo_plugin.experiments.definition.experiment import Experiment
from ledpo_plugin.experiments.definition.plan import results_folder
from ledpo_plugin.experiments.reading import read_experiment
from ledpo_plugin.experiments.results.store import BACKGROUND, BACKGROUND_LOG, ResultsError, now
from ledpo_plugin.readiness import host_keys

from .launchers import LAUNCHERS

PATIENCE = 20.0  # seconds between asking `ledpo run` to stop and killing it
_HOLDER = re.compile(r"process (\d+) on (\S+)")
_started: list[subprocess.Popen] = []  # children of this process, to be waited for when they have ended
_starting = threading.Lock()


@dataclass(frozen=True)
class AtWork:
    """The process that is at work on an experiment. `started` is None where it was started from a terminal."""

    pid: int | None  # None: the lock does not say
    host: str
    started: str | None

    @property
    def here(self) -> bool:
        """Whether it is a process of this machine, which can be stopped from here."""
        return self.pid is not None and self.host == os.uname().nodename


def command_of(folder: Path, profile: str) -> list[str]:
    """Return the command of a run. No folder or profile is taken for an option, and no module of the working folder
    for one of the package.
    """
    return [sys.executable, "-P", "-m", "ledpo_plugin.cli", "run", f"--profile={profile}", "--", str(folder)]


def checked(folder: Path, profile: str) -> Experiment:
    """Return an experiment that could be started here now.

    Raises:
        ExperimentError: it cannot run as it is; every problem is listed.
        HostMismatch, NotEnough: this installation, or this machine, cannot run it.
    """
    experiment = read_experiment(folder, profile, host_keys=host_keys())
    LAUNCHERS["local"](experiment.resources)
    return experiment


def start(folder: Path, profile: str) -> AtWork:
    """Start `ledpo run` on what is open of an experiment, in a session of its own; what it says goes to a log.

    Raises:
        ExperimentError, HostMismatch, NotEnough: as of `checked`; nothing was started.
        ResultsError: it is at work already.
    """
    experiment = checked(folder, profile)
    results = results_folder(experiment.name, profile)
    with _starting:
        present = at_work(results)
        if present:
            raise ResultsError(
                f"Process {present.pid} on {present.host} is at work in {results}. Wait for it, or stop it first."
            )
        results.mkdir(parents=True, exist_ok=True)
        command = command_of(folder, profile)
        with (results / BACKGROUND_LOG).open("wb") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        _started.append(process)
        born = psutil.Process(process.pid).create_time()  # tells it from a later process with the same number
        facts = {"pid": process.pid, "born": born, "host": os.uname().nodename, "started": now(), "command": command}
        write_json(results / BACKGROUND, facts)
    return AtWork(process.pid, facts["host"], facts["started"])


def at_work(results: Path) -> AtWork | None:
    """Return the process that is at work on an experiment, whoever started it; None where there is none."""
    _wait_for_ended()
    noted = read_json(results / BACKGROUND)
    if isinstance(noted, dict) and _lives(noted):
        return AtWork(noted["pid"], noted["host"], str(noted.get("started")))
    if not is_locked(results):
        return None
    return _holder_of(results / LOCK)


def _holder_of(lock: Path) -> AtWork:
    """Return the process that a held lock names; without a number where that may be an earlier holder's."""
    nobody = AtWork(None, "an unknown machine", None)
    try:
        holder = _HOLDER.search(lock.read_text(encoding="utf-8", errors="replace")[:200])
        written = lock.stat().st_mtime
    except OSError:
        return nobody
    if holder is None:
        return nobody
    found = AtWork(int(holder[1]), holder[2], None)
    if not found.here:
        return found
    try:
        return found if psutil.Process(found.pid).create_time() <= written + 1 else nobody
    except psutil.Error:
        return nobody


def stop(results: Path, patience: float = PATIENCE) -> bool:
    """Stop the process that is at work on an experiment, with everything that it started; return whether there was one.

    It is asked first, so that it can end its runs, and killed when it has not ended after `patience` seconds. Finished
    runs are kept, open ones go on from their checkpoints another time.

    Raises:
        ResultsError: it is not a process of this machine, or of this user.
    """
    present = at_work(results)
    if present is None:
        return False
    if not present.here:
        raise ResultsError(f"The process at work in {results} is one of {present.host}. Stop it there.")
    try:
        root = psutil.Process(present.pid)
        family = {root, *root.children(recursive=True)}
        root.terminate()
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        raise ResultsError(f"Process {present.pid} is at work in {results} and is another user's.") from None
    end = time.monotonic() + patience
    while _runs(root) and time.monotonic() < end:
        family |= _children(root)
        time.sleep(0.05)
    family |= _children(root)
    for process in family:
        _kill(process)
    psutil.wait_procs(family, timeout=5)
    _wait_for_ended()
    return True


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Have SIGTERM end the work in this block as Ctrl-C does, so that workers are stopped and the end is said."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before: Callable | int | None = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


def _wait_for_ended() -> None:
    _started[:] = [process for process in _started if process.poll() is None]


def _lives(noted: dict[str, Any]) -> bool:
    if noted.get("host") != os.uname().nodename:
        return False
    try:
        process = psutil.Process(noted["pid"])
        return process.create_time() == noted["born"] and _runs(process)
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _children(process: psutil.Process) -> set[psutil.Process]:
    try:
        return set(process.children(recursive=True))
    except psutil.Error:
        return set()


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()  # psutil sees to it that it is still the same process
    except psutil.Error:
        return
