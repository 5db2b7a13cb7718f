"""`ledpo eval annotate`: its arguments. What it does is imported when it is called."""

import argparse

from ledpo_plugin.common.subcommands import Subcommands

from .guard import PASSWORD


def _run(args: argparse.Namespace) -> int:
    from .work import run

    return run(args)


def add_command(subparsers: Subcommands) -> None:
    """Add `annotate` to the parsers of `ledpo eval`; its `run_command` is what to call with the arguments."""
    parser = subparsers.add_parser(
        "annotate",
        help="let people compare outputs, blind, on a local web page",
        description="Blind comparison of models' outputs by people, two at a time, on a web page of this machine. "
        f"{PASSWORD} in the environment sets a password.",
    )
    parser.add_argument(
        "outputs",
        nargs="+",
        help="two or more files of outputs (JSON or JSONL of instruction, output, generator), "
        "or one of pairs (instruction, output_1, output_2, generator_1, generator_2)",
    )
    parser.add_argument("--folder", required=True, help="where verdicts are kept; the same one goes on where it was")
    parser.add_argument("--port", type=int, help="left out: a free one")
    parser.add_argument("--annotators", help="names, separated by commas; left out: whoever gives a name")
    parser.add_argument("--against-first", action="store_true", help="compare each file with the first one only")
    parser.add_argument("--seed", type=int, help="of order and sides; left out: a random one, kept in the folder")
    parser.add_argument(
        "--import", dest="take_in", action="append", metavar="FILE", help="take ratings in from a file; do not serve"
    )
    parser.add_argument("--export", metavar="FILE", help="write ratings as .csv or .json; do not serve")
    parser.set_defaults(run_command=_run)
