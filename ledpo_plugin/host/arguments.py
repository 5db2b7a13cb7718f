"""The host's argument classes, and what the plugin's stages add to them."""

import importlib
from collections.abc import Callable
from dataclasses import field, fields, make_dataclass
from functools import cache
from typing import Any, get_type_hints

from ledpo_plugin.facts import DEFAULT_REWARD
from ledpo_plugin.hparams import LedpoArguments

from .contract import PARSER, host_api

NEW_TOKENS = ("add_tokens", "add_special_tokens", "new_special_tokens_config")  # LLaMA-Factory then resizes, too


DRAWN = (*NEW_TOKENS, "resize_vocab", "train_from_scratch")  # weights are drawn at random while a model loads


def _after_init(self) -> None:
    from ledpo_plugin.facts import LOSSES
    from ledpo_plugin.stages import STAGES

    host_api().FinetuningArguments.__post_init__(self)
    self.ledpo_stage = self.stage
    self.use_ref_model = LOSSES[self.pref_loss].needs_reference or STAGES[self.stage].rollouts
    # The host's dispatch is an elif over its own names; run_dpo, replaced below, is ours to enter by.
    self.stage = "dpo"


def _to_dict(self) -> dict[str, Any]:
    return {**host_api().FinetuningArguments.to_dict(self), "stage": self.ledpo_stage}


@cache
def finetuning_class() -> type:
    """Return LLaMA-Factory's FinetuningArguments extended by the plugin's keys, for the plugin's stages."""
    # The host's parser hands all of a field's metadata to argparse, which knows no more than `help` of ours.
    own = [
        (item.name, item.type, field(default=item.default, metadata={"help": item.metadata["help"]}))
        for item in fields(LedpoArguments)
    ]
    # Wider than the host's Literals; ledpo_plugin.recipes.check has checked both before this is made.
    wider: list[Any] = [
        ("stage", str, field(default="ledpo")),
        ("pref_loss", str, field(default="sigmoid")),
        ("reward_model_type", str, field(default=DEFAULT_REWARD)),
    ]
    return make_dataclass(
        "LedpoFinetuningArguments",
        own + wider,
        bases=(LedpoArguments, host_api().FinetuningArguments),
        namespace={"__post_init__": _after_init, "to_dict": _to_dict},
    )


def recipe_keys() -> dict[str, Any]:
    """Return every key a recipe of the plugin's stages may have, with its type annotation."""
    parser = importlib.import_module(PARSER)
    keys: dict[str, Any] = {}
    for host_class in parser._TRAIN_ARGS:
        cls = finetuning_class() if host_class is parser.FinetuningArguments else host_class
        hints = get_type_hints(cls)
        keys |= {item.name: hints[item.name] for item in fields(cls) if item.init}
    return keys


def stock_keys() -> dict[str, Any]:
    """Return the stock fine-tuning keys with their annotations; nothing on a host whose class cannot be read."""
    try:
        return get_type_hints(importlib.import_module(PARSER).FinetuningArguments)
    except (AttributeError, NameError, TypeError):
        return {}


def parse_with_plugin_class(original: Callable, recipe: dict[str, Any]) -> Any:
    parser = importlib.import_module(PARSER)
    place = parser._TRAIN_ARGS.index(parser.FinetuningArguments)
    parser._TRAIN_ARGS[place] = finetuning_class()
    try:
        return original(recipe)
    finally:
        parser._TRAIN_ARGS[place] = parser.FinetuningArguments
