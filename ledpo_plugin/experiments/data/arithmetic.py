"""Preference pairs of a calculation: the right one, and a plausible wrong one of the same kind and length.

A topic has several questions about the same facts. The working that is right for one question is the usual mistake
for another, so right and wrong answers are made of the same words. The other mistakes are slips: right working,
wrong result.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from string import Formatter
from typing import Any

from .checks import is_right
from .rows import Row, pair, prompt_of, stream

Values = dict[str, Any]
STYLES = (
    "{working} = {value} {unit}. The answer is {value} {unit}.",
    "Calculate {working} = {value}. That makes {value} {unit}.",
    "The calculation is {working}, which gives {value} {unit}. So it is {value} {unit}.",
)
SLIPS = 0.4  # share of the rejected answers with right working and a wrong result
APART = 0.02  # a wrong result differs by at least this share
TOO_MANY_MISSES = 400


@dataclass(frozen=True)
class Ask:
    """One question: its text and working are format strings over the drawn values."""

    question: str
    working: str
    value: Callable[[Values], float]
    unit: str | Callable[[float], str]  # or what follows from the value, such as a class


@dataclass(frozen=True)
class Topic:
    """Facts, a drawing of their numbers, and what can be asked about them. `wrong`: more mistakes, never asked."""

    name: str
    facts: tuple[str, ...]
    draw: Callable[[Random], Values]
    asks: tuple[Ask, ...]
    wrong: tuple[tuple[str, Callable[[Values], float]], ...] = ()


def shown(value: float) -> str:
    """Return a number with at most two decimals, without zeros at the end."""
    text = f"{value + 0.0:.2f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def rows_of(domain: str, seed: int, topic: Topic, side: str) -> Iterator[Row]:
    """Yield pairs of a topic, all with different prompts, its questions in turn."""
    rng = stream(domain, seed, topic.name, side)
    seen: set[str] = set()
    misses = 0
    while misses < TOO_MANY_MISSES:
        row = _row(topic, topic.asks[len(seen) % len(topic.asks)], rng)
        if row is None or prompt_of(row) in seen:
            misses += 1
            continue
        misses = 0
        seen.add(prompt_of(row))
        yield row


def _row(topic: Topic, ask: Ask, rng: Random) -> Row | None:
    """Return one pair, or None where the drawn numbers give none (a result near zero, no result that is apart)."""
    values = topic.draw(rng)
    right = ask.value(values)
    facts = rng.choice(topic.facts)
    style = rng.choice(STYLES)
    others = [(other.working, other.value) for other in topic.asks if other is not ask] + list(topic.wrong)
    told = _fields(facts + ask.question + ask.working)  # no mistake calculates with a number of another question
    others = [other for other in others if _fields(other[0]) <= told]
    if not others or rng.random() < SLIPS:
        working, wrong = ask.working, _slipped(right, rng)
    else:
        working, compute = rng.choice(others)
        wrong = compute(values)
    if min(right, wrong) < 0.05 or abs(right - wrong) < max(APART * right, 0.02):
        return None

    def answer(working: str, value: float) -> str:
        unit = ask.unit(value) if callable(ask.unit) else ask.unit
        return style.format(working=working.format(**values), value=shown(value), unit=unit)

    prompt = f"{facts} {ask.question}".format(**values)
    return pair(prompt, answer(ask.working, right), answer(working, wrong), task=topic.name)


def _fields(text: str) -> set[str]:
    """Return the names of the fields of a format string."""
    return {name for _, name, _, _ in Formatter().parse(text) if name}


def _slipped(value: float, rng: Random) -> float:
    """Return a value as a slip of the pen or a misplaced decimal point would leave it."""
    kind = rng.randrange(4)
    if kind == 0:
        return value * rng.choice((10, 0.1))
    if kind == 1:
        return value * rng.choice((2, 0.5))
    step = 10.0 ** (len(str(int(value))) - 1)  # one in the first digit
    if kind == 2:
        return value + step * rng.choice((1, -1)) if value > step else value + step
    return value + rng.choice((1, -1)) * rng.randint(1, 9) * (step / 10 if value >= 10 else 0.1)


def make_rows(
    domain: str, seed: int, topics: Sequence[Topic], side: str, count: int, without: frozenset[str] = frozenset()
) -> list[Row]:
    """Return `count` pairs, topics in turn, none with a prompt in `without`.

    Raises:
        ValueError: the topics do not give so many different prompts, or a right answer that is wrong.
    """
    left = [rows_of(domain, seed, topic, side) for topic in topics]
    rows: list[Row] = []
    seen = set(without)
    while left and len(rows) < count:
        for source in list(left):
            row = next((row for row in source if prompt_of(row) not in seen), None)
            if row is None:
                left.remove(source)
            elif len(rows) < count:
                seen.add(prompt_of(row))
                rows.append(row)
    if len(rows) < count:
        raise ValueError(f"The {domain} topics give {len(rows)} different prompts, {count} are wanted: add topics.")
    if faults := verify(rows):
        raise ValueError("\n".join(faults))
    return rows


def verify(rows: Sequence[Row]) -> list[str]:
    """Return which answers are not what they should be, by rules that know nothing of the topics."""
    faults = []
    for row in rows:
        prompt = row["conversations"][0]["value"]
        for side, wanted in (("chosen", True), ("rejected", False)):
            if is_right(row["task"], prompt, row[side]["value"]) is not wanted:
                faults.append(f"{row['task']}: {side} is {'not ' * wanted}right: {prompt} {row[side]['value']}")
    return faults
