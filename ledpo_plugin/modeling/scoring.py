"""Log-probabilities of response tokens without ever holding logits of a whole sequence.

The output layer of a language model is by far its widest. Here it runs at the planned positions only, in chunks, and
each chunk's logits are gone before the next one's come (see `output_layer` for how).

Some models go on behind their output layer: Gemma caps its logits, Cohere and Granite scale them. A model that does so
is found in its first pass, by what it makes of a mark in the place of logits. It then gets the logits of the planned
positions, all at once, and what it makes of them is what counts.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .output_layer import forward_replaced

CHUNK_NUMBERS = 2**24  # logits held at a time: 64 MB in fp32
MARK = 4096.0  # far above every cap, and exact in each floating-point type

# Output layers of models seen in a pass -> whether the model changes what the layer gives.
_goes_on: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@dataclass
class Scores:
    """What one pass found; filled while the model runs."""

    token_logps: Tensor | None = None  # [N], fp32, with gradient
    states: Tensor | None = None  # [N, d], the hidden states that predict, with gradient
    hidden: Tensor | None = None  # [R, d], fp32, detached
    prompt_logps: Tensor | None = None  # [M], fp32, detached
    entropy: Tensor | None = None  # [N], divided by ln|V|, detached
    logits: Tensor | None = None  # [N, V], fp32, detached
    mixtures: tuple[Tensor, Tensor] | None = None  # two of [N], detached


def _chunks(count: int, vocabulary: int) -> Iterator[slice]:
    size = max(1, CHUNK_NUMBERS // vocabulary)
    return (slice(start, start + size) for start in range(0, count, size))


class _FrozenLinearLogps(torch.autograd.Function):
    """log softmax(h W^T + c)[target] for weights that take no gradient.

    The gradient with respect to h is W[target] - softmax(h W^T + c) W, up to the factor that arrives from above, so
    it is made while the chunk's logits are there; nothing is computed twice and nothing of width |V| is kept.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
        logps = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        slope = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for part in _chunks(hidden.shape[0], weight.shape[0]):
            log_softmax = F.log_softmax(F.linear(hidden[part], weight, bias).float(), dim=1)
            logps[part] = log_softmax.gather(1, target[part].unsqueeze(1)).squeeze(1)
            if slope is not None:
                softmax = log_softmax.exp_().to(weight.dtype)
                torch.sub(weight[target[part]], softmax @ weight, out=slope[part])
        if slope is not None:
            ctx.save_for_backward(slope)
        return logps

    @staticmethod
    def backward(ctx, grad: Tensor):
        (slope,) = ctx.saved_tensors
        return slope * grad.unsqueeze(1).to(slope.dtype), None, None, None


def _chunk_logps(layer: Callable[[Tensor], Tensor], hidden: Tensor, target: Tensor) -> Tensor:
    return -F.cross_entropy(layer(hidden).float(), target, reduction="none")


def token_logps(layer: nn.Module, forward: Callable[[Tensor], Tensor], hidden: Tensor, target: Tensor) -> Tensor:
    """Return log p(target) `[N]`, fp32, of hidden states `[N, d]` through an output layer.

    Args:
        layer: the output layer, to see what it is.
        forward: its own forward.
        hidden: `[N, d]`.
        target: `[N]`.
    """
    plain = type(layer) is nn.Linear and not layer.weight.requires_grad
    plain = plain and not torch.is_autocast_enabled(hidden.device.type)
    if plain and layer.weight.device == hidden.device and layer.weight.dtype == hidden.dtype:
        return _FrozenLinearLogps.apply(hidden, layer.weight, layer.bias, target)
    vocabulary = getattr(layer, "out_features", None) or layer.weight.shape[0]
    parts = []
    for part in _chunks(hidden.shape[0], vocabulary):
        arguments = (forward, hidden[part], target[part])
        recompute = torch.is_grad_enabled()
        parts.append(
            checkpoint(_chunk_logps, *arguments, use_reentrant=False) if recompute else _chunk_logps(*arguments)
        )
    return torch.cat(parts)


@torch.no_grad()
def _entropies(forward: Callable[[Tensor], Tensor], hidden: Tensor, vocabulary: int) -> Tensor:
    parts = []
    for part in _chunks(hidden.shape[0], vocabulary):
        parts.append(_entropy(forward(hidden[part])))
    return torch.cat(parts)


@contextmanager
def scoring(
    layer: nn.Module, plan, wants: frozenset[str], mixture: Callable | None = None, temperature: float = 1.0
) -> Iterator[Scores]:
    """For the length of one pass, let the model's output layer fill `Scores` instead of returning logits.

    Args:
        layer: the model's output layer.
        plan: a `Plan` of the batch.
        wants: of "hidden", "prompt_nll", "entropy", "logits", "states".
        mixture: called with each chunk's logits `[n, V]` and its slice of the N; gives two `[n]` (epsilon-DPO).
        temperature: divides the logits of the response tokens; the output layer has no bias where it is not 1.
    """
    scores, original = Scores(), layer.forward

    def score(hidden: Tensor) -> Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])
        needed = flat.index_select(0, plan.predict)
        if "states" in wants:
            scores.states = needed
        cooled = needed if temperature == 1 else needed / temperature
        scores.token_logps = token_logps(layer, original, cooled, plan.target)
        if "hidden" in wants:
            scores.hidden = flat.detach().index_select(0, plan.last_prompt).float()
        vocabulary = getattr(layer, "out_features", None) or layer.weight.shape[0]
        with torch.no_grad():
            if "prompt_nll" in wants:
                prompt = flat.detach().index_select(0, plan.prompt_predict)
                scores.prompt_logps = token_logps(layer, original, prompt, plan.prompt_target)
            if "entropy" in wants:
                scores.entropy = _entropies(original, needed.detach(), vocabulary) / math.log(vocabulary)
            if "logits" in wants:
                scores.logits = original(needed.detach()).float()
            if mixture is not None:
                parts = [
                    mixture(original(needed[part].detach()).float(), part)
                    for part in _chunks(needed.shape[0], vocabulary)
                ]
                scores.mixtures = tuple(torch.cat(values) for values in zip(*parts, strict=True))
        # What the model takes for logits and hands on. It stays in the graph, through which DDP looks for parameters.
        return hidden[..., :1] * 0 + MARK

    with forward_replaced(layer, score):
        yield scores


def scored(
    model: nn.Module,
    inputs: Mapping[str, Any],
    layer: nn.Module,
    plan,
    wants: frozenset[str],
    mixture: Callable | None = None,
    temperature: float = 1.0,
) -> Scores:
    """Run a model and return the scores of a plan, as of `scoring`; what it does behind its output layer counts.

    Args:
        model: a causal language model, wrapped or not.
        inputs: of the model, with `return_dict`.
        layer: the model's output layer.
        plan: see `scoring`, as the rest.
    """
    goes_on = _goes_on.get(layer)
    if not goes_on:
        with scoring(layer, plan, wants, mixture, temperature) as scores:
            output = model(**inputs)
        if goes_on is None and scores.token_logps is not None:
            goes_on = not bool((output.logits == MARK).all())
            _goes_on[layer] = goes_on
        if not goes_on:
            return scores
    return _scored_behind(model, inputs, layer, plan, wants, mixture, temperature)


def _scored_behind(model, inputs, layer, plan, wants, mixture, temperature) -> Scores:
    """Return the scores from the logits that the model makes of its output layer's."""
    scores, original = Scores(), layer.forward
    count = plan.predict.shape[0]

    def project(hidden: Tensor) -> Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])
        needed = flat.index_select(0, plan.predict)
        if "states" in wants:
            scores.states = needed
        if "hidden" in wants:
            scores.hidden = flat.detach().index_select(0, plan.last_prompt).float()
        if "prompt_nll" in wants:
            needed = torch.cat([needed, flat.detach().index_select(0, plan.prompt_predict)])
        return original(needed).unsqueeze(0)

    with forward_replaced(layer, project):
        logits = model(**inputs).logits[0]
    scores.token_logps = _logps(logits[:count], plan.target, temperature)
    with torch.no_grad():
        if "prompt_nll" in wants:
            scores.prompt_logps = _logps(logits[count:], plan.prompt_target)
        own = logits[:count].detach()
        parts = list(_chunks(count, own.shape[1]))
        if "entropy" in wants:
            scores.entropy = torch.cat([_entropy(own[part]) for part in parts]) / math.log(own.shape[1])
        if "logits" in wants:
            scores.logits = own.float()
        if mixture is not None:
            found = [mixture(own[part].float(), part) for part in parts]
            scores.mixtures = tuple(torch.cat(values) for values in zip(*found, strict=True))
    return scores


def _logps(logits: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
    parts = _chunks(target.shape[0], logits.shape[1])
    cooled = logits if temperature == 1 else logits / temperature
    found = [-F.cross_entropy(cooled[part].float(), target[part], reduction="none") for part in parts]
    return torch.cat(found) if found else logits.new_zeros(0, dtype=torch.float32)


def _entropy(logits: Tensor) -> Tensor:
    logp = F.log_softmax(logits.float(), dim=1)
    return -(logp.exp() * logp).sum(1)
