"""The process of a training: the stock command anew, or, in a worker that was forked, a fork that has its libraries."""

import atexit
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from ledpo_plugin.host.contract import stock_main
from ledpo_plugin.host.supported import INSTALL_HOST

_was_forked = False


def die_with_parent() -> None:
    """Have the system kill this process when the one that started it is killed (Linux; elsewhere nothing is done)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG


def forked(work: Callable[[], int], log: BinaryIO) -> int:
    """Fork a process that does some work, with its output in a log, and ends with the status that the work returns.

    It dies with its parent, and keeps the file descriptors that are open.

    Returns:
        Its number; the caller waits for it.
    """
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    global _was_forked
    status = 1
    try:
        _was_forked = True
        die_with_parent()
        if os.getppid() != parent:  # it was killed before it could be said
            os._exit(1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        status = work()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)  # nothing of the parent's is ended twice


def stock_command() -> str:
    """Return the stock command of this environment.

    Raises:
        FileNotFoundError: it is not installed.
    """
    beside = Path(sys.executable).parent / "llamafactory-cli"
    found = str(beside) if beside.is_file() else shutil.which("llamafactory-cli")
    if not found:
        raise FileNotFoundError(f"llamafactory-cli is not installed here: {INSTALL_HOST}.")
    return found


def run_stock(arguments: Sequence[str], log: BinaryIO, processes: int, lock: int) -> int:
    """Run `llamafactory-cli` with some arguments to its end; return its exit status, negative where a signal ended it.

    Args:
        arguments: such as train and the recipe.
        log: where its output goes.
        processes: how many train together; several are started by the host itself, so that the command runs anew.
        lock: file descriptor of the run's lock, which it inherits.

    Raises:
        FileNotFoundError: it is not installed.
    """
    if _was_forked and processes == 1:
        _, status = os.waitpid(forked(lambda: _be_stock(arguments), log), 0)
        return os.waitstatus_to_exitcode(status)
    environ = dict(os.environ)
    if processes > 1:
        environ |= {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": str(processes)}
    process = subprocess.Popen(
        [stock_command(), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environ,
        pass_fds=(lock,),
        preexec_fn=die_with_parent,
    )
    return process.wait()


def _be_stock(arguments: Sequence[str]) -> int:
    """Do what the script `llamafactory-cli` does."""
    main = stock_main()
    sys.argv = [stock_command(), *arguments]
    try:
        main()
    finally:  # what a Python process does at its end, and `os._exit` does not: trackers of runs are closed then
        threading._shutdown()
        atexit._run_exitfuncs()
    return 0


class RunFailed(RuntimeError):
    """A run that could not be finished; `log_tail` holds the last lines of its log."""

    def __init__(self, message: str, log_tail: list[str] | None = None):
        super().__init__(message)
        self.log_tail = log_tail or []
