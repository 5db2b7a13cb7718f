"""Small inputs after public bug reports of people who train on preferences: rows and entries, of random words."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import WORDS

OPENAI_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
PAIRS = {
    "formatting": "sharegpt",
    "ranking": True,
    "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
}
WITH_TOOLS = PAIRS | {"columns": PAIRS["columns"] | {"tools": "tools"}}
LABELLED = {
    "formatting": "sharegpt",
    "columns": {"messages": "messages", "kto_tag": "label"},
    "tags": OPENAI_TAGS,
}
ALPACA = {"prompt": "instruction", "query": "input"}
TOOLS = json.dumps(
    [{"name": "add", "description": "sum", "parameters": {"type": "object", "properties": {"a": {"type": "number"}}}}]
)


def say(rng: random.Random, low: int = 3, high: int = 6) -> str:
    """Return some random words."""
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))


def gpt(text: Any) -> dict[str, Any]:
    return {"from": "gpt", "value": text}


def human(text: Any) -> dict[str, Any]:
    return {"from": "human", "value": text}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def pair(rng: random.Random, turns: list[dict], **more: Any) -> dict[str, Any]:
    return {"conversations": turns, "chosen": gpt(say(rng)), "rejected": gpt(say(rng)), **more}


def plain(rng: random.Random, i: int) -> dict[str, Any]:
    return pair(rng, [human(say(rng))])


def swapped(rng: random.Random, i: int) -> dict[str, Any]:
    return pair(rng, [gpt(say(rng)), human(say(rng))])


def _many_turns(rng: random.Random, i: int) -> dict[str, Any]:
    turns = [human(say(rng))]
    for _ in range(i % 3):
        turns += [gpt(say(rng)), human(say(rng))]
    return pair(rng, [{"from": "system", "value": say(rng)}, *turns] if i % 2 else turns)


def _call(rng: random.Random, i: int) -> dict[str, Any]:
    right, wrong = (json.dumps({"name": "add", "arguments": {"a": number}}) for number in (i, i + 1))
    chosen, rejected = {"from": "function_call", "value": right}, {"from": "function_call", "value": wrong}
    return {"conversations": [human(f"add {i}")], "chosen": chosen, "rejected": rejected, "tools": TOOLS}


def _after_call(rng: random.Random, i: int) -> dict[str, Any]:
    call = {"from": "function_call", "value": json.dumps({"name": "add", "arguments": {"a": i}})}
    return pair(rng, [human(f"add {i}"), call, {"from": "observation", "value": str(i)}], tools=TOOLS)


def _ultra(rng: random.Random, i: int) -> dict[str, Any]:
    asked = [user(say(rng))]
    sides = {side: [*asked, assistant(say(rng))] for side in ("chosen", "rejected")}
    return {"prompt": say(rng), **sides, "messages": asked}


def labelled(rng: random.Random, label: Any) -> dict[str, Any]:
    return {"messages": [user(say(rng)), assistant(say(rng))], "label": label}


def _alpaca(rng: random.Random, i: int) -> dict[str, Any]:
    row = {"instruction": say(rng), "input": say(rng), "chosen": say(rng), "rejected": say(rng)}
    return row | {"sys": say(rng), "hist": [[say(rng), say(rng)]]}


def _list(rng: random.Random, i: int) -> dict[str, Any]:
    return {"instruction": say(rng), "input": "", "output": [say(rng), say(rng)]}


def _odd_letters(rng: random.Random, i: int) -> dict[str, Any]:
    turns = [human(f"na\u00efve \x00 \U0001f600 \u65e5\u672c\u8a9e {say(rng)}")]
    return {
        "conversations": turns,
        "chosen": gpt(f"\u202e{say(rng)}\x00x"),
        "rejected": gpt(f"\u00e9\ufffd {say(rng)}"),
    }


Rows = tuple[dict[str, Any], Callable[[random.Random, int], dict[str, Any]]]
ALL_ALPACA = ALPACA | {"chosen": "chosen", "rejected": "rejected", "system": "sys", "history": "hist"}
# What is read: entry, and the row of a number.
READ: dict[str, Rows] = {
    "many turns, system": (PAIRS, _many_turns),
    "tools": (WITH_TOOLS, _call),
    "results of tools": (WITH_TOOLS, _after_call),
    "long prompts": (PAIRS, lambda rng, i: pair(rng, [human(say(rng, 200, 220))])),
    "white space": (PAIRS, lambda rng, i: pair(rng, [human(f"  {say(rng)} \n")]) | {"chosen": gpt(f"\n\n{say(rng)} ")}),
    "odd letters": (PAIRS, _odd_letters),
    "whole dialogues": (PAIRS | {"columns": PAIRS["columns"] | {"messages": "messages"}, "tags": OPENAI_TAGS}, _ultra),
    "duplicates": (PAIRS, lambda rng, i: plain(random.Random(1), 0)),
    "empty rejected": (PAIRS, lambda rng, i: plain(rng, i) | ({"rejected": gpt("")} if i % 2 else {})),
    "alpaca with history": ({"ranking": True, "columns": ALL_ALPACA}, _alpaca),
    "alpaca, list of two": ({"ranking": True, "columns": ALPACA | {"response": "output"}}, _list),
    "labels": (LABELLED, lambda rng, i: labelled(rng, i % 2 == 0)),
    "labels 1": (LABELLED, lambda rng, i: labelled(rng, True)),
    "labels 0": (LABELLED, lambda rng, i: labelled(rng, False)),
    "labels 0/1": (LABELLED, lambda rng, i: labelled(rng, i % 2)),
    "labels in words": (LABELLED, lambda rng, i: labelled(rng, ("true", "false")[i % 2])),
    "labels of one text": (LABELLED, lambda rng, i: labelled(random.Random(1), i % 2 == 0)),
}
NUMBERS: Rows = (PAIRS, lambda rng, i: {"conversations": [human(i)], "chosen": gpt(i + 1), "rejected": gpt(i + 2)})
SWAPPED: Rows = (PAIRS, swapped)


def is_labelled(entry: dict[str, Any]) -> bool:
    return "kto_tag" in entry["columns"]


def rows_of(source: Rows, count: int = 16) -> list[dict[str, Any]]:
    """Return the first rows of an input."""
    rng = random.Random(5)
    return [source[1](rng, i) for i in range(count)]


def write_data(folder: Path, name: str, entry: dict[str, Any], rows: list[dict[str, Any]]) -> Path:
    """Write a data set into a folder beside what is there; return the folder."""
    folder.mkdir(exist_ok=True)
    config = folder / "dataset_info.json"
    known = json.loads(config.read_text()) if config.is_file() else {}
    (folder / f"{name}.json").write_text(json.dumps(rows))
    config.write_text(json.dumps(known | {name: {"file_name": f"{name}.json", **entry}}))
    return folder
