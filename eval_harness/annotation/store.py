"""The log of verdicts on disk: appended to only, one JSON object a line, safe from kills and from other processes."""

import fcntl
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .verdicts import Replay

LOG = "verdicts.jsonl"


class Store:
    """Verdicts of all annotators in `folder`/verdicts.jsonl.

    Several threads and several processes may use the same folder: each operation holds the file's lock, which the
    system frees when a process dies, and first reads what others have appended.
    """

    def __init__(self, folder: Path) -> None:
        self.path = Path(folder) / LOG
        self._threads = threading.Lock()
        self._state, self._offset, self._file_id, self._line_is_open = Replay(), 0, None, False

    def read(self) -> Replay:
        """Return what holds now.

        Raises:
            OSError: the file is there and cannot be read.
        """
        if not self.path.exists():
            return Replay()
        with self._locked(os.O_RDONLY, fcntl.LOCK_SH):
            return self._state.copy()

    def update(self, decide: Callable[[Replay], Sequence[dict[str, Any]]]) -> Replay:
        """Append the events that `decide` returns for what holds now; return what holds then.

        Nobody else writes in between. When this returns, the events are on the disk.

        Raises:
            OSError: they could not be written; none of them counts.
            Exception: whatever `decide` raises; nothing is written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked(os.O_RDWR | os.O_CREAT | os.O_APPEND, fcntl.LOCK_EX) as descriptor:
            events = decide(self._state.copy())
            if events:
                self._append(descriptor, events)
            return self._state.copy()

    @contextmanager
    def _locked(self, flags: int, lock: int) -> Iterator[int]:
        with self._threads:
            is_new = not self.path.exists()
            descriptor = os.open(self.path, flags, 0o644)
            try:
                if is_new:
                    _sync_folder(self.path.parent)
                fcntl.flock(descriptor, lock)
                self._catch_up(descriptor)
                yield descriptor
            finally:
                os.close(descriptor)

    def _catch_up(self, descriptor: int) -> None:
        """Take in what was appended since; read everything again if the file is another one or was cut."""
        status = os.fstat(descriptor)
        file_id = (status.st_dev, status.st_ino)
        if file_id != self._file_id or status.st_size < self._offset:
            self._state, self._offset, self._file_id, self._line_is_open = Replay(), 0, file_id, False
        data = b""
        while part := os.pread(descriptor, max(1, status.st_size - self._offset - len(data)), self._offset + len(data)):
            data += part
        if not data:
            return
        # Whoever wrote the last line let go of the lock: where it has no end, its writer died, and nobody will end it.
        for line in data.split(b"\n"):
            if line.strip():
                self._state.apply(_parsed(line))
        self._offset += len(data)
        self._line_is_open = not data.endswith(b"\n")

    def _append(self, descriptor: int, events: Sequence[dict[str, Any]]) -> None:
        text = "".join(json.dumps(event, allow_nan=False) + "\n" for event in events)
        data = (b"\n" if self._line_is_open else b"") + text.encode()  # json.dumps leaves ASCII only
        try:
            written = 0
            while written < len(data):
                written += os.write(descriptor, data[written:])
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, self._offset)
            raise
        self._catch_up(descriptor)


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _sync_folder(folder: Path) -> None:
    """Make a new file's name last, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
