"""The one way to find something by the name a recipe gives, and the one message when it is not there."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Protocol, TypeVar

T = TypeVar("T")


class Named(Protocol):
    """A row of a table."""

    @property
    def name(self) -> str: ...


Row = TypeVar("Row", bound=Named)


def by_name(*rows: Row) -> dict[str, Row]:
    """Return a table of its rows, in their order."""
    return {row.name: row for row in rows}


def unknown_name(kind: str, name: object, available: Iterable[str]) -> str:
    """Return the sentence that says that `name` is unknown, with the nearest known name and all of them."""
    names = sorted(available)
    near = get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"Unknown {kind} {name!r}.{hint} Available: {', '.join(names)}."


def lookup(table: Mapping[str, T], kind: str, name: str) -> T:
    """Return `table[name]`.

    Raises:
        KeyError: the name is not in the table; the message names the nearest one and lists all.
    """
    try:
        return table[name]
    except (KeyError, TypeError):
        raise KeyError(unknown_name(kind, name, table)) from None
