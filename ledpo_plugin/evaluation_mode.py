"""Models without chance: everything that is random in training is off for a while, module by module."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_evaluation_mode(*models: nn.Module) -> Iterator[None]:
    """Have every module of `models` in evaluation mode; afterwards each is in the mode it was in.

    Whatever acts in training alone is off then: dropout (of layers, of LoRA, of attention by the model's
    configuration), NEFTune's noise, the jitter of routers, layers that are skipped at random. Flags are set one by one,
    as `Module.train` would also put modules into training that were not, and some libraries change weights in theirs.
    """
    modes = [(module, module.training) for model in models for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
