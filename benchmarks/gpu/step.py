"""Run one numbered step of the GPU run and write its JSON as it goes.

python benchmarks/gpu/step.py correct --out FOLDER [--dry-run]
"""

import argparse
import importlib
import os
import tempfile
from pathlib import Path

STEPS = ("correct", "speed")


def main() -> None:
    """Run the step that was named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--dry-run", action="store_true", help="tiny models on a CPU: that everything works")
    args = parser.parse_args()
    os.environ.setdefault("LLAMAFACTORY_VERBOSITY", "ERROR")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ["WANDB_DISABLED"] = "true"
    args.out.mkdir(parents=True, exist_ok=True)
    # The parts are unpacked into a folder that is no site directory: what a .pth file does at start-up is done here.
    import ledpo_plugin.autoload

    ledpo_plugin.autoload.arm()
    with tempfile.TemporaryDirectory(prefix="ledpo-gpu-") as work:
        os.environ["LEDPO_CACHE"] = str(Path(work) / "cache")
        from common import Results, provenance

        results = Results(args.out / f"{args.step}.json", step=args.step, dry=args.dry_run, **provenance(args.commit))
        importlib.import_module(args.step).run(results, Path(work), args.dry_run)
        results.write(complete=True)


if __name__ == "__main__":
    main()
