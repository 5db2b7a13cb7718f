"""The `ledpo` command. Training itself is LLaMA-Factory's: `llamafactory-cli train recipe.yaml`."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from eval_harness.command import add_commands as add_evaluation
from ledpo_plugin import __version__
from ledpo_plugin.common.subcommands import Subcommands


def _doctor(args: argparse.Namespace) -> int:
    try:
        from .doctor import describe, examine, healthy
    except ImportError as error:
        raise RuntimeError(
            f"The LEDPO stages will NOT run: the plugin cannot be imported ({error}). Install what it "
            "misses, as pyproject.toml lists it. Stock stages are not affected."
        ) from error
    report = examine()
    print(json.dumps(report, indent=2) if args.json else describe(report))
    return 0 if healthy(report) else 1


def _beta(args: argparse.Namespace) -> int:
    from ledpo_plugin.modeling.inference import beta_of_prompts
    from ledpo_plugin.modeling.prompt_files import read_prompts

    from .beta import table

    prompts = read_prompts(args.prompts) if args.prompts else list(args.prompt or [])
    if not prompts:
        raise ValueError("Give prompts: --prompts FILE (.txt, .json, .jsonl) or --prompt TEXT.")
    rows = beta_of_prompts(args.run, prompts, batch_size=args.batch_size, trust_remote_code=args.trust_remote_code)
    print("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) if args.jsonl else table(rows))
    return 0


def _validate(args: argparse.Namespace) -> int:
    from omegaconf import OmegaConf  # as the host reads recipes; YAML proper reads 1e-3 as text

    from ledpo_plugin.host.arguments import recipe_keys, stock_keys
    from ledpo_plugin.readiness import require_supported
    from ledpo_plugin.recipes.check import RecipeError, check_recipe, check_stock_recipe, is_plugin_recipe
    from ledpo_plugin.recipes.files import data_notes
    from ledpo_plugin.recipes.reading import read

    from .experiments import experiments_and_recipes, validate_experiment

    require_supported()
    failed, keys = 0, recipe_keys()
    with_files = False if args.no_files else None
    experiments, recipes = experiments_and_recipes(args.recipes)
    for folder in experiments:
        good, text = validate_experiment(folder, keys, with_files)
        failed += not good
        print(text)
    for path in recipes:
        recipe = OmegaConf.to_container(OmegaConf.load(path))
        if not isinstance(recipe, dict):
            print(f"{path}: not a mapping of keys to values")
            failed += 1
            continue
        if is_plugin_recipe(recipe):
            problems = check_recipe(recipe, keys, os.environ, with_files=not args.no_files)
        else:
            problems = check_stock_recipe(recipe, stock_keys())
        failed += bool(problems)
        print(f"{path}: {RecipeError(problems)}" if problems else f"{path}: good")
        if not problems and not args.no_files and is_plugin_recipe(recipe):
            for note in data_notes(read(recipe, keys, os.environ)):
                print(f"  note: {note}")
    return 1 if failed else 0


def _experiments(name: str) -> Callable[[argparse.Namespace], int]:
    """Return a command of `cli.experiments`, imported when it is called."""

    def command(args: argparse.Namespace) -> int:
        from . import experiments as commands

        return getattr(commands, name)(args)

    return command


def _cache(args: argparse.Namespace) -> int:
    from omegaconf import OmegaConf

    from ledpo_plugin.workflow import fill_caches

    recipe = OmegaConf.merge(OmegaConf.load(args.recipe), OmegaConf.from_cli(args.overrides))
    print("\n".join(fill_caches(OmegaConf.to_container(recipe))))
    return 0


def _quickstart(args: argparse.Namespace) -> int:
    from ledpo_plugin import quickstart

    if args.action == "prepare":
        quickstart.prepare(Path(args.workdir), model=args.model)
    else:
        print(quickstart.show(Path(args.run)))
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(prog="ledpo", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)

    doctor = commands.add_parser("doctor", help="versions, hooks and known bugs of the installed host")
    doctor.add_argument("--json", action="store_true")
    doctor.set_defaults(run_command=_doctor)

    validate = commands.add_parser("validate", help="check recipes and experiments without loading a model")
    validate.add_argument("recipes", nargs="+", help="recipes, folders of experiments, or folders of either")
    validate.add_argument("--no-files", action="store_true", help="do not ask what is on this machine")
    validate.set_defaults(run_command=_validate)

    cache = commands.add_parser("cache", help="compute what the reference model says of a recipe's data, once for all")
    cache.add_argument("recipe")
    cache.add_argument("overrides", nargs="*", help="key=value, as for llamafactory-cli train")
    cache.set_defaults(run_command=_cache)

    beta = commands.add_parser("beta", help="beta(x) per prompt of a trained run")
    beta.add_argument("run", help="output_dir of a run, or one of its checkpoints")
    beta.add_argument("--prompts", help="file of prompts: .txt (one a line), .json or .jsonl")
    beta.add_argument("--prompt", action="append", help="a prompt; may be repeated")
    beta.add_argument("--jsonl", action="store_true", help="one JSON object a line instead of a table")
    beta.add_argument("--batch-size", type=int, default=8)
    beta.add_argument("--trust-remote-code", action="store_true", help="let the model's own code run")
    beta.set_defaults(run_command=_beta)

    _add_experiments(commands)

    evaluate = commands.add_parser("eval", help="evaluate trained models")
    add_evaluation(evaluate.add_subparsers(dest="action", required=True))

    quickstart = commands.add_parser("quickstart", help="bring the quickstart's model and data; show its results")
    actions = quickstart.add_subparsers(dest="action", required=True)
    prepare = actions.add_parser("prepare")
    prepare.add_argument("--workdir", default=".ledpo")
    prepare.add_argument("--model", help="a hub name or folder to use instead of SmolLM2-135M-Instruct")
    show = actions.add_parser("show")
    show.add_argument("run", nargs="?", default="runs/quickstart")
    quickstart.set_defaults(run_command=_quickstart)
    return parser


def _add_experiments(commands: Subcommands) -> None:
    """Add the commands that run, follow and report experiments, and the one that makes their models and data."""
    run = commands.add_parser("run", help="run an experiment, or what of it is open, and write its report")
    run.add_argument("experiment", help="an experiment's folder, such as yaml_recipes/loss_variants_impact")
    run.add_argument("--profile", default="cpu", help="a profile of its experiment.yaml; default cpu")
    run.add_argument("--only", help="variants, separated by commas; left out: all")
    run.add_argument("--seeds", help="seeds, separated by commas; left out: the profile's")
    run.add_argument("--results", help="results folder; left out: runs/experiments/NAME/PROFILE")
    run.add_argument(
        "--keep",
        metavar="FOLDER",
        help="where finished runs are kept as a small file each: those that are there are not run again; commit it, "
        "and another machine goes on from it",
    )
    run.add_argument("--dry-run", action="store_true", help="list the runs and what they cost, and run nothing")
    run.add_argument("--launcher", choices=("local", "ray"), default="local")
    run.add_argument(
        "--ray-address", help="of the cluster, for --launcher ray; left out: RAY_ADDRESS or this machine's"
    )
    run.add_argument("--jobs", type=int, help="runs side by side; left out: as many as there is room for")
    run.set_defaults(run_command=_experiments("run"))
    for name, text in (
        ("status", "how far the runs of an experiment are"),
        ("report", "write the report of what is finished of an experiment, or anew from a results.json"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("experiment", help="an experiment's folder, or a results folder")
        command.add_argument("--profile", default="cpu")
        command.add_argument("--results", help="results folder, where it is not the default one")
        if name == "report":
            command.add_argument("--no-samples", action="store_true", help="leave prompts and answers out")
            command.add_argument(
                "--beside",
                action="append",
                metavar="FOLDER",
                help="a further folder with a report in which some of the runs may stand as well; may be repeated",
            )
        command.set_defaults(run_command=_experiments(name))
    prepare = commands.add_parser("prepare", help="make the models and data of the experiments' cpu and study profiles")
    prepare.add_argument("--workdir", default=".ledpo")
    prepare.add_argument(
        "--hh",
        metavar="FILE",
        help="harmless-base/test.jsonl.gz of Anthropic/hh-rlhf, for the study profiles; given once, it is kept",
    )
    prepare.set_defaults(run_command=_experiments("prepare"))


def main(argv: list[str] | None = None) -> int:
    """Run the command; an error a user can mend is one message and exit status 1, not a traceback."""
    args = build_parser().parse_args(argv)
    try:
        return args.run_command(args)
    except KeyboardInterrupt:
        print(f"ledpo {args.command}: interrupted; what was finished is kept.", file=sys.stderr)
        return 130
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        if os.environ.get("LEDPO_TRACEBACK"):
            raise
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"ledpo {args.command}: {message}", file=sys.stderr)
        return 1
