"""The commands under `ledpo eval`; what each does is imported when it is called."""

from ledpo_plugin.common.subcommands import Subcommands

from .agreement.command import add_command as add_agree
from .annotation.command import add_command as add_annotate
from .generation.command import add_command as add_generate
from .judging.command import add_command as add_judge
from .tasks.command import add_command as add_tasks


def add_commands(subparsers: Subcommands) -> None:
    """Add every command to the parsers of `ledpo eval`."""
    for add in (add_generate, add_judge, add_tasks, add_annotate, add_agree):
        add(subparsers)
