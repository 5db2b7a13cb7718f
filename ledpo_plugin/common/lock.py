"""A folder's lock: one process at a time is at work in it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = "lock"


class Locked(ValueError):
    """Another process is at work in the folder."""


@contextmanager
def locked(folder: Path, note: str = "") -> Iterator[int]:
    """Hold a folder's lock; yield its file descriptor. Processes that inherit it hold the lock, too.

    The system frees the lock of a killed process, so that none is left behind.

    Raises:
        Locked: another process holds it; the message holds what that process wrote.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Locked(os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process") from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename} {note}\n".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def is_locked(folder: Path) -> bool:
    """Return whether a process is at work in the folder."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
