"""What is wrong with data of an evaluation: collected while it is read, and raised all at once."""

from collections.abc import Iterable

from ledpo_plugin._recipe_problem import Problem

SHOWN = 50  # a file that is wrong in every line must not fill the screen; `problems` has them all


class DataError(ValueError):
    """Data that cannot be evaluated; its text numbers the problems, `problems` holds every one."""

    def __init__(self, where: str, problems: Iterable[Problem]) -> None:
        self.where, self.problems = where, tuple(problems)
        super().__init__(where, self.problems)

    def __str__(self) -> str:
        count = f"{len(self.problems)} problem{'' if len(self.problems) == 1 else 's'}"
        lines = [f"{self.where} has {count}; nothing of it was used."]
        lines += [f"{number}. {found}" for number, found in enumerate(self.problems[:SHOWN], start=1)]
        left = len(self.problems) - SHOWN
        return "\n".join(lines + ([f"... and {left} more"] if left > 0 else []))
