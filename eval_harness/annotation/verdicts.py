"""Verdicts as events of a log, and what holds after all of them."""

import math
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

PAGE, IMPORT = "page", "import"
LONGEST_SECONDS = 7 * 86400.0


@dataclass(frozen=True)
class Judgement:
    """What an annotator said of an item.

    `winner` and `left` are names of generators; `winner` is None for a tie. `left` and `seconds` are None where an
    imported rating does not have them. `time` is ISO 8601; `source` is "page" or "import".
    """

    annotator: str
    item: str
    winner: str | None
    left: str | None
    seconds: float | None
    time: str
    source: str = PAGE

    def event(self) -> dict[str, Any]:
        """Return the event that records it."""
        return {"event": "verdict", **self.__dict__}


def undo_event(annotator: str, item: str, time: str) -> dict[str, Any]:
    """Return the event that takes an annotator's verdict of an item back."""
    return {"event": "undo", "annotator": annotator, "item": item, "time": time}


def good_seconds(value: Any) -> bool:
    """Return whether a value is a possible time taken, in seconds."""
    good = isinstance(value, int | float) and not isinstance(value, bool)
    return good and math.isfinite(value) and 0 <= value <= LONGEST_SECONDS


def good_time(value: Any) -> bool:
    """Return whether a value is a time in ISO 8601."""
    try:
        datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return False
    return True


@dataclass
class Replay:
    """What holds after a log's events: `current` verdicts by (annotator, item), and what could not be read.

    `history` has, for each annotator, the items judged on the page whose verdicts still hold, in order.
    """

    current: dict[tuple[str, str], Judgement] = field(default_factory=dict)
    history: dict[str, list[str]] = field(default_factory=dict)
    unreadable: int = 0

    def copy(self) -> "Replay":
        """Return a copy that further events do not change."""
        history = {annotator: list(items) for annotator, items in self.history.items()}
        return Replay(dict(self.current), history, self.unreadable)

    def apply(self, event: Any) -> None:
        """Take one event in; what is no event is counted as unreadable."""
        if not _is_event(event):
            self.unreadable += 1
            return
        annotator, item = event["annotator"], event["item"]
        history = self.history.setdefault(annotator, [])
        if item in history:
            history.remove(item)
        if event["event"] == "undo":
            self.current.pop((annotator, item), None)
            return
        verdict = Judgement(**{name: event[name] for name in Judgement.__dataclass_fields__})
        self.current[annotator, item] = verdict
        if verdict.source == PAGE:
            history.append(item)

    def annotators(self) -> list[str]:
        """Return the names of all who have judged, in order of their first event."""
        return list(self.history)

    def of(self, annotator: str) -> dict[str, Judgement]:
        """Return one annotator's verdicts by item."""
        return {item: verdict for (name, item), verdict in self.current.items() if name == annotator}


def _is_event(event: Any) -> bool:
    if not isinstance(event, dict) or event.get("event") not in ("verdict", "undo"):
        return False
    if not all(isinstance(event.get(key), str) and event[key] for key in ("annotator", "item", "time")):
        return False
    if event["event"] == "undo":
        return True
    return (
        {"winner", "left", "seconds"} <= event.keys()
        and event.get("source") in (PAGE, IMPORT)
        and all(event[key] is None or isinstance(event[key], str) for key in ("winner", "left"))
        and (event["seconds"] is None or good_seconds(event["seconds"]))
        and good_time(event["time"])
    )
