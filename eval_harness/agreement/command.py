"""`ledpo eval agree`: its arguments. What it does is imported when it is called."""

import argparse
from pathlib import Path

from ledpo_plugin.common.subcommands import Subcommands


def _run(args: argparse.Namespace) -> int:
    from ledpo_plugin.common.files import write_json
    from ledpo_plugin.common.run_record import package_versions

    from .comparing import compare
    from .comparisons import gain_table
    from .reading import ALPACA_EVAL, ANNOTATION, read_scores, read_verdicts

    verdicts = []
    columns = {"verdicts": None, "annotations": ALPACA_EVAL, "people": {**ANNOTATION, "item": "prompt"}}
    for kind, names in columns.items():
        for path in getattr(args, kind) or ():
            verdicts += read_verdicts(path, columns=names)
    tables = [gain_table(verdicts, name, against=args.against) for name in dict.fromkeys(v.method for v in verdicts)]
    for path in args.scores or ():
        tables += read_scores(path, lower_is_better=args.lower_is_better or ())
    if not tables:
        raise ValueError("There is nothing to compare: give --verdicts, --annotations, --people or --scores.")
    reference = args.reference or tables[0].method
    found = compare(tables, reference=reference)
    if args.output:
        write_json(Path(args.output), found | {"versions": package_versions()})
    print(text(found))
    return 0


def text(found: dict) -> str:
    """Return a comparison of methods as lines for a terminal."""
    lines = [f"{len(found['methods'])} methods, {len(found['models'])} models, {len(found['items'])} items in common"]
    for row in found["kept"]:
        lines.append(f"  {row['method']}: {row['n']} items, {(row['value'] or 0):.0%} of them in common")
    for key, what in (("per_model", "order of the models"), ("per_example", "differences, item by item")):
        lines.append(f"Correlation of the {what} (Spearman [95 %], Kendall's tau-b [95 %]):")
        pairs = dict.fromkeys((row["first"], row["second"]) for row in found[key])
        for first, second in pairs:
            own = [row for row in found[key] if (row["first"], row["second"]) == (first, second)]
            lines.append(f"  {first} / {second}: " + ", ".join(map(_shown, own)))
    lines.append(
        f"Which model each would have chosen on half of the items, and what that loses by {found['reference']} on the "
        "other half:"
    )
    lines += [f"  {row['method']}: {', '.join(row['chosen'])}, regret {_shown(row)}" for row in found["choices"]]
    lines.append("Items from which on 95 % of random subsets give the same order of the models:")
    for method, rows in found["stability"].items():
        lines.append(f"  {method}: {_shown(rows[0])}")
    return "\n".join(lines)


def _shown(row: dict) -> str:
    if row["value"] is None:
        return f"none ({row['reason']})"
    interval = "" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
    return f"{row['value']:.3f}{interval}"


def add_command(subparsers: Subcommands) -> None:
    """Add `agree` to the parsers of `ledpo eval`."""
    parser = subparsers.add_parser(
        "agree",
        help="how far judges, people and metrics agree",
        description="Compare evaluation methods that scored the same models on the same items.",
    )
    files = {"action": "append", "metavar": "FILE"}
    parser.add_argument("--verdicts", **files, help="item, method, model_1, model_2, preference (.json, .jsonl, .csv)")
    parser.add_argument("--annotations", **files, help="alpaca_eval's annotations")
    parser.add_argument("--people", **files, help="ratings exported by `ledpo eval annotate`, .json")
    parser.add_argument("--scores", **files, help="item, method, model, value")
    parser.add_argument("--lower-is-better", action="append", metavar="METHOD", help="a method of --scores")
    parser.add_argument("--against", help="the model that all others were compared with; left out: every two were")
    parser.add_argument("--reference", help="the method by which choices are judged; left out: the first")
    parser.add_argument("--output", help="takes every figure as JSON")
    parser.set_defaults(run_command=_run)
