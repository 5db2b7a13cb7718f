"""Verdicts and scores from JSON, JSON lines or CSV; everything that is wrong with a file is said at once."""

import csv
import io
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ledpo_plugin.common.problem import Problem, problem, unknown

from .problems import DataError
from .verdicts import TIE, ScoreTable, Verdict

# Our name of a column -> its name in a file of alpaca_eval's annotations.
ALPACA_EVAL: Mapping[str, str] = MappingProxyType(
    {"item": "instruction", "method": "annotator", "model_1": "generator_1", "model_2": "generator_2"}
)
# The same for the export of `ledpo eval annotate`; its JSON, for its CSV marks cells that a spreadsheet would run.
ANNOTATION: Mapping[str, str] = MappingProxyType(
    {
        "item": "item_id",
        "method": "annotator",
        "model_1": "generator_1",
        "model_2": "generator_2",
        "preference": "verdict",
        "first": "left",
    }
)
OPTIONAL = ("reason", "repeat", "first", "same_text", "output_1", "output_2")
OF_VERDICT = ("item", "method", "model_1", "model_2", "preference")
OF_SCORE = ("item", "method", "model", "value")
MISSING = ("", "missing", "none", "null", "nan")  # of a preference or value, in any case


@dataclass
class _Row:
    """One record of a file: its fields by our names, and the problems found in it."""

    place: str
    fields: Mapping[str, Any]
    problems: list[Problem] = field(default_factory=list)

    def say(self, key: str, value: Any, why: str, fix: str) -> None:
        self.problems.append(problem(f"{self.place}, {key}", value, why, fix))

    def name(self, key: str, known: Collection[str] | None) -> str:
        value = self.fields.get(key)
        number = isinstance(value, int) and not isinstance(value, bool)  # an id may be a number in JSON
        if not number and (not isinstance(value, str) or not value.strip()):
            self.say(key, value, "a name is expected here", f"give {key} a text that is not empty")
            return ""
        text = str(value).strip()
        if known is not None and text not in known:
            self.problems.append(unknown(f"{self.place}, {key}", text, key.split("_")[0], known))
        return text

    def reason(self, default: str) -> str:
        value = self.fields.get("reason")
        return value.strip() if isinstance(value, str) and value.strip() else default


def read_verdicts(
    path: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    constants: Mapping[str, str] | None = None,
    items: Collection[str] | None = None,
    methods: Collection[str] | None = None,
    models: Collection[str] | None = None,
) -> list[Verdict]:
    """Return the verdicts of a file: item, method, model_1, model_2, preference.

    Optional columns: reason, repeat, first, and same_text (or output_1 and output_2, the texts themselves).

    A preference is 1, 2 or tie; as in alpaca_eval 0 and 1.5 are ties too, and a number between 1 and 2 is a weighed
    preference. Empty, null, NaN and "missing" are missing; their reason is the file's, or that there was none.
    `first` is 1 or 2, the model that was shown first, where that is not always the first; left out or empty: 1.
    Whether two answers are the same text is known from `same_text` (true or false), or from the texts.

    Args:
        path: .json (a list of objects), .jsonl or .csv (with a header), UTF-8.
        columns: our name -> the file's name, for files with other names (`ALPACA_EVAL`, `ANNOTATION`).
        constants: our name -> a value for every row, for columns that the file does not have.
        items, methods, models: the ids that are known; others are a problem. Left out: any.

    Raises:
        DataError: the file cannot be used; every problem is listed with its row.
    """
    rows, problems = _records(Path(path), OF_VERDICT, columns or {}, constants or {})
    found: list[Verdict] = []
    first_place: dict[tuple, str] = {}
    for row in rows:
        item, method = row.name("item", items), row.name("method", methods)
        first, second = row.name("model_1", models), row.name("model_2", models)
        if first and first == second:
            row.say("model_2", second, "it is model_1 too", "compare two different models")
        preference, strength = _preference(row)
        repeat = _repeat(row)
        same = _same_text(row)
        if _second_was_first(row):
            first, second = second, first
            preference = {1: 2, 2: 1}.get(preference, preference)
            strength = None if strength is None else 3 - strength
        place = (item, method, first, second, repeat)
        if place in first_place:
            why = f"{first_place[place]} has the same item, method, models and repeat"
            row.say("item", item, why, "remove one of them, or number repeated judgements 0, 1, 2 ... in `repeat`")
        first_place.setdefault(place, row.place)
        problems += row.problems
        if not row.problems:
            reason = row.reason("no reason given in the file") if preference is None else None
            found.append(Verdict(item, method, first, second, preference, reason, repeat, strength, same))
    if problems:
        raise DataError(f"The file of verdicts {path}", problems)
    return found


def read_scores(
    path: str | Path,
    *,
    lower_is_better: Collection[str] = (),
    columns: Mapping[str, str] | None = None,
    constants: Mapping[str, str] | None = None,
    items: Collection[str] | None = None,
    methods: Collection[str] | None = None,
    models: Collection[str] | None = None,
) -> list[ScoreTable]:
    """Return one score table per method of a file with a row per item, method and model, and its value.

    Args:
        path, columns, constants, items, methods, models: as of `read_verdicts`; columns are item, method, model,
            value and, where the value is missing, reason.
        lower_is_better: the methods of which a smaller value is better, as perplexity.

    Raises:
        DataError: the file cannot be used; every problem is listed with its row.
    """
    rows, problems = _records(Path(path), OF_SCORE, columns or {}, constants or {})
    scores: dict[str, dict[str, dict[str, float]]] = {}
    missing: dict[str, dict[tuple[str, str], str]] = {}
    first_place: dict[tuple, str] = {}
    for row in rows:
        item, method, model = row.name("item", items), row.name("method", methods), row.name("model", models)
        value = _value(row)
        if (item, method, model) in first_place:
            why = f"{first_place[item, method, model]} has the same item, method and model"
            row.say("item", item, why, "remove one of them")
        first_place.setdefault((item, method, model), row.place)
        problems += row.problems
        if row.problems:
            continue
        of_items = scores.setdefault(method, {})
        if value is None:
            missing.setdefault(method, {})[item, model] = row.reason("no reason given in the file")
        else:
            of_items.setdefault(item, {})[model] = value
    seen = {method for _, method, _ in first_place}
    problems += [unknown("lower_is_better", name, "method", seen) for name in lower_is_better if name not in seen]
    if problems:
        raise DataError(f"The file of scores {path}", problems)
    return [ScoreTable(m, rows_, m not in lower_is_better, missing.get(m, {})) for m, rows_ in scores.items()]


def _preference(row: _Row) -> tuple[Any, float | None]:
    value = row.fields.get("preference")
    if _is_missing(value):
        return None, None
    if isinstance(value, str) and value.strip().lower() == TIE:
        return TIE, None
    number = _number(value)
    if number in (1.0, 2.0):
        return int(number), None
    if number in (0.0, 1.5):
        return TIE, None
    if number is not None and 1 < number < 2:
        return (1 if number < 1.5 else 2), number
    fix = "write 1 (the first answer), 2 (the second), tie, or nothing with a reason"
    row.say("preference", value, "it is no preference", fix)
    return None, None


def _value(row: _Row) -> float | None:
    value = row.fields.get("value")
    if _is_missing(value):
        return None
    number = _number(value)
    if number is None or not math.isfinite(number):
        row.say("value", value, "a finite number is expected here", "write one, or nothing with a reason")
        return None
    return number


def _repeat(row: _Row) -> int:
    value = row.fields.get("repeat")
    if value in (None, ""):
        return 0
    number = _number(value)
    if number is None or number < 0 or number != int(number):
        row.say("repeat", value, "a whole number of 0 or more is expected here", "number repeats 0, 1, 2 ...")
        return 0
    return int(number)


def _same_text(row: _Row) -> bool | None:
    value = row.fields.get("same_text")
    if value in (None, ""):
        texts = (row.fields.get("output_1"), row.fields.get("output_2"))
        return texts[0] == texts[1] if all(isinstance(text, str) for text in texts) else None
    known = {"true": True, "false": False}.get(str(value).lower())
    if known is None:
        row.say("same_text", value, "true or false is expected here", "write whether both answers are the same text")
    return known


def _second_was_first(row: _Row) -> bool:
    value = row.fields.get("first")
    if value in (None, ""):
        return False
    number = _number(value)
    if number not in (1, 2):
        row.say("first", value, "1 or 2 is expected here", "say which of model_1 and model_2 was shown first")
    return number == 2


def _is_missing(value: Any) -> bool:
    if isinstance(value, float) and math.isnan(value):
        return True
    return value is None or (isinstance(value, str) and value.strip().lower() in MISSING)


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _records(
    path: Path, needed: Sequence[str], columns: Mapping[str, str], constants: Mapping[str, str]
) -> tuple[list[_Row], list[Problem]]:
    """Return a file's rows under our names, and what is wrong with the file itself."""
    problems: list[Problem] = []
    readers = {".json": _json, ".jsonl": _json_lines, ".csv": _csv}
    if path.suffix.lower() not in readers:
        fix = f"name a file that ends with one of {', '.join(readers)}"
        raise DataError(f"The file {path}", [problem("file", path.name, "this kind of file is not read", fix)])
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        fix = "name a file that is there, in UTF-8"
        raise DataError(f"The file {path}", [problem("file", path.name, f"it cannot be read: {error}", fix)]) from None
    rows = []
    for place, record in readers[path.suffix.lower()](text, problems):
        if not isinstance(record, Mapping):
            problems.append(problem(place, record, "a record with named fields is expected", "write an object"))
            continue
        renamed = {name: record.get(columns.get(name, name)) for name in (*needed, *OPTIONAL)}
        renamed |= constants
        absent = [columns.get(n, n) for n in needed if n not in constants and columns.get(n, n) not in record]
        if absent:
            why = f"the fields {', '.join(absent)} are missing; there are {', '.join(map(str, record))}"
            fix = f"give {', '.join(columns.get(name, name) for name in needed)}, or name the file's own in `columns`"
            header = path.suffix.lower() == ".csv"  # the same for every line, so it is said once
            problems.append(problem("header" if header else place, None, why, fix))
            if header:
                break
            continue
        rows.append(_Row(place, renamed))
    if not rows and not problems:
        problems.append(problem("file", path.name, "it has no record", "name a file with records"))
    return rows, problems


def _json(text: str, problems: list[Problem]) -> Iterator[tuple[str, Any]]:
    if not text.strip():
        return
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        problems.append(problem("file", None, f"it is no JSON: {error}", "write a list of objects; or name it .jsonl"))
        return
    if not isinstance(found, list):
        problems.append(problem("file", type(found).__name__, "a list of objects is expected", "put it into [ ]"))
        return
    yield from ((f"record {number}", record) for number, record in enumerate(found, start=1))


def _json_lines(text: str, problems: list[Problem]) -> Iterator[tuple[str, Any]]:
    # Not splitlines(): it would cut inside texts with other line separators, which JSON leaves as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(problem(f"line {number}", line, f"it is no JSON: {error}", "write one object a line"))
        else:
            yield f"line {number}", record


def _csv(text: str, problems: list[Problem]) -> Iterator[tuple[str, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for record in reader:
            place = f"line {reader.line_num}"
            if None in record or None in record.values():
                fields = len(reader.fieldnames or ())
                why = f"it has another number of fields than the header ({fields})"
                fix = "give every line as many fields, quoted where they hold commas"
                problems.append(problem(place, None, why, fix))
                continue
            yield place, record
    except csv.Error as error:
        problems.append(problem(f"line {reader.line_num}", None, f"it is no CSV: {error}", "check its quotes"))
