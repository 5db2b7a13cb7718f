"""Checks: the first rows of data files, before anything loads: what cannot be read, and what would be dropped."""

import csv
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ledpo_plugin.common.problem import Problem, problem
from ledpo_plugin.data.row_formats import (
    INSTRUCTIONS,
    PAIRS,
    PROMPTS,
    Entry,
    described,
    judge,
    kept_columns,
    needed_columns,
)

from .reading import Reading

MOST_ROWS = 10_000
MOST_TEXT = 2**25  # characters of a JSON file


@dataclass(frozen=True)
class Look:
    """What the first rows of a data set's files say: a problem, or what is dropped of them."""

    why: str = ""
    fix: str = ""
    note: str = ""


def look_at_rows(name: str, config: Mapping[str, Any], folder: str, kind: str) -> Look:
    """Return what is wrong with the first rows of a data set; nothing where its file cannot be read here.

    Args:
        name: of the data set.
        config: its entry in dataset_info.json.
        folder: that holds its file.
        kind: "pairs", "unpaired", "instructions" or "prompts".
    """
    entry = Entry.of_config(config)
    kind = PAIRS if entry.ranking else kind
    place = config.get("file_name")
    path = os.path.join(folder, place) if isinstance(place, str) else ""
    rows, whole = _first_rows(path)
    if not rows:
        return Look()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    absent = [column for column in needed_columns(entry, kind) if column not in columns]
    if absent:
        have = ", ".join(map(repr, columns))
        return Look(f"{path} has no column {' and no '.join(map(repr, absent))}; it has {have}", _CORRECT)
    mixed = _mixed_column(rows, entry, kind)
    if mixed:
        return Look(f"{path}: {mixed}", "give every row of the column the same type")
    verdicts = [judge(row, entry, kind) for row in rows]
    lost = sum(bool(verdict.reason) for verdict in verdicts)
    sentence = described(path, [(verdict.reason, verdict.value) for verdict in verdicts], whole) if lost else ""
    if lost == len(rows):
        return Look(sentence, "correct the rows, or 'columns' and 'tags' of the entry")
    return Look(note=f"{sentence}. Training drops them." if lost else "")


_CORRECT = "correct 'columns' of its entry"


def check_rows(recipe: Reading, key: str, name: str, config: Mapping[str, Any], folder: str) -> Iterator[Problem]:
    """Yield a problem where no row of a data set could be trained on, or its files could not be loaded."""
    look = look_at_rows(name, config, folder, kind_of(recipe, key))
    if look.why:
        yield problem(key, name, look.why, look.fix)


def kind_of(recipe: Reading, key: str) -> str:
    """Return what rows a key's data sets are read as."""
    if key == "sft_dataset":
        return INSTRUCTIONS
    if key == "prompt_dataset" or recipe.stage is None:
        return PROMPTS
    return recipe.stage.data


def _first_rows(path: str) -> tuple[list[Mapping[str, Any]], bool]:
    """Return the first rows of a file or a folder's first file, and whether they are all."""
    try:
        if os.path.isdir(path):
            files = sorted(os.listdir(path))
            rows, whole = _rows_of(os.path.join(path, files[0])) if files else ([], True)
            return rows, whole and len(files) == 1
        return _rows_of(path)
    except (OSError, ValueError, RecursionError):  # LLaMA-Factory says what is wrong with such a file
        return [], True


def _rows_of(path: str) -> tuple[list[Mapping[str, Any]], bool]:
    kind = os.path.splitext(path)[1]
    if kind in (".json", ".jsonl"):
        with Path(path).open(encoding="utf-8") as file:
            text = file.read(MOST_TEXT)
        found = list(islice(_json_rows(text), MOST_ROWS + 1))
        whole = len(text) < MOST_TEXT
    elif kind == ".csv":
        with Path(path).open(encoding="utf-8", newline="") as file:
            found = [
                {key: value or None for key, value in row.items()}
                for row in islice(csv.DictReader(file), MOST_ROWS + 1)
            ]
        whole = True
    elif kind == ".parquet":
        found, whole = _parquet_rows(path), True
    else:
        return [], True
    rows = [row for row in found[:MOST_ROWS] if isinstance(row, Mapping)]
    return rows, whole and len(found) <= MOST_ROWS


def _json_rows(text: str) -> Iterator[Any]:
    """Yield the rows of a JSON array or of JSON lines, as far as the text goes."""
    decoder, place = json.JSONDecoder(), 0
    between = " \t\r\n,["
    while True:
        while place < len(text) and text[place] in between:
            place += 1
        if place >= len(text) or text[place] == "]":
            return
        try:
            row, place = decoder.raw_decode(text, place)
        except ValueError:  # the text ends within a row, or is no JSON
            return
        yield row


def _parquet_rows(path: str) -> list[Any]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            batch = next(file.iter_batches(batch_size=MOST_ROWS + 1), None)
    except ArrowException as error:
        raise ValueError(str(error)) from error
    return [] if batch is None else batch.to_pylist()


def _mixed_column(rows: list[Mapping[str, Any]], entry: Entry, kind: str) -> str:
    """Return which column holds values of several types, which Arrow cannot load; "" where none does."""
    seen: dict[str, tuple[str, int]] = {}
    names = [name for name in needed_columns(entry, kind) if name not in kept_columns(entry)]
    for place, row in enumerate(rows):
        for name in names:
            for path, what in _types(row.get(name), repr(name)):
                first, where = seen.setdefault(path, (what, place))
                if what != first:
                    return f"column {path} holds {first} in row {where + 1} and {what} in row {place + 1}"
    return ""


def _types(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        yield path, "an object"
        for key, inner in value.items():
            yield from _types(inner, f"{path}.{key}")
    elif isinstance(value, list):
        yield path, "a list"
        for inner in value:
            yield from _types(inner, f"{path}[]")
    elif value is not None:
        yield path, "true or false" if isinstance(value, bool) else "a text" if isinstance(value, str) else "a number"
