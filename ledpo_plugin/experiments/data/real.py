"""The real sets: preference pairs and instructions out of LLaMA-Factory's demo data, short ones, split by prompt."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ledpo_plugin.quickstart.data import DataError, pair_length, read_demo, shortest, split_by_prompt

from .rows import Row, prompt_of

PAIRS, INSTRUCTIONS = "dpo_en_demo", "alpaca_en_demo"
INSTRUCTION_HELDOUT_SHARE = 0.1


@dataclass(frozen=True)
class Limits:
    """How long rows may be, in tokens (prompt and the longer answer), and how many are taken.

    Of the 300 real pairs 25 fit 256 tokens, 42 fit 320 and 69 fit 400: `general` is the middle, since on a CPU the time
    of an experiment is that of its longest rows. `longer` are those up to 448, for what is trained once. All other sets
    fit 256.
    """

    general: int = 320
    longer: int = 448
    general_train: int = 48
    general_heldout: int = 48
    instruction: int = 160
    instructions_train: int = 400
    instructions_heldout: int = 24
    synthetic: int = 256


def make_real(sdist: Path, tokenizer: Any, limits: Limits) -> tuple[dict[str, list[Row]], dict[str, Any]]:
    """Return the real sets by name, and what `sources.json` says of their selection.

    Raises:
        DataError: the archive is not the known one, or too little of it fits.
    """
    records, _ = read_demo(sdist)
    pairs = records[PAIRS]
    count = pair_length(tokenizer)
    lengths = [count(pair) for pair in pairs]
    train, heldout = split_by_prompt(pairs)
    sets = {
        "general_train": [pairs[i] for i in shortest(train, lengths, limits.general, limits.general_train)],
        "general_heldout": [pairs[i] for i in shortest(heldout, lengths, limits.general, limits.general_heldout)],
    }
    asked = {prompt_of(row) for rows in sets.values() for row in rows}
    sets["general_longer"] = [
        pair
        for pair, length in zip(pairs, lengths, strict=True)
        if limits.general < length <= limits.longer and prompt_of(pair) not in asked
    ]
    sets = {name: _fitting(name, rows, 2) for name, rows in sets.items()}
    sets["general_rated_train"] = rated(sets["general_train"])
    notes = {
        "pairs_in_source": len(pairs),
        "pairs_that_fit": {
            str(limit): sum(n <= limit for n in lengths) for limit in sorted({256, 400, limits.general})
        },
    }
    return sets | _instructions(records[INSTRUCTIONS], count, limits), notes


def rated(pairs: Sequence[Row]) -> list[Row]:
    """Return each pair as two single answers with a `kto_tag`, half of the one kind and half of the other.

    LLaMA-Factory makes KTO's KL term from a prompt and its neighbour's answer (the first row's neighbour is the last).
    So both answers to a prompt are half the list apart, and neighbours ask different things.

    Raises:
        DataError: so many pairs ask the same that neighbours cannot differ.
    """
    order = _apart(pairs)
    rows = []
    for half in (0, 1):
        for i, row in enumerate(order):
            good = i % 2 == half
            answer = row["chosen"] if good else row["rejected"]
            rows.append({"conversations": [*row["conversations"], answer], "kto_tag": good})
    return rows


def _apart(pairs: Sequence[Row]) -> list[Row]:
    """Return the pairs in an order in which no neighbours, the ends counted as such, ask the same."""
    groups: dict[str, list[Row]] = {}
    for row in pairs:
        groups.setdefault(prompt_of(row), []).append(row)
    # The largest group first, on every second place: it cannot meet itself unless it is more than half of all.
    grouped = iter([row for group in sorted(groups.values(), key=len, reverse=True) for row in group])
    order: list[Row] = [{}] * len(pairs)
    for place in (*range(0, len(pairs), 2), *range(1, len(pairs), 2)):
        order[place] = next(grouped)
    prompts = [prompt_of(row) for row in order]
    if len(prompts) < 2 or any(a == b for a, b in zip(prompts, prompts[1:] + prompts[:1], strict=True)):
        raise DataError("Too few different prompts among the pairs to rate their answers apart; raise Limits.general.")
    return order


def as_pair(instruction: Row) -> Row:
    """Return an alpaca row as a pair with twice the same answer, for what splits and counts pairs."""
    prompt = "\n".join(part for part in (instruction["instruction"], instruction.get("input")) if part)
    answer = {"from": "gpt", "value": instruction["output"]}
    return {"conversations": [{"from": "human", "value": prompt}], "chosen": answer, "rejected": answer}


def tokens(lengths: Sequence[int]) -> dict[str, float]:
    """Return the smallest, the median and the largest of some lengths."""
    return {"min": min(lengths), "median": statistics.median(lengths), "max": max(lengths)}


def _instructions(rows: list[Row], count: Any, limits: Limits) -> dict[str, list[Row]]:
    usable = [row for row in rows if row["output"].strip()]
    short = [row for row in usable if count(as_pair(row)) <= limits.instruction]
    train, heldout = split_by_prompt([as_pair(row) for row in short], INSTRUCTION_HELDOUT_SHARE)
    return {
        name: _fitting(name, [short[i] for i in indices][: getattr(limits, name)], 1)
        for name, indices in (("instructions_train", train), ("instructions_heldout", heldout))
    }


def _fitting(name: str, rows: list[Row], at_least: int) -> list[Row]:
    if len(rows) < at_least:
        raise DataError(
            f"{name}: {len(rows)} rows fit with this model's tokenizer. Use a model with a tokenizer that knows "
            f"English, or raise the limits (Limits in ledpo_plugin/experiments/data/real.py)."
        )
    return rows
