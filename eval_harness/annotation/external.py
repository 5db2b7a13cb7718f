"""Ratings from elsewhere, in the columns of the export, taken into the log of verdicts: all of a file or nothing."""

import csv
import io
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .export import FORMULA
from .items import Item
from .problems import AnnotationError, quoted, rows_text
from .reading import Row, parse_rows, read_text
from .study import Refused, Study, clean_name, now
from .verdicts import IMPORT, Judgement, Replay, good_seconds, good_time

NEEDED = ("item_id", "generator_1", "generator_2", "annotator", "verdict")
LARGEST_CELL = 2**30


def read_ratings(path: Path) -> tuple[list[Row], list[str]]:
    """Return the rows of a file of ratings and what is wrong with the file.

    It may be CSV (commas or semicolons, with a line of column names), a JSON list, JSONL, or what the export wrote.
    """
    text, problems = read_text(path)
    if problems:
        return [], problems
    if text.lstrip().startswith(("[", "{")):
        try:
            whole = json.loads(text)
        except (ValueError, RecursionError):
            whole = None
        if isinstance(whole, dict) and isinstance(whole.get("ratings"), list):
            text = json.dumps(whole["ratings"])
        return parse_rows(text, str(path))
    return _csv_rows(text, str(path))


def _csv_rows(text: str, name: str) -> tuple[list[Row], list[str]]:
    head = text.split("\n", 1)[0]
    delimiter = ";" if head.count(";") > head.count(",") else ","
    csv.field_size_limit(LARGEST_CELL)  # prompts can be longer than the 128 KiB that Python takes by itself
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        return [], [f"{name} is not valid CSV ({error}). Export it again as CSV with commas and double quotes."]
    missing = [column for column in NEEDED if not rows or column not in rows[0]]
    if missing:
        what = "has no rows" if not rows else f"has no column {', '.join(missing)}"
        return [], [f"{name} {what}. Its first line names the columns: {', '.join(NEEDED)}, and more if you like."]
    return [{column: _plain(value) for column, value in row.items() if column is not None} for row in rows], []


def _plain(value: Any) -> Any:
    guarded = isinstance(value, str) and value.startswith("'") and value[1:].startswith(FORMULA)
    return value[1:] if guarded else value


def verdicts_of(
    rows: Sequence[Row], items: Sequence[Item], allowed: Sequence[str], time: str
) -> tuple[list[Judgement], list[str]]:
    """Return the verdicts of rows of ratings and what is wrong with them, by kind, with numbers of rows from 1.

    `allowed` are the only annotators, if it is not empty; `time` is that of ratings without one. A row may have the
    item's two generators either way round.
    """
    by_id = {item.id: item for item in items}
    known = {name.casefold(): name for name in allowed}
    spelt = dict(known)
    wrong: dict[str, list[int]] = defaultdict(list)
    verdicts, seen = [], {}
    for number, row in enumerate(rows, start=1):
        found = _wrong_with(row, by_id, known)
        for problem in found:
            wrong[problem].append(number)
        if found:
            continue
        annotator = clean_name(row["annotator"])
        annotator = spelt.setdefault(annotator.casefold(), annotator)  # one spelling for whatever case
        key = (annotator, row["item_id"])
        if key in seen:
            wrong["the same annotator judged the same item in an earlier row. Keep one verdict of each."].append(number)
            continue
        seen[key] = number
        verdict, left = str(row["verdict"]).strip().lower(), str(row.get("left") or "").strip()
        winner = None if verdict == "tie" else row[f"generator_{verdict}"]
        side = row[f"generator_{left}"] if left else None
        seconds = None if row.get("seconds") in (None, "") else float(row["seconds"])
        when = row.get("time") or time
        verdicts.append(Judgement(annotator, row["item_id"], winner, side, seconds, when, IMPORT))
    return verdicts, [f"{rows_text(numbers)}: {problem}" for problem, numbers in wrong.items()]


def _wrong_with(row: Row, by_id: dict[str, Item], names: dict[str, str]) -> list[str]:
    problems = []
    missing = [column for column in NEEDED if row.get(column) in (None, "")]
    if missing:
        problems.append(f"{', '.join(missing)} missing or empty. Give each row {', '.join(NEEDED)}.")
    id_ = row.get("item_id")
    item = by_id.get(id_) if isinstance(id_, str) else None
    if "item_id" not in missing and item is None:
        problems.append(
            f"unknown item_id {quoted(str(id_))}. Ids change with the prompt and the outputs: "
            "give the files that the ratings are of, or take the rows out."
        )
    if item and not {"generator_1", "generator_2"} & set(missing):
        given = [row["generator_1"], row["generator_2"]]
        if not all(isinstance(name, str) for name in given) or sorted(given) != sorted(item.generators):
            problems.append(
                f"generator_1 and generator_2 are not {quoted(item.generators[0])} and {quoted(item.generators[1])}, "
                "which the item compares. Correct them."
            )
    if "verdict" not in missing and str(row["verdict"]).strip().lower() not in ("1", "2", "tie"):
        problems.append(
            f"unknown verdict {quoted(str(row['verdict']))}. Write 1, 2 or tie, for generator 1, 2 or neither."
        )
    if "annotator" not in missing:
        try:
            name = clean_name(row["annotator"])
            if names and name.casefold() not in names:
                problems.append(
                    f"unknown annotator {quoted(name)}. This study's are {', '.join(names.values())}: "
                    "correct the name, or name the annotator at the start."
                )
        except Refused as error:
            problems.append(f"annotator {quoted(str(row['annotator']))}: {error}")
    if str(row.get("left") or "").strip() not in ("", "1", "2"):
        problems.append(f"unknown left {quoted(str(row['left']))}. Write 1 or 2, or leave it empty if it is not known.")
    if row.get("seconds") not in (None, "") and not _is_seconds(row["seconds"]):
        problems.append("seconds is not a time taken. Write a number of 0 or more, or leave it empty.")
    if row.get("time") not in (None, "") and not good_time(row["time"]):
        problems.append("time is not a time. Write it like 2026-01-31T12:00:00+00:00, or leave it empty.")
    return problems


def _is_seconds(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and good_seconds(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


def import_ratings(path: Path, study: Study) -> tuple[int, int]:
    """Take a file of ratings into a study; return how many verdicts are new and how many were there already.

    Raises:
        AnnotationError: with everything that is wrong with the file; nothing of it was taken.
        OSError: the log could not be written; nothing of it counts.
    """
    rows, problems = read_ratings(Path(path))
    verdicts, found = verdicts_of(rows, study.items, study.allowed, now())
    if problems or found:
        raise AnnotationError(f"{path} was not imported", [*problems, *found])
    fresh: list[Judgement] = []

    def decide(state: Replay) -> list[dict[str, Any]]:
        known = {name.casefold(): name for name in state.annotators()}  # the spelling the log has goes before
        others = []
        for number, verdict in enumerate(verdicts, start=1):
            name = known.get(verdict.annotator.casefold(), verdict.annotator)
            before = state.current.get((name, verdict.item))
            if before is None:
                fresh.append(Judgement(**{**verdict.__dict__, "annotator": name}))
            elif before.winner != verdict.winner:
                others.append(number)
        if others:
            problem = (
                f"{rows_text(others)}: the annotator has given another verdict of this item already. "
                "Take the rows out, or name another folder for these ratings."
            )
            raise AnnotationError(f"{path} was not imported", [problem])
        return [verdict.event() for verdict in fresh]

    study.store.update(decide)
    return len(fresh), len(verdicts) - len(fresh)
