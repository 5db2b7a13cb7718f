"""`ledpo eval tasks`: its arguments. What it does is imported when it is called."""

import argparse
from pathlib import Path

from ledpo_plugin.common.subcommands import Subcommands


def _run(args: argparse.Namespace) -> int:
    from eval_harness.generation.loading import load

    from .evaluating import evaluate, table
    from .preparing import prepare

    loaded = load(args.model, template=args.template, adapter=args.adapter, trust_remote_code=args.trust_remote_code)
    folder = Path(args.folder)
    made = prepare(
        loaded, args.dataset, args.dataset_dir, folder, form="chat" if args.chat else "rendered", limit=args.limit,
        domain=args.domain, batch_size=args.batch_size,
    )  # fmt: skip
    print(f"{made['rows']} rows of {args.dataset} in {folder}. With lm-eval itself:\n  {made['lm_eval']}", flush=True)
    if made["groups"]:
        print(f"By domain: {', '.join(made['groups'])}", flush=True)
    if not args.prepare_only:
        names = [name.strip() for name in args.tasks.split(",")] if args.tasks else None
        print(table(evaluate(loaded, folder, names, batch_size=args.batch_size)["rows"]))
        print(f"Results with their provenance: {folder / 'results.json'}")
    return 0


def add_command(subparsers: Subcommands) -> None:
    """Add `tasks` to the parsers of `ledpo eval`."""
    parser = subparsers.add_parser(
        "tasks",
        help="preference accuracy, implicit rewards and likelihoods, by lm-eval",
        description="Write a folder of lm-eval tasks for a data set and a model, and run it.",
    )
    parser.add_argument("model", help="a run's folder or checkpoint, or a model's folder or hub name")
    parser.add_argument("--dataset", required=True, help="a data set of dataset_info.json: pairs or instructions")
    parser.add_argument("--dataset-dir", default="data")
    parser.add_argument("--folder", required=True, help="takes the tasks' files and the results")
    parser.add_argument("--tasks", help="names, separated by commas; left out: all that the data set allows")
    parser.add_argument("--template", help="of LLaMA-Factory, for a model that is no run")
    parser.add_argument("--adapter", help="a PEFT folder, on top of a model that is no run")
    parser.add_argument("--chat", action="store_true", help="for lm_eval --apply_chat_template")
    parser.add_argument("--domain", default="domain", help="field of a row that names its domain")
    parser.add_argument("--limit", type=int, help="rows at most")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--prepare-only", action="store_true", help="write the folder and run nothing")
    parser.add_argument("--trust-remote-code", action="store_true", help="let the model's own code run")
    parser.set_defaults(run_command=_run)
