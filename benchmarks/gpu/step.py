"""Run one numbered step of the GPU run and write its JSON as it goes.

python benchmarks/gpu/step.py correct --out FOLDER --work FOLDER [--dry-run]
"""

import argparse
import importlib
import os
import signal
import sys
from pathlib import Path

from common import STEPS, Results, provenance


def main() -> None:
    """Run the step that was named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("prepare", *STEPS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="what the steps leave for each other")
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--dry-run", action="store_true", help="tiny models on a CPU: that everything works")
    args = parser.parse_args()
    os.environ.setdefault("LLAMAFACTORY_VERBOSITY", "ERROR")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ["WANDB_DISABLED"] = "true"
    args.out.mkdir(parents=True, exist_ok=True)
    work = args.work / ("shared" if args.step in ("prepare", "study", "rollouts") else args.step)
    work.mkdir(parents=True, exist_ok=True)
    os.environ["LEDPO_CACHE"] = str(work / "cache")
    # The step's time is over: what a step has begun (processes of its own) is ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("the step's time is over"))
    results = Results(args.out / f"{args.step}.json", step=args.step, dry=args.dry_run, **provenance(args.commit))
    importlib.import_module(args.step).run(results, work, args.dry_run)
    results.write(complete=True)


if __name__ == "__main__":
    main()
