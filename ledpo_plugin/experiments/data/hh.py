"""Real pairs at the size of a study: Anthropic's harmless-base file, which a user brings, split by prompt into three.

    ledpo prepare --hh test.jsonl.gz

The file is kept beside the data sets, so that whoever makes them again needs no more than `ledpo prepare`.
"""

import gzip
import hashlib
import json
import re
import shutil
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ledpo_plugin.common.atomic import replace_file
from ledpo_plugin.quickstart.data import DataError, pair_length
from ledpo_plugin.quickstart.downloads import sha256_of

from .rows import Row

KEPT = "hh_harmless.source"  # the user's file as it is, packed or not, in the folder of the data sets' folder
HUB = "https://huggingface.co/datasets/Anthropic/hh-rlhf/blob/main/harmless-base/test.jsonl.gz"
BRING = f"Download harmless-base/test.jsonl.gz of Anthropic/hh-rlhf ({HUB}) and run `ledpo prepare --hh FILE` with it."
HELD_OUT = (
    "By prompt: dialogues with the same first user message are in one set. They are ordered by the sha256 of that "
    "message; the test set is filled first, then the validation set, then the training set."
)
TURN = re.compile(r"\n\n(Human|Assistant):")
GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Sizes:
    """How many pairs each set has at most, and how long they may be, in tokens (prompt and the longer answer).

    The first limit is taken with which all sets are full, else the last one. Of the hub's 2,312 rows 1,650 fit 256
    tokens, 1,899 fit 320 and 2,083 fit 400: the sets for measuring are always full, the training set gets the rest.
    """

    test: int = 700
    validation: int = 350
    train: int = 1200
    limits: tuple[int, ...] = (256, 320, 400)  # the last is the cutoff_len of the recipes

    @property
    def least_train(self) -> int:
        """With fewer training pairs nothing is made."""
        return self.train // 2


NAMES = {"hh_test": "test", "hh_validation": "validation", "hh_train": "train"}  # in the order in which they are filled


def keep(file: Path, folder: Path) -> Path:
    """Copy a user's file, once it was read to its end, to where later calls find it; return the copy.

    Raises:
        DataError: it is not such a file; nothing was copied.
        OSError: the copy cannot be written.
    """
    read_pairs(file)
    copy = folder / KEPT
    folder.mkdir(parents=True, exist_ok=True)
    if not copy.is_file() or sha256_of(copy) != sha256_of(file):
        replace_file(copy, lambda part: shutil.copyfile(file, part))
    return copy


def kept(folder: Path) -> Path | None:
    """Return the copy that `keep` made in a folder, or None."""
    copy = folder / KEPT
    return copy if copy.is_file() else None


def require(names: Iterable[str], folder: Path) -> None:
    """Refuse names of sets that are made of the user's file where no such file was brought.

    Raises:
        DataError: says how to bring it.
    """
    missing = sorted(set(names) & set(NAMES))
    if missing and kept(folder) is None:
        raise DataError(f"{', '.join(missing)}: these sets are made of a file that was not brought yet. {BRING}")


def read_pairs(file: Path) -> tuple[list[Row], dict[str, int]]:
    """Return the usable pairs of a file in the hub's format, and how many rows were left out for which reason.

    Raises:
        DataError: the file cannot be read, or a row is not of that format.
    """
    pairs: list[Row] = []
    left_out: Counter[str] = Counter()
    seen: set[str] = set()
    for number, line in enumerate(_lines(file), start=1):
        if not line.strip():
            continue
        found = _pair(*_sides(line, file, number))
        if isinstance(found, dict):
            text = json.dumps(found, sort_keys=True)
            if text not in seen:
                seen.add(text)
                pairs.append(found)
                continue
            found = "the same pair again"
        left_out[found] += 1
    return pairs, dict(sorted(left_out.items()))


def make_hh(file: Path, tokenizer: Any, sizes: Sizes | None = None) -> tuple[dict[str, list[Row]], dict[str, Any]]:
    """Return the three sets by name, and what `sources.json` says of each.

    Raises:
        DataError: the file cannot be used, or too few of its pairs fit.
    """
    sizes = sizes or Sizes()
    pairs, left_out = read_pairs(file)
    count = pair_length(tokenizer)
    lengths = [count(pair) for pair in pairs]
    for limit in sizes.limits:
        fitting = [pair for pair, length in zip(pairs, lengths, strict=True) if length <= limit]
        sets = _filled(fitting, sizes)
        if all(len(sets[name]) == getattr(sizes, size) for name, size in NAMES.items()):
            break
    _require_enough(sets, sizes, file, len(pairs))
    used, rows = sum(map(len, sets.values())), len(pairs) + sum(left_out.values())
    left_out |= {f"longer than {limit} tokens": len(pairs) - len(fitting), "no room left": len(fitting) - used}
    about = {
        "kind": "real",
        "licence": "MIT",
        "source": {"file": "harmless-base of Anthropic/hh-rlhf", "address": HUB, "sha256": sha256_of(file)},
        "held_out": HELD_OUT,
        "selection": {
            "pairs_in_source": rows,
            "pairs_that_fit": {str(size): sum(n <= size for n in lengths) for size in sizes.limits},
            "limit": limit,
            "left_out": left_out,
        },
    }
    return sets, dict.fromkeys(sets, about)


def _lines(file: Path) -> Iterator[str]:
    """Yield the lines of a text file, packed by gzip or not."""
    try:
        with file.open("rb") as raw:
            packed = raw.read(2) == GZIP
        if file.suffix == ".gz" and not packed:
            raise DataError(f"{file} is named .gz but is not packed by gzip; it may be an error page. {BRING}")
        with gzip.open(file, "rt", encoding="utf-8") if packed else file.open(encoding="utf-8") as text:
            yield from text
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise DataError(f"{file} is damaged or no text ({error}). {BRING}") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror or error}). {BRING}") from None


def _sides(line: str, file: Path, number: int) -> tuple[str, str]:
    where = f"{file}, line {number}"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: it is no JSON ({error}); the hub's file has one object a line. {BRING}") from None
    sides = [row.get(side) for side in ("chosen", "rejected")] if isinstance(row, dict) else [None]
    if not all(isinstance(side, str) for side in sides):
        has = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        raise DataError(f"{where}: chosen and rejected are to be whole dialogues as texts; it has {has}. {BRING}")
    return sides[0], sides[1]


def _pair(chosen: str, rejected: str) -> Row | str:
    """Return two dialogues as a pair, or why they are none."""
    prompt, _, good = chosen.rpartition("\n\nAssistant:")
    other, _, bad = rejected.rpartition("\n\nAssistant:")
    if prompt != other:
        return "the two dialogues do not share the prompt"
    good, bad = good.strip(), bad.strip()
    if not good or not bad:
        return "an answer is empty"
    if good == bad:
        return "the answers are the same"
    head, *parts = TURN.split(prompt)
    who, texts = parts[::2], [text.strip() for text in parts[1::2]]
    regular = who == ["Human", "Assistant"] * (len(who) // 2) + ["Human"]
    if head.strip() or not regular or not all(texts) or TURN.search(good) or TURN.search(bad):
        return "user and assistant do not take turns"
    return {
        "conversations": [
            {"from": "human" if name == "Human" else "gpt", "value": text}
            for name, text in zip(who, texts, strict=True)
        ],
        "chosen": {"from": "gpt", "value": good},
        "rejected": {"from": "gpt", "value": bad},
    }


def _filled(pairs: Sequence[Row], sizes: Sizes) -> dict[str, list[Row]]:
    """Return the sets: groups of pairs with one first user message, by its hash, into the first set with room."""
    groups: dict[str, list[Row]] = {}
    for pair in pairs:
        opening = " ".join(pair["conversations"][0]["value"].lower().split())
        groups.setdefault(hashlib.sha256(opening.encode()).hexdigest(), []).append(pair)
    sets: dict[str, list[Row]] = {name: [] for name in NAMES}
    for _, group in sorted(groups.items()):
        for name, size in NAMES.items():
            if len(sets[name]) + len(group) <= getattr(sizes, size):
                sets[name] += group
                break
    return sets


def _require_enough(sets: dict[str, list[Row]], sizes: Sizes, file: Path, usable: int) -> None:
    least = {"hh_test": sizes.test, "hh_validation": sizes.validation, "hh_train": sizes.least_train}
    short = [f"{name} {len(sets[name])} of at least {size}" for name, size in least.items() if len(sets[name]) < size]
    if short:
        raise DataError(
            f"{file} has too few rows for a study: of its {usable} usable pairs, those of at most {sizes.limits[-1]} "
            f"tokens give {', '.join(short)}. {BRING}"
        )
