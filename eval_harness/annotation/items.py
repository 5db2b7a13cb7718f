"""What is compared: pairs of outputs for the same prompt, checked, each with an id that stays the same."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from ledpo_plugin.common.plain_text import visible

from .problems import AnnotationError, quoted, rows_text, some
from .reading import Row, read_rows

OUTPUT_FIELDS = ("instruction", "output", "generator")
PAIR_FIELDS = ("instruction", "output_1", "output_2", "generator_1", "generator_2")
LONGEST_NAME = 200


@dataclass(frozen=True)
class Item:
    """A prompt and two outputs for it; `outputs` and `generators` are in the order of the input files."""

    id: str
    prompt: str
    outputs: tuple[str, str]
    generators: tuple[str, str]

    def output_of(self, generator: str) -> str:
        """Return what a generator wrote."""
        return self.outputs[self.generators.index(generator)]


def item_id(prompt: str, outputs: tuple[str, str], generators: tuple[str, str]) -> str:
    """Return 16 hexadecimal digits that are the same in whatever order the two outputs come."""
    parts = json.dumps([prompt, sorted(zip(generators, outputs, strict=True))])
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


def make_item(prompt: str, outputs: tuple[str, str], generators: tuple[str, str]) -> Item:
    """Return an item with its id."""
    return Item(item_id(prompt, outputs, generators), prompt, outputs, generators)


def read_items(paths: Sequence[Path], *, against_first: bool = False) -> tuple[Item, ...]:
    """Return the items of one file of ready pairs, or of two or more files of outputs for the same prompts.

    Files of outputs are in AlpacaEval's format: {instruction, output, generator}, one generator a file. Every two of
    them are compared, or, with `against_first`, each with the first one. Ready pairs have the fields {instruction,
    output_1, output_2, generator_1, generator_2}. Either may be a JSON list or JSONL.

    Raises:
        AnnotationError: with everything that is wrong with the files.
    """
    if not paths:
        raise AnnotationError("No outputs to compare", ["Give two or more files of outputs, or one file of pairs."])
    read = [(str(path), *read_rows(Path(path))) for path in paths]
    problems = [problem for _, _, found in read for problem in found]
    if len(paths) == 1:
        name, rows, _ = read[0]
        items, found = items_of_pairs(name, rows)
    else:
        items, found = items_of_outputs([(name, rows) for name, rows, _ in read], against_first)
    if problems or found:
        raise AnnotationError("The outputs cannot be compared", [*problems, *found])
    return tuple(items)


def items_of_pairs(name: str, rows: Sequence[Row]) -> tuple[list[Item], list[str]]:
    """Return the items of ready pairs and what is wrong with them; rows with a problem are left out."""
    if rows and all("output" in row and "output_1" not in row for row in rows):
        return [], [
            f"{name} has the outputs of one generator, which leaves nothing to compare them with. "
            "Give a second file of outputs for the same prompts, too."
        ]
    good, problems = _checked(name, rows, PAIR_FIELDS)
    items, seen, same, twice = [], {}, [], []
    for number, row in good:
        generators = (row["generator_1"], row["generator_2"])
        if generators[0] == generators[1]:
            same.append(number)
            continue
        key = (row["instruction"], frozenset(generators))
        if key in seen:
            twice.append(number)
            continue
        seen[key] = number
        items.append(make_item(row["instruction"], (row["output_1"], row["output_2"]), generators))
    if same:
        problems.append(
            f"{name}: {rows_text(same)}: generator_1 and generator_2 are the same name, so that a verdict would not "
            "say which of the two was better. Name them differently."
        )
    if twice:
        problems.append(
            f"{name}: {rows_text(twice)}: the prompt was there before with the same two generators. Keep one of each."
        )
    return items, problems


def items_of_outputs(files: Sequence[tuple[str, Sequence[Row]]], against_first: bool) -> tuple[list[Item], list[str]]:
    """Return the items of files of outputs, given as (name, rows), and what is wrong with them."""
    problems: list[str] = []
    sets: list[tuple[str, str, dict[str, str]]] = []
    names: dict[str, str] = {}
    for name, rows in files:
        good, found = _checked(name, rows, OUTPUT_FIELDS)
        problems += found
        if not good:
            continue
        generators = sorted({row["generator"] for _, row in good})
        if len(generators) > 1:
            problems.append(
                f"{name} has outputs of {len(generators)} generators ({some(generators)}). Give one file for each."
            )
        for generator in generators:
            if generator in names:
                problems.append(
                    f'{name} and {names[generator]} both have the generator "{generator}", so that a verdict would '
                    'not say which of the two was better. Change "generator" in one of them.'
                )
            names.setdefault(generator, name)
        outputs, twice = {}, []
        for number, row in good:
            if row["instruction"] in outputs:
                twice.append(number)
            outputs.setdefault(row["instruction"], row["output"])
        if twice:
            problems.append(f"{name}: {rows_text(twice)}: the prompt was there before. Keep one output for each.")
        # Prompts of rows with another problem are there all the same: that they are missing would be wrong to say.
        there = {
            row["instruction"] for row in rows if isinstance(row.get("instruction"), str) and row["instruction"].strip()
        }
        sets.append((name, generators[0], outputs))
        if len(sets) == 1:
            first, first_there = name, there
        else:
            problems += _differences(first, first_there, name, there)
    if problems:
        return [], problems
    pairs = [(sets[0], other) for other in sets[1:]] if against_first else list(combinations(sets, 2))
    items = []
    for prompt in sets[0][2]:
        for (_, one, outputs_1), (_, two, outputs_2) in pairs:
            items.append(make_item(prompt, (outputs_1[prompt], outputs_2[prompt]), (one, two)))
    return items, []


def _differences(first: str, expected: set[str], name: str, there: set[str]) -> list[str]:
    problems = []
    for has, lacks, prompts in ((first, name, expected - there), (name, first, there - expected)):
        if prompts:
            plural, are = ("prompt", "is") if len(prompts) == 1 else ("prompts", "are")
            problems.append(
                f"{len(prompts)} {plural} of {has} {are} not in {lacks}: "
                f"{some([quoted(prompt) for prompt in sorted(prompts)])}. "
                "Outputs can be compared for the same prompts only: generate what is missing, or take the others out."
            )
    return problems


def _checked(name: str, rows: Sequence[Row], fields: Sequence[str]) -> tuple[list[tuple[int, Row]], list[str]]:
    """Return the good rows with their numbers, counted from 1, and what is wrong with the others, by kind."""
    good: list[tuple[int, Row]] = []
    wrong: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(rows, start=1):
        found = [problem for field in fields if (problem := _wrong_with(field, row.get(field), fields))]
        for problem in found:
            wrong[problem].append(number)
        if not found:
            good.append((number, row))
    return good, [f"{name}: {rows_text(numbers)}: {problem}" for problem, numbers in wrong.items()]


def _wrong_with(field: str, value: object, fields: Sequence[str]) -> str | None:
    if value is None:
        return f'"{field}" is missing. A row has the fields {", ".join(fields)}.'
    if not isinstance(value, str):
        return f'"{field}" is not text. Write it in quotes.'
    if field.startswith("output"):
        return None  # a model may well answer nothing; that is for people to judge
    if not value.strip():
        return f'"{field}" is empty. Give it a value.'
    if field.startswith("generator") and not _is_name(value):
        return (
            f'"{field}" has hidden characters or line breaks, or more than {LONGEST_NAME} characters. '
            "Use a short plain name."
        )
    return None


def _is_name(text: str) -> bool:
    return len(text) <= LONGEST_NAME and visible(text) == text and not {"\n", "\t"} & set(text)
