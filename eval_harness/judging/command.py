"""`ledpo eval judge` and `ledpo eval winrate`: their arguments. What they do is imported when they are called."""

import argparse
import json
from pathlib import Path

from ledpo_plugin.common.subcommands import Subcommands


def _judge(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from eval_harness.annotation.items import read_items
    from ledpo_plugin.common.files import write_json, write_text

    from . import judge_items, read_judge, summarise
    from .summary import text

    judge = read_judge(Path(args.judge))
    items = read_items([Path(args.reference), *map(Path, args.outputs)], against_first=True)
    folder = Path(args.folder)
    done = judge_items(items, judge, folder, repeats=args.repeats, log=lambda line: print(line, flush=True))
    found = summarise(done, items, calibration=args.length_calibration)
    lines = "".join(json.dumps(asdict(verdict), ensure_ascii=True) + "\n" for verdict in done.verdicts)
    write_text(folder / "verdicts.jsonl", lines)
    write_json(folder / "annotations.json", list(done.annotations))
    write_json(folder / "summary.json", found)
    print(text(found))
    print(f"Everything is in {folder}: summary.json, verdicts.jsonl, annotations.json (alpaca_eval's format).")
    return 0


def _winrate(args: argparse.Namespace) -> int:
    from .summary import of_annotations

    for row in of_annotations(args.annotations):
        own = row["alpaca_eval"]
        shown = "no verdict" if own is None else f"win rate {own['win_rate']:.6f}, SE {own['standard_error']:.6f}"
        count = 0 if own is None else int(own["n_total"])
        print(f"{row['model']} against {row['against']}, by {row['judge']}: {shown}, n = {count} of {row['asked']}")
    return 0


def add_command(subparsers: Subcommands) -> None:
    """Add `judge` and `winrate` to the parsers of `ledpo eval`."""
    judge = subparsers.add_parser(
        "judge",
        help="win rates by a judge, through alpaca_eval",
        description="Have a judge compare outputs with reference outputs, in both orders. Answers are kept in the "
        "folder: the same command goes on where it was and asks nothing twice.",
    )
    judge.add_argument("outputs", nargs="+", help="files of outputs: JSON of instruction, output, generator")
    judge.add_argument("--reference", required=True, help="the outputs that they are compared with")
    judge.add_argument("--judge", required=True, help="YAML file of the judge")
    judge.add_argument("--folder", required=True, help="where answers and results are kept")
    judge.add_argument("--repeats", type=int, default=1, help="how often each order is asked; default 1")
    judge.add_argument("--length-calibration", metavar="FILE", help="AlpacaEval's df_gamed.csv, for its 805 prompts")
    judge.set_defaults(run_command=_judge)
    winrate = subparsers.add_parser("winrate", help="alpaca_eval's win rate of a file of its annotations")
    winrate.add_argument("annotations", help="JSON of instruction, generator_1, generator_2, annotator, preference")
    winrate.set_defaults(run_command=_winrate)
