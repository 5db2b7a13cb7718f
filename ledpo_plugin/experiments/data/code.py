"""The code domain: a task, a function whose tests pass, and one with a plausible bug; both are really executed."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from .rows import Row, pair, prompt_of, stream
from .sandbox import passes
from .tasks import HELD_OUT_TEMPLATES, TEMPLATES, Template, Values

SEED, VERSION = 20, 1
TRAIN, HELD_OUT = 2400, 24
SLIPS = 12  # one rejected answer in so many prints its result instead of returning it
WORDINGS = (
    "Write a Python function `{call}` that returns {text}.",
    "Write `{call}` in Python. It returns {text}.",
    "Implement the Python function `{call}`, which returns {text}.",
    "I need a Python function `{call}` that returns {text}.",
)
HOW_HELD_OUT = (
    "Half of the held-out pairs are of task templates that are not in training at all ({}); the other half are of "
    "templates that are, with values and variants that are not."
)


class GeneratorError(RuntimeError):
    """A generated pair is not what it should be; a template is wrong."""


@dataclass(frozen=True)
class _Task:
    template: Template
    variant: int
    values: Values

    @property
    def key(self) -> str:
        """Return what the task is, whatever its words."""
        numbers = sorted((name, value) for name, value in self.values.items() if name != "arg")
        return f"{self.template.name}/{self.variant}/{numbers}"


def make_code(train: int = TRAIN, held_out: int = HELD_OUT) -> dict[str, list[Row]]:
    """Return `code_train` and `code_heldout`, verified pairs with their tests; no task is on both sides.

    Raises:
        GeneratorError: a template gave a right answer that fails, a wrong one that passes, or too few tasks.
    """
    known = _spread(_rows(template, "heldout") for template in TEMPLATES)
    new = _spread(_rows(template, "heldout") for template in HELD_OUT_TEMPLATES)
    apart = [next(new if i % 2 else known) for i in range(held_out)]
    taken = {row["key"] for row in apart}
    seen: set[str] = set()
    rows: list[Row] = []
    for row in _spread(_rows(template, "train") for template in TEMPLATES):
        if len(rows) == train:
            break
        if row["key"] not in taken and prompt_of(row) not in seen:
            seen.add(prompt_of(row))
            rows.append(row)
    if len(rows) < train:
        raise GeneratorError(f"The templates give {len(rows)} different prompts, {train} are wanted: add templates.")
    stream("code", SEED, "order").shuffle(rows)
    return {"code_train": [_verified(row) for row in rows], "code_heldout": [_verified(row) for row in apart]}


def how_held_out() -> str:
    """Return in words what `code_heldout` has not in common with `code_train`."""
    return HOW_HELD_OUT.format(", ".join(template.name for template in HELD_OUT_TEMPLATES))


def _spread(sources: Iterator[Iterator[Row]]) -> Iterator[Row]:
    """Yield one row of each source in turn until all are used up."""
    left = list(sources)
    while left:
        for source in list(left):
            row = next(source, None)
            if row is None:
                left.remove(source)
            else:
                yield row


def _rows(template: Template, side: str) -> Iterator[Row]:
    """Yield the pairs of a template, one for each different task, variants in turn."""
    rng = stream("code", SEED, template.name, side)
    count = len(template.variants)
    seen: set[str] = set()
    misses = 0
    while misses < 60:
        task = _Task(template, (len(seen) + (side != "train")) % count, template.draw(rng))
        # Another name of an argument makes another prompt, but no other task.
        name = f"{task.key}/{task.values.get('arg')}"
        if name in seen:
            misses += 1
            continue
        misses = 0
        seen.add(name)
        yield _row(task, rng)


def _row(task: _Task, rng: Random) -> Row:
    template, count = task.template, len(task.template.variants)
    call = f"{rng.choice(template.names)}({_filled(template.arguments, {}, task.values)})"
    fields = template.variants[task.variant].fields
    text = _filled(template.text, fields, task.values)
    body = rng.choice(template.bodies)
    other = (task.variant + rng.randint(1, count - 1)) % count  # every variant is as often wrong as it is right
    right = _source(call, _filled(body, fields, task.values))
    if rng.randrange(SLIPS) == 0:
        wrong = _printing(right)
    else:
        wrong = _source(call, _filled(body, template.variants[other].fields, task.values))
    prompt = rng.choice(WORDINGS).format(call=call, text=text)
    oracle, name = template.variants[task.variant].oracle, call.partition("(")[0]
    tests = [
        f"{name}({', '.join(map(repr, case))}) == {oracle(task.values, *case)!r}"
        for case in template.cases(rng, task.values)
    ]
    return pair(prompt, _fenced(right), _fenced(wrong), task=template.name, key=task.key, tests=tests)


def _filled(text: str, fields: dict[str, str], values: Values) -> str:
    """Put the fields of a variant into a text, whose own fields are the drawn values."""
    inner = {name: field.format(**values) for name, field in fields.items()}
    return text.format(**inner, **values)


def _source(call: str, body: str) -> str:
    return f"def {call}:\n{textwrap.indent(body, '    ')}\n"


def _printing(source: str) -> str:
    """Return the source with its last `return x` made into `print(x)`."""
    head, _, result = source.rstrip("\n").rpartition("return ")
    return f"{head}print({result})\n"


def _fenced(source: str) -> str:
    return f"```python\n{source}```"


def unfenced(answer: str) -> str:
    """Return the source code of an answer."""
    return answer.removeprefix("```python\n").removesuffix("```")


def verify(rows: Sequence[Row]) -> list[str]:
    """Return what is wrong with pairs: a chosen function that fails a test, or a rejected one that passes all."""
    faults = []
    for row in rows:
        for side, wanted in (("chosen", True), ("rejected", False)):
            results = passes(unfenced(row[side]["value"]), row["tests"])
            if all(results) is not wanted:
                failed = [test for test, passed in zip(row["tests"], results, strict=True) if not passed]
                faults.append(f"{row['task']}: {side} fails {failed}\n{row[side]['value']}\n{prompt_of(row)}")
    return faults


def _verified(row: Row) -> Row:
    if faults := verify([row]):
        raise GeneratorError("\n".join(faults))
    return {name: value for name, value in row.items() if name != "key"}
