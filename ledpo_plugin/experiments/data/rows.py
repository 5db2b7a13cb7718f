"""Rows of preference data, and choices that depend on their names alone."""

import random
from typing import Any

Row = dict[str, Any]


def pair(prompt: str, chosen: str, rejected: str, **notes: Any) -> Row:
    """Return a sharegpt preference pair; `notes` are further columns, which LLaMA-Factory passes over."""
    return {
        "conversations": [{"from": "human", "value": prompt}],
        "chosen": {"from": "gpt", "value": chosen},
        "rejected": {"from": "gpt", "value": rejected},
        **notes,
    }


def prompt_of(row: Row) -> str:
    """Return the user's messages of a pair, without differences in case and white space."""
    return "\n".join(
        " ".join(turn["value"].lower().split()) for turn in row["conversations"] if turn["from"] == "human"
    )


def stream(*name: Any) -> random.Random:
    """Return a random generator that is a function of its name (a string seed does not depend on PYTHONHASHSEED)."""
    return random.Random("/".join(map(str, name)))
