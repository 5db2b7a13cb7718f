"""Adapters: their files, their names in a model, and which of them is at work."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def is_peft(model: nn.Module) -> bool:
    """Whether a model holds adapters (a plain one into which some were merged keeps a `peft_config`, too)."""
    from peft import PeftModel

    return isinstance(model, PeftModel)


@contextmanager
def kept(model: nn.Module) -> Iterator[None]:
    """Put back which parameters take a gradient and which modules are in training: PEFT changes both as it goes."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode


@contextmanager
def at_work(model: nn.Module, name: str | None) -> Iterator[nn.Module]:
    """Let one adapter of a PEFT model be the active one, or none at all; afterwards all is as it was.

    Args:
        model: a `PeftModel`.
        name: of the adapter; None: the base model speaks.
    """
    before = model.active_adapter
    with kept(model):
        if name is None:
            with model.disable_adapter():
                yield model
            return
        model.set_adapter(name)
        try:
            yield model
        finally:
            model.set_adapter(before)


def names_of(adapters: Any) -> list[str]:
    """Return the adapters of a recipe: a comma-separated text, a list, or None."""
    if isinstance(adapters, str):
        return [name.strip() for name in adapters.split(",") if name.strip()]
    return list(adapters or [])


def below(adapters: Any, create_new_adapter: bool) -> list[str]:
    """Return which adapters the host merges before training: all, or all but the last, which it goes on with."""
    names = names_of(adapters)
    return names if create_new_adapter else names[:-1]


OF_REFERENCE = "ledpo_reference"  # the name of the adapter that is kept frozen as a part of the reference


OF_REWARDS = "ledpo_reward_"  # in the names of reward models' adapters, which sit in the policy and are no part of it
