"""What is wrong with an experiment: collected while it is read, and raised all at once."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ledpo_plugin.common.problem import Problem, listing, problem, unknown


class ExperimentError(ValueError):
    """An experiment that must not run; its text lists every problem, numbered."""

    def __init__(self, where: str, problems: Iterable[Problem]) -> None:
        self.where, self.problems = where, tuple(problems)
        super().__init__(where, self.problems)

    def __str__(self) -> str:
        return listing(self.where, self.problems, "nothing was run")


@dataclass
class Found:
    """Collects problems while a definition is read; what reads wrong is left out and said."""

    problems: list[Problem] = field(default_factory=list)

    def say(self, key: str, value: Any, why: str, fix: str) -> None:
        self.problems.append(problem(key, value, why, fix))

    def mapping(self, value: Any, key: str, known: Sequence[str] | None = None, needed: Sequence[str] = ()) -> dict:
        """Return a mapping's known entries; say what is unknown or missing."""
        if not isinstance(value, Mapping):
            self.say(key, value, "a mapping of keys to values is expected here", f"write {key}: with lines below it")
            return {}
        if known is not None:
            for name in value:
                if name not in known:
                    self.problems.append(unknown(f"{key}.{name}" if key else str(name), name, "key", known))
        for name in needed:
            if value.get(name) in (None, "", [], {}):
                where = f"{key}.{name}" if key else name
                self.say(where, value.get(name), "it is missing or empty", f"give {where} a value")
        return dict(value)

    def names(self, value: Any, key: str) -> tuple[str, ...]:
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.say(key, value, "a list of names is expected here", "write [name, name]")
            return ()
        return tuple(value)

    def number(self, value: Any, key: str, kind: type = int, low: float = 1) -> Any | None:
        good = isinstance(value, int | float) and not isinstance(value, bool) and value >= low
        if not good or (kind is int and value != int(value)):
            what = "a whole number" if kind is int else "a number"
            self.say(key, value, f"{what} of {low:g} or more is expected here", f"set {key} to one")
            return None
        return kind(value)
