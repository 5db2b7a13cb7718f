"""The output layer of a model: how its input, the last hidden state, is read in the model's own forward pass.

It is the model itself that calls its output layer, so DDP, FSDP and DeepSpeed, which prepare a layer's weights for
just that call, see nothing unusual: for the length of one pass the layer's `forward` is another one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn


def output_layer(model: nn.Module) -> nn.Module:
    """Return the layer whose input is the last hidden state.

    Raises:
        ValueError: the model has none, so neither its hidden state nor single positions can be read.
    """
    inner = model
    while not hasattr(inner, "get_output_embeddings") and hasattr(inner, "module"):
        inner = inner.module  # DDP, DeepSpeed
    layer = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    if layer is None:
        raise ValueError(
            f"{type(inner).__name__} has no output embedding layer, so the hidden state of the last prompt token "
            "cannot be read. Use beta_mode fixed, global or one that reads no hidden state."
        )
    return layer


@contextmanager
def forward_replaced(layer: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Have `layer` compute `forward` temporarily, which gets the layer's input; afterwards it is as it was."""
    original = layer.forward
    was_set = "forward" in vars(layer)  # some libraries replace the forward of an instance, too
    layer.forward = forward
    try:
        yield
    finally:
        if was_set:
            layer.forward = original
        else:
            del layer.forward  # the class's own again


@contextmanager
def inputs_recorded(layer: nn.Module, instead: Callable[[Tensor], Tensor] | None = None) -> Iterator[list[Tensor]]:
    """Record the inputs of `layer` temporarily, in the list that is yielded.

    Args:
        layer: a model's output layer.
        instead: what the layer computes meanwhile; None: what it always does.
    """
    recorded: list[Tensor] = []
    compute = instead or layer.forward

    def record(hidden: Tensor) -> Tensor:
        recorded.append(hidden)
        return compute(hidden)

    with forward_replaced(layer, record):
        yield recorded
