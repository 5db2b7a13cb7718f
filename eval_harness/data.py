"""Data sets in the formats that LLaMA-Factory reads, as texts: prompts, answers, and what else a row holds."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ledpo_plugin.common.problem import listing
from ledpo_plugin.common.problem import problem as make_problem
from ledpo_plugin.host.contract import host_api

LARGEST_LIST = 8  # problems of one file that are listed; the rest are counted


class DataSetError(ValueError):
    """A data set that cannot be used; the message lists its problems."""


@dataclass(frozen=True)
class Example:
    """One row: the messages before the answer, and the answers (chosen and rejected, or one)."""

    place: int  # in the file
    messages: tuple[Mapping[str, str], ...]
    answers: tuple[str, ...]
    system: str
    row: Mapping[str, Any]  # as it was in the file

    @property
    def single_turn(self) -> bool:
        """Whether there is one user message and no system prompt of its own."""
        return len(self.messages) == 1 and not self.system

    @property
    def prompt(self) -> str:
        """The last user message."""
        return self.messages[-1]["content"]


def read_dataset(name: str, dataset_dir: str | Path) -> list[Example]:
    """Return the rows of a data set that dataset_info.json defines, read by LLaMA-Factory's own converters.

    Raises:
        DataSetError: it is unknown or cannot be read, or rows of it are no conversations; all problems are listed.
    """
    try:
        (attributes,) = host_api().get_dataset_list([name], str(dataset_dir))
    except ValueError as error:
        raise DataSetError(
            f"Data set {name!r}: {error} Name one that dataset_info.json in {dataset_dir} has."
        ) from None
    if attributes.load_from == "file":
        rows = _rows_of(Path(dataset_dir) / attributes.dataset_name)
    else:
        rows = _rows_of_hub(attributes)
    return _examples(rows, attributes, name, str(dataset_dir))


def read_pairs(name: str, dataset_dir: str | Path) -> list[Example]:
    """Return the rows of a data set of pairs: `answers` are the chosen and the rejected one.

    Raises:
        DataSetError: as `read_dataset`, or it holds no pairs.
    """
    found = read_dataset(name, dataset_dir)
    wrong = [example.place + 1 for example in found if len(example.answers) != 2]
    if wrong:
        raise DataSetError(
            f"Data set {name!r} in {dataset_dir} has no chosen and rejected answer in {len(wrong)} rows (the first is "
            f'{wrong[0]}). Name a data set of pairs ("ranking": true), or mend the rows.'
        )
    return found


def _rows_of(path: Path) -> list[Any]:
    if path.is_dir():
        return [row for part in sorted(path.iterdir()) if part.suffix in (".json", ".jsonl") for row in _rows_of(part)]
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataSetError(f"{path} cannot be read ({error}). Give a file of JSON or JSONL in UTF-8.") from None
    try:
        if text.lstrip().startswith("["):
            rows = json.loads(text)
        else:
            # Only a newline ends a line of JSONL: str.splitlines would also break at U+2028 within a text.
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except ValueError as error:
        raise DataSetError(f"{path} is not valid JSON or JSONL ({error}). Mend it, or write it again.") from None
    if not rows:
        raise DataSetError(f"{path} has no rows. Give a file with rows in it.")
    return rows


def _rows_of_hub(attributes: Any) -> list[Any]:
    from datasets import load_dataset

    try:
        return list(load_dataset(attributes.dataset_name, name=attributes.subset, split=attributes.split or "train"))
    except Exception as error:  # the hub's errors have no common class
        raise DataSetError(f"Data set {attributes.dataset_name} cannot be loaded ({error}).") from None


def _examples(rows: Sequence[Any], attributes: Any, name: str, dataset_dir: str) -> list[Example]:
    convert = host_api().get_dataset_converter(
        attributes.formatting, attributes, SimpleNamespace(media_dir=dataset_dir)
    )
    found, problems = [], []
    for place, row in enumerate(rows):
        where = f"{name}, row {place + 1}"
        try:
            made = convert(row)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            why = f"it lacks what dataset_info.json says of its columns ({type(error).__name__}: {error})"
            problems.append(make_problem(where, None, why, "mend the row, or the columns in dataset_info.json"))
            continue
        messages, answers = made["_prompt"], [answer["content"] for answer in made["_response"]]
        texts = [message["content"] for message in messages] + answers
        if not messages or not all(isinstance(text, str) for text in texts):
            why = "it is no conversation of user and assistant in turn that ends with an answer"
            problems.append(make_problem(where, None, why, "mend the row, or take it out"))
        elif not messages[-1]["content"].strip():
            problems.append(make_problem(where, "", "its prompt is empty", "write one, or take the row out"))
        else:
            found.append(Example(place, tuple(messages), tuple(answers), made["_system"] or "", row))
    if problems:
        raise DataSetError(listing(f"Data set {name} in {dataset_dir}", problems, "nothing was loaded", LARGEST_LIST))
    return found
