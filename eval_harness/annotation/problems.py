"""What is wrong with the input of an annotation: collected, and raised all at once."""

from collections.abc import Iterable, Sequence

from ledpo_plugin.common.plain_text import visible

NAMED = 5  # how many rows, prompts or ids a problem names; a file of a thousand bad rows is one problem


class AnnotationError(ValueError):
    """Input that cannot be used; its text lists every problem, numbered."""

    def __init__(self, what: str, problems: Iterable[str]) -> None:
        self.what, self.problems = what, tuple(problems)
        super().__init__(what, self.problems)

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return f"{self.what}: {self.problems[0]}"
        lines = [f"{self.what}: {len(self.problems)} problems."]
        return "\n".join(lines + [f"{number}. {found}" for number, found in enumerate(self.problems, start=1)])


def some(values: Sequence[object]) -> str:
    """Return the first few values as text, and how many more there are."""
    rest = len(values) - NAMED
    return ", ".join(str(value) for value in values[:NAMED]) + (f" and {rest} more" if rest > 0 else "")


def rows_text(numbers: Sequence[int]) -> str:
    """Return numbers of rows, counted from 1, as text."""
    return f"row{'' if len(numbers) == 1 else 's'} {some(numbers)}"


def quoted(text: str, limit: int = 60) -> str:
    """Return the beginning of a text that others wrote, in quotes, on one line, with nothing hidden in it."""
    line = " ".join(visible(text).split())
    return f'"{line[:limit]}…"' if len(line) > limit else f'"{line}"'
