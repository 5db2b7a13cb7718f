"""What a command of several subcommands is given to add them to: argparse has no public name for its type."""

from argparse import ArgumentParser
from typing import Any, Protocol


class Subcommands(Protocol):
    """What `ArgumentParser.add_subparsers` returns."""

    def add_parser(self, name: str, **options: Any) -> ArgumentParser:
        """Return the parser of a new subcommand."""
