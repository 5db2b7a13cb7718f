"""Kinds of reward: one row a kind, which says everything that others rely on but the checks of recipes.

Recipes, documents and the web UI read these rows; what makes a reward is found from `where` when a run is built
(`ledpo_plugin.rewards`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from ledpo_plugin.common.lookup import by_name


@dataclass(frozen=True)
class Reward:
    """One row of the table of rewards."""

    name: str  # a value of `reward_model_type`
    where: str  # what builds it, "module:function"; a module that starts with a dot is one of ledpo_plugin.rewards
    place: str  # what `reward_model` names, with its article
    called: Literal["folder", "function", "kind"] = "folder"  # by what of `reward_model` the log calls it
    keys: tuple[str, ...] = ()  # recipe keys that only this kind reads
    without: str = ""  # why those have no effect where no reward is of this kind


# The first is what `reward_model_type` is where a recipe leaves it out.
REWARDS: Mapping[str, Reward] = MappingProxyType(
    by_name(
        Reward("lora", "._reward_model:build_lora", "a reward model's folder"),
        Reward(
            "full",
            "._reward_model:build_full",
            "a reward model's folder",
            keys=("reward_model_adapters", "reward_model_quantization_bit"),
            without="no reward model has weights of its own",
        ),
        Reward(
            "api",
            "._api:build_api",
            "a server's URL",
            called="kind",  # a URL may hold what is secret
            keys=("reward_timeout", "reward_retries"),
            without="no reward comes from a server",
        ),
        Reward("implicit", "._implicit:build_implicit", "a LEDPO run"),
        Reward("function", "._function:build_function", "module:function", called="function"),
    )
)
DEFAULT_REWARD = next(iter(REWARDS))
