"""`ledpo eval generate`: its arguments. What it does is imported when it is called."""

import argparse
import hashlib
import json
from pathlib import Path

from ledpo_plugin.common.subcommands import Subcommands

FLAGS = {
    "temperature": float, "top_p": float, "top_k": int, "typical_p": float, "min_p": float, "num_beams": int,
    "repetition_penalty": float,
}  # fmt: skip


def _decoding(args: argparse.Namespace):
    from .decoding import DecodingError, read_decoding

    flags = {key: getattr(args, key) for key in FLAGS if getattr(args, key) is not None}
    if args.decoding and flags:
        raise DecodingError(f"--decoding gives all settings, and {', '.join(flags)} gives more. Use one of the two.")
    if args.decoding:
        return read_decoding(Path(args.decoding))
    method = "beam" if "num_beams" in flags else "sample" if set(flags) - {"repetition_penalty"} else "greedy"
    return read_decoding(flags | {"method": method})


def _run(args: argparse.Namespace) -> int:
    from ledpo_plugin.common.files import write_json

    from .prompts import PromptError, prompts_of_dataset, prompts_of_file

    for key in ("batch_size", "max_new_tokens", "limit"):
        value = getattr(args, key)
        if value is not None and value < 1:
            raise ValueError(f"--{key.replace('_', '-')} is {value}; at least 1 is needed. Set it to 1 or more.")
    decoding = _decoding(args)
    if (args.prompts is None) == (args.dataset is None):
        raise PromptError("Give prompts by exactly one of --prompts FILE and --dataset NAME.")
    left_out = 0
    if args.prompts:
        prompts = prompts_of_file(args.prompts)[: args.limit]
    else:
        prompts, left_out = prompts_of_dataset(args.dataset, args.dataset_dir, args.limit)
    from ledpo_plugin.common.run_record import package_versions

    from .generating import generate
    from .loading import load

    loaded = load(args.model, template=args.template, adapter=args.adapter, trust_remote_code=args.trust_remote_code)
    output = Path(args.output)
    rows = generate(
        loaded, prompts, decoding, seed=args.seed, max_new_tokens=args.max_new_tokens, batch_size=args.batch_size,
        folder=output.with_name(output.name + ".batches"), backend=args.backend,
    )  # fmt: skip
    name = args.name or _name(Path(args.model))
    write_json(output, [row | {"generator": name} for row in rows])
    tokens, seconds = sum(row["tokens"] for row in rows), sum(row["seconds"] for row in rows)
    about = {
        "generator": name,
        "model": str(args.model),
        "model_identity": loaded.identity,
        "decoding": decoding.settings(),
        "seed": args.seed,
        "max_new_tokens": args.max_new_tokens,
        "prompts_sha256": hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
        "n": len(rows),
        "left_out": left_out,
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds if seconds else None,
        "ended": sum(row["ended"] for row in rows),
        "versions": package_versions(),
    }
    write_json(output.with_name(output.name + ".provenance.json"), about)
    skipped = (
        f" ({left_out} rows of several turns, or with a prompt that was there before, left out)" if left_out else ""
    )
    print(f"{len(rows)} answers of {name} in {output}{skipped}; {tokens} tokens, {about['ended']} ended by themselves")
    return 0


def _name(model: Path) -> str:
    """Return what a model is called: its folder's name, with the run's where that is only `train`."""
    return model.name if model.name != "train" else "-".join(model.parts[-3:-1])


def add_command(subparsers: Subcommands) -> None:
    """Add `generate` to the parsers of `ledpo eval`."""
    parser = subparsers.add_parser(
        "generate",
        help="a model's answers to prompts, in AlpacaEval's format",
        description="Answers to prompts, greedy where nothing else is said. Finished batches are kept: "
        "the same command goes on where it was.",
    )
    parser.add_argument("model", help="a run's folder or checkpoint, or a model's folder or hub name")
    parser.add_argument("--prompts", help="file of prompts: .txt (one a line), .json or .jsonl")
    parser.add_argument("--dataset", help="or a data set of dataset_info.json: its prompts of one turn")
    parser.add_argument("--dataset-dir", default="data")
    parser.add_argument("--output", required=True, help="JSON file of instruction, output, generator")
    parser.add_argument("--name", help="the generator's name; left out: the model's folder")
    parser.add_argument("--template", help="of LLaMA-Factory, for a model that is no run")
    parser.add_argument("--adapter", help="a PEFT folder, on top of a model that is no run")
    parser.add_argument("--decoding", help="YAML file of settings, for those that have no flag, such as `adaptive`")
    for name, kind in FLAGS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--limit", type=int, help="prompts at most")
    parser.add_argument("--backend", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--trust-remote-code", action="store_true", help="let the model's own code run")
    parser.set_defaults(run_command=_run)
