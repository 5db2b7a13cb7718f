"""Templates of programming tasks. Each has variants that differ in one detail of the task and of the code.

The code of one variant is the plausible bug of another: `>` for `>=`, the first for the last, one too few. So right
and wrong answers are the same texts, and only together with its task can an answer be told to be right.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Values = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """One version of a task: `fields` go into text and code; `oracle` computes the result in its own way."""

    oracle: Callable[..., Any]  # (values of the template, arguments of the function) -> result
    fields: dict[str, str]


@dataclass(frozen=True)
class Template:
    """A family of tasks. `text` and `bodies` are format strings over the fields of a variant and the drawn values."""

    name: str
    names: tuple[str, ...]  # of the function
    arguments: str
    text: str  # continues "... that returns"
    variants: tuple[Variant, ...]
    bodies: tuple[str, ...]  # the same algorithm written in several ways
    draw: Callable[[random.Random], Values]
    cases: Callable[[random.Random, Values], list[tuple]]  # argument lists that tell every variant from every other


def variant(oracle: Callable[..., Any], **fields: str) -> Variant:
    """Return a variant of these fields."""
    return Variant(oracle, fields)


def drawing(**ranges: Any) -> Callable[[random.Random], Values]:
    """Return a drawing of values: from a range (low, high, both included), or from a list."""

    def draw(rng: random.Random) -> Values:
        return {k: rng.randint(*r) if isinstance(r, tuple) else rng.choice(r) for k, r in ranges.items()}

    return draw


def numbers(rng: random.Random, middle: int = 0, count: int = 6, spread: int = 12) -> list[int]:
    """Return whole numbers around `middle`."""
    return [middle + rng.randint(-spread, spread) for _ in range(count)]


def near(rng: random.Random, v: Values) -> list[tuple]:
    """Lists around k: with k itself, its neighbours, and none of them."""
    k = v["k"]
    lists = [[k - 1, k, k + 1], [k], [], [k + 1, k - 3, k, k + 4, k], numbers(rng, k), numbers(rng, k)]
    return [(values,) for values in lists]


WORDS = (
    "apple river stone an cloud tree Otter be lamp garden moon ox banana sea pear winter go kiwi star melon add Anna "
    "level eve radar noon"
).split()


def words(rng: random.Random, count: int = 6) -> list[str]:
    """Return words, some of them more than once."""
    return [rng.choice(WORDS) for _ in range(count)]


def word_lists(rng: random.Random, v: Values) -> list[tuple]:
    """Lists of words, the last with all there are."""
    return [(words(rng, count),) for count in (7, 9, 5, 8, 12)] + [(list(WORDS),)]


def sequences(rng: random.Random, v: Values) -> list[tuple]:
    """Lists that are longer than k."""
    return [(list(range(1, v["k"] * 2 + 4)),), (numbers(rng, 0, v["k"] + 3),), (numbers(rng, 5, 2 * v["k"] + 1),)]


def texts(rng: random.Random, v: Values) -> list[tuple]:
    """Strings of words, with and without capitals."""
    lines = [" ".join(words(rng, count)) for count in (3, 5, 6)]
    return [(text,) for text in (*lines, "Banana band", "a", "An apple, a pear; Anna and Otto")]


COMPARE = (
    variant(lambda n, k: n - k > 0, rel="greater than", op=">"),
    variant(lambda n, k: not n < k, rel="at least", op=">="),
    variant(lambda n, k: k - n > 0, rel="less than", op="<"),
    variant(lambda n, k: not n > k, rel="at most", op="<="),
)
LISTS = ["numbers", "values", "readings", "amounts", "samples", "sizes"]
THINGS = ["items", "values", "records", "entries", "rows", "names", "tags", "steps"]
TEXTS = ["text", "line", "title", "message", "phrase", "label"]
LETTERS = list("aeionrstlm")


def compared(result: Callable[..., Any]) -> tuple[Variant, ...]:
    """Return the four comparisons; `result` takes (keep, values, arguments), keep being one number's test."""
    return tuple(
        Variant(lambda v, *a, keep=c.oracle: result(lambda n: keep(n, v["k"]), v, *a), c.fields) for c in COMPARE
    )


def product(factors: list[int]) -> int:
    """Return the product of numbers, 1 of none."""
    result = 1
    for factor in factors:
        result *= factor
    return result
