"""Files of rows, read without trusting them: JSON lists and JSONL."""

import json
from pathlib import Path
from typing import Any

from .problems import some

Row = dict[str, Any]


def read_text(path: Path) -> tuple[str, list[str]]:
    """Return a file's text without its byte order mark, and what is wrong with the file."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        return "", [f"{path} cannot be read ({reason}). Give the path of a file that can."]
    except UnicodeDecodeError as error:
        return "", [f"{path} is not UTF-8 text: byte {error.start + 1} is wrong. Save it as UTF-8."]
    if not text.strip():
        return "", [f"{path} is empty. Give a file with rows in it."]
    return text, []


def read_rows(path: Path) -> tuple[list[Row], list[str]]:
    """Return the rows of a JSON list of objects or of a JSONL file, and what is wrong with the file.

    A file with a problem has no rows.
    """
    text, problems = read_text(path)
    if problems:
        return [], problems
    return parse_rows(text, str(path))


def parse_rows(text: str, name: str) -> tuple[list[Row], list[str]]:
    """Return the rows of a text, JSON list or JSONL, and what is wrong with it; `name` is what to call it."""
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except (ValueError, RecursionError) as error:
            return [], [f"{name} is not valid JSON ({_reason(error)}). Mend it, or write it again."]
        wrong = [number for number, row in enumerate(rows, start=1) if not isinstance(row, dict)]
        what = "entry"
    else:
        rows, wrong = [], []
        # Only a newline ends a line of JSONL: str.splitlines would also break at U+2028 within a text.
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, dict):
                rows.append(row)
            else:
                wrong.append(number)
        what = "line"
    if wrong:
        plural = {"entry": "entries", "line": "lines"}[what] if len(wrong) > 1 else what
        return [], [
            f"{name}: {plural} {some(wrong)} {'is' if len(wrong) == 1 else 'are'} not a JSON object. "
            "Give a JSON list of objects, or one object a line."
        ]
    if not rows:
        return [], [f"{name} has no rows. Give a file with rows in it."]
    return rows, []


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)
