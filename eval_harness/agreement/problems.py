"""What is wrong with data of an evaluation: collected while it is read, and raised all at once."""

from collections.abc import Iterable

from ledpo_plugin.common.problem import Problem, listing

SHOWN = 50  # a file that is wrong in every line must not fill the screen; `problems` has them all


class DataError(ValueError):
    """Data that cannot be evaluated; its text numbers the problems, `problems` holds every one."""

    def __init__(self, where: str, problems: Iterable[Problem]) -> None:
        self.where, self.problems = where, tuple(problems)
        super().__init__(where, self.problems)

    def __str__(self) -> str:
        return listing(self.where, self.problems, "nothing of it was used", SHOWN)
