"""Prompts from a file: text, JSON or JSON lines."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

NOT_ASKED = ("system", "gpt", "assistant")  # who speaks in turns that are no prompt


PROMPT_KEYS = ("prompt", "instruction", "question", "query", "text")


def read_prompts(path: str | Path) -> list[str]:
    """Read prompts: one a line (.txt), or records (.json, .jsonl) with a prompt, instruction or conversation.

    Raises:
        ValueError: the file holds no prompt, or a record without one; the message says which and what is expected.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8-sig")
    # Only a newline ends a line: str.splitlines would also break at U+2028 within a text.
    lines = [line for line in text.split("\n") if line.strip()]
    if path.suffix == ".jsonl":
        records: Iterable[Any] = [json.loads(line) for line in lines]
    elif path.suffix == ".json":
        records = json.loads(text)
    else:
        records = [line.rstrip("\r") for line in lines]
    if not isinstance(records, list):
        raise ValueError(f"{path} holds one {type(records).__name__}; a list of prompts or records is expected.")
    prompts = [_prompt_of(record, index, path) for index, record in enumerate(records)]
    if not prompts:
        raise ValueError(f"{path} holds no prompt.")
    return prompts


def _prompt_of(record: Any, index: int, path: Path) -> str:
    if isinstance(record, str):
        return record
    if isinstance(record, dict):
        for key in PROMPT_KEYS:
            if isinstance(record.get(key), str):
                return "\n".join(part for part in (record[key], record.get("input")) if part)
        turns = record.get("conversations") or record.get("messages")
        turns = [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
        asked = [turn for turn in turns if turn.get("from", turn.get("role")) not in NOT_ASKED]
        if asked:
            content = asked[0].get("value", asked[0].get("content"))
            if isinstance(content, str):
                return content
    raise ValueError(
        f"{path}: record {index} holds no prompt. Give a string, or an object with one of "
        f"{', '.join(PROMPT_KEYS)}, conversations or messages."
    )
