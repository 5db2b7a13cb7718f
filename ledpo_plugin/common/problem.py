"""What is wrong with a recipe: one `Problem` per key, and the one exception that carries them all."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from .lookup import unknown_name

_LONGEST_VALUE = 80


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where, what was written there, and why with what to do."""

    key: str
    value: object
    message: str  # "why. Fix: what to do."

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.value)} -> {self.message}"


class RecipeError(ValueError):
    """A recipe that must not be trained; its text lists every problem, numbered."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)  # args hold the problems, so the error survives pickling between processes

    def __str__(self) -> str:
        return listing("The recipe", self.problems, "nothing was loaded or trained")


def listing(what: str, problems: Sequence[Problem], outcome: str, most: int | None = None) -> str:
    """Return how many problems something has, what came of it, and the problems, numbered; `most` of them at most."""
    count = f"{len(problems)} problem{'' if len(problems) == 1 else 's'}"
    lines = [f"{what} has {count}; {outcome}."]
    lines += [f"{number}. {found}" for number, found in enumerate(problems[:most], start=1)]
    left = 0 if most is None else len(problems) - most
    return "\n".join(lines + ([f"... and {left} more"] if left > 0 else []))


def problem(key: object, value: object, why: str, fix: str) -> Problem:
    """Return the problem in the one form of sentence that all messages share."""
    return Problem(str(key), value, f"{why.rstrip('.')}. Fix: {fix.rstrip('.')}.")


def unknown(key: str, value: object, kind: str, names: Iterable[str]) -> Problem:
    """Return the problem of a name that is not among the known ones."""
    known = list(names)
    near = get_close_matches(str(value).strip().lower(), known, n=1, cutoff=0.5)
    fix = f"set {key}: {near[0]}" if near else f"set {key} to one of the available names"
    return problem(key, value, unknown_name(kind, value, known), fix)


def _shown(value: object) -> str:
    text = "(not set)" if value is None else repr(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."
