"""Answers of a judge on disk: one a line, kept as they come, so that nothing is asked, or paid for, twice."""

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ledpo_plugin.common.files import read_lines
from ledpo_plugin.common.lock import Locked, locked

from .judge import Judge

FILE = "answers.jsonl"


class Answers:
    """The answers of one judge: key -> the endpoint's choice and what it used."""

    def __init__(self, path: Path):
        """Read what is there; a line that a kill cut short does not count, and is ended before the next one."""
        self.path = path
        self.lock = threading.Lock()
        rows, self.unreadable = read_lines(path)
        self.known = {row["key"]: row for row in rows if isinstance(row.get("key"), str) and "choice" in row}
        self.file = path.open("ab")
        if self.file.tell() and not path.read_bytes().endswith(b"\n"):
            self.file.write(b"\n")

    def get(self, key: str) -> Mapping[str, Any] | None:
        """Return an answer, None where there is none yet."""
        return self.known.get(key)

    def add(self, key: str, choice: Mapping[str, Any], usage: Mapping[str, Any]) -> Mapping[str, Any]:
        """Keep an answer; it is on the disk when this returns."""
        when = datetime.now(UTC).isoformat(timespec="seconds")
        row = {"key": key, "choice": choice, "usage": usage, "time": when}
        line = json.dumps(row, ensure_ascii=True).encode() + b"\n"
        with self.lock:
            self.file.write(line)
            self.file.flush()
            os.fsync(self.file.fileno())
            self.known[key] = row
        return row

    def close(self) -> None:
        """Close the file."""
        self.file.close()


@contextmanager
def answers(folder: Path) -> Iterator[Answers]:
    """Open the answers in a folder for one process at a time.

    Raises:
        ValueError: another process is judging into the folder.
    """
    try:
        with locked(folder, "judging"):
            found = Answers(folder / FILE)
            try:
                yield found
            finally:
                found.close()
    except Locked as error:
        raise ValueError(f"{error} is judging into {folder}. Wait for it, or name another folder.") from None


def key_of(judge: Judge, question: str, repeat: int) -> str:
    """Return what an answer is kept under: a hash of the judge, the question as it is sent, and the repeat."""
    asked = [judge.identity(), question, 0 if judge.deterministic else repeat]
    text = json.dumps(asked, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
