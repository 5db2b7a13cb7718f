"""Verdicts as rows of CSV and JSON, in terms of generators 1 and 2."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

from ledpo_plugin.common.plain_text import visible

from .items import Item
from .tally import counted, gaps, tallies
from .verdicts import Judgement, Replay

COLUMNS = (
    "item_id",
    "prompt",
    "generator_1",
    "generator_2",
    "annotator",
    "verdict",
    "left",
    "seconds",
    "time",
)
FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")


def rating(item: Item, verdict: Judgement) -> dict[str, Any]:
    """Return a verdict as a row. `verdict` is "1", "2" or "tie"; `left`, "1" or "2", is who was shown on the left."""
    number = {name: str(place) for place, name in enumerate(item.generators, start=1)}
    return {
        "item_id": item.id,
        "prompt": item.prompt,
        "generator_1": item.generators[0],
        "generator_2": item.generators[1],
        "annotator": verdict.annotator,
        "verdict": "tie" if verdict.winner is None else number[verdict.winner],
        "left": verdict.left and number[verdict.left],
        "seconds": verdict.seconds,
        "time": verdict.time,
    }


def ratings(items: Sequence[Item], state: Replay) -> list[dict[str, Any]]:
    """Return all verdicts that count, as rows with the fields COLUMNS, by annotator and in the items' order."""
    return [rating(item, verdict) for item, verdict in counted(items, state)[0]]


def csv_text(rows: Iterable[dict[str, Any]]) -> str:
    """Return rows as CSV.

    A spreadsheet would run a cell that starts like a formula; such cells get an apostrophe, which the import takes off
    again. Hidden characters of a prompt are written as [U+202E]; the JSON export has it as it was.
    """
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow(["" if row[name] is None else _cell(row[name]) for name in COLUMNS])
    return file.getvalue()


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = visible(value)
    return "'" + text if text.startswith(FORMULA) else text


def json_text(items: Sequence[Item], state: Replay) -> str:
    """Return ratings, tallies and gaps as JSON, in ASCII so that no text of a model can break it."""
    known, unknown = counted(items, state)
    value = {
        "ratings": [rating(item, verdict) for item, verdict in known],
        "tallies": [row.row() for row in tallies(known)],
        "gaps": gaps(unknown, state),
        "items": len(items),
    }
    return json.dumps(value, indent=1, allow_nan=False) + "\n"
