"""Models without chance: everything that is random in training is off for a while, module by module."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def packs_weights(module: nn.Module) -> bool:
    """Return whether a layer may change its weights for good when it is asked in evaluation mode.

    bitsandbytes' 4-bit layers do on CPUs with AVX512-BF16: they pack them for inference, and no gradient goes through
    them any more.
    """
    return type(module).__module__.startswith("bitsandbytes.")


def keep_weights(model: nn.Module) -> None:
    """Put the layers that may pack their weights back into training mode, in a model that will be trained on."""
    for module in model.modules():
        if packs_weights(module):
            module.training = True


@contextmanager
def in_evaluation_mode(*models: nn.Module) -> Iterator[None]:
    """Have every module of `models` in evaluation mode; afterwards each is in the mode it was in.

    Whatever acts in training alone is off then: dropout (of layers, of LoRA, of attention by the model's
    configuration), NEFTune's noise, the jitter of routers, layers that are skipped at random. Flags are set one by one,
    as `Module.train` would also put modules into training that were not, and some libraries change weights in theirs.
    Layers that `packs_weights` keep their mode: there is no chance in them.
    """
    modules = [module for model in models for module in model.modules() if not packs_weights(module)]
    modes = [(module, module.training) for module in modules]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
