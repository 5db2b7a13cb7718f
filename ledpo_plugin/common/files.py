"""Files of a results folder: written whole or not at all, read without trusting that they are whole."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .atomic import replace_file


def write_text(path: Path, text: str) -> None:
    """Write a text so that whoever reads the file, also after a kill, sees the old one or the new one.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(part: Path) -> None:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o644)

    replace_file(path, write)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, whole or not at all; a NaN is refused, as JSON has none."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def packed_json(value: Any, depth: int = 2) -> str:
    """Return a value as JSON, a line for each entry of the upper levels."""
    if depth and isinstance(value, Mapping) and value:
        inside = (f"{json.dumps(key, ensure_ascii=False)}: {packed_json(own, depth - 1)}" for key, own in value.items())
        return "{\n" + ",\n".join(inside) + "\n}"
    if depth and isinstance(value, list) and value and isinstance(value[0], Mapping):
        return "[\n" + ",\n".join(packed_json(own, 0) for own in value) + "\n]"
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def read_json(path: Path) -> Any | None:
    """Return what a JSON file holds, or None where there is none or it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def tail(path: Path, lines: int = 20, at_most: int = 64_000) -> list[str]:
    """Return the last lines of a log, whatever bytes are in it; nothing where it cannot be read."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - at_most))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    # A progress bar rewrites its line: what was last on the line is what was seen.
    return [line.rsplit("\r", 1)[-1] for line in text.splitlines() if line.strip()][-lines:]


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the JSON objects of a log of one a line, and how many lines could not be read."""
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except OSError:
        return [], 0
    rows, unreadable = [], 0
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif line.strip():
            unreadable += 1
    return rows, unreadable


def read_yaml(path: Path) -> Any:
    """Return what a YAML file holds, read as LLaMA-Factory reads recipes (1e-3 is a number).

    Raises:
        ValueError: it is no YAML; the message says where.
        OSError: it cannot be read.
    """
    from omegaconf import OmegaConf

    try:
        return OmegaConf.to_container(OmegaConf.load(path))
    except OSError:
        raise
    except Exception as error:  # what the YAML and OmegaConf parsers raise has no common class
        raise ValueError(f"{path} is not valid YAML: {error}") from None
