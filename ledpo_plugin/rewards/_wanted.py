"""Which rewards a recipe wants: the one reading of reward_model, reward_model_type and reward_weights."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from ledpo_plugin.facts import REWARDS

ADDED_UP = frozenset({"mean", "std", "failed"})  # what the log calls the sum of all
_ODD = re.compile(r"[^\w.-]+")


@dataclass(frozen=True)
class Wanted:
    """One source of rewards, as the recipe names it."""

    kind: str  # of ledpo_plugin.facts.REWARDS
    where: str  # folder or hub name, URL, module:function
    weight: float
    name: str  # in the log; no two are alike


def split(text: str | None) -> list[str]:
    """Return the parts of a comma-separated text."""
    return [] if text is None else [part.strip() for part in str(text).split(",")]


def names_of(kinds: Sequence[str], wheres: Sequence[str]) -> list[str]:
    """Return a short name for each source: its folder's, its function's, or `api` (a URL may hold what is secret)."""
    names: list[str] = []
    for kind, where in zip(kinds, wheres, strict=True):
        called = REWARDS[kind].called
        if called == "kind":
            name = kind
        elif called == "function":
            name = where.rpartition(":")[2]
        else:
            name = where.replace("\\", "/").rstrip("/").rpartition("/")[2]
        name = _ODD.sub("_", name).strip("_") or kind
        number, plain = 2, name
        while name in names or name in ADDED_UP:
            name, number = f"{plain}_{number}", number + 1
        names.append(name)
    return names


def wanted(reward_model: str, reward_model_type: str, reward_weights: str | None) -> list[Wanted]:
    """Return the sources in the recipe's order; the recipe was found right before (`check_rewards`).

    Args:
        reward_model: names, separated by commas.
        reward_model_type: one kind for all, or as many as there are names.
        reward_weights: as many numbers, or None: all 1.
    """
    wheres = split(reward_model)
    kinds = split(reward_model_type)
    kinds = kinds * len(wheres) if len(kinds) == 1 else kinds
    weights = [float(weight) for weight in split(reward_weights)] or [1.0] * len(wheres)
    rows = zip(kinds, wheres, weights, names_of(kinds, wheres), strict=True)
    return [Wanted(kind, where, weight, name) for kind, where, weight, name in rows]


def is_local(url: str) -> bool:
    """Whether a URL leads to this machine."""
    host = urlsplit(url).hostname or ""
    return host == "localhost" or host.endswith(".localhost") or host == "::1" or host.startswith("127.")
