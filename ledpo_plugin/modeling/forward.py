"""One pass of a causal model over a batch: log-probabilities of the responses and what a strategy asks for.

Two ways, the same numbers. With a plan (see `logit_positions`) the output layer runs at the planned positions only.
Without, the model returns logits everywhere, as in LLaMA-Factory's own stages: the plain way that the other is checked
against.
"""

import inspect
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ledpo_plugin.betas import mixture_token_logps

from .logit_positions import PREFIX, Plan
from .logps import IGNORE, first_label, left_aligned, prompt_nll, response_entropy, sum_logps, token_logps
from .output_layer import inputs_recorded, output_layer
from .scoring import scored
from .shared_prompt import PAIR, attention_of

OURS = "ledpo_"  # keys that the model never sees


@dataclass(frozen=True)
class RowOutput:
    """What a pass gives for `R` responses with `N` tokens in all; a field that was not asked for is None."""

    logps: Tensor  # [R], summed over the response
    lengths: Tensor | None  # [R], response tokens; None where the values come from a cache
    hidden: Tensor | None = None  # [R, d], last prompt token, detached fp32
    prompt_nll: Tensor | None = None  # [R], detached
    entropy: Tensor | None = None  # [R], detached
    logits: Tensor | None = None  # [N, V], detached fp32
    mixtures: tuple[Tensor, Tensor] | None = None  # two of [R]: epsilon-DPO's sums under (up, down) mixtures, detached


@dataclass(frozen=True)
class Mixture:
    """epsilon-DPO's question to the policy's pass: log-probabilities under logits mixed with the reference's."""

    reference_logits: Tensor  # [N, V]
    epsilon: float


def predictions(batch: Mapping[str, Any]) -> int:
    """Return at how many positions a pass over `batch` runs the output layer."""
    planned = batch.get(PREFIX + "target")
    return batch["input_ids"].numel() if planned is None else planned.shape[0]


def last_hidden(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """Return the last hidden state `[R, S, d]` of every position, without computing the output layer's logits.

    Gradient flows.

    Args:
        model: a causal language model, wrapped or not.
        inputs: of the model: `input_ids`, `attention_mask` and what else it takes.

    Raises:
        ValueError: the model has no output layer, or does not call it.
    """
    # What takes the place of logits is read by nobody.
    with inputs_recorded(output_layer(model), instead=lambda hidden: hidden[..., :1]) as recorded:
        model(**inputs, return_dict=True, use_cache=False)
    if not recorded:
        raise ValueError(f"{type(model).__name__} did not call its output layer, so its hidden state cannot be read.")
    return recorded[-1]


def kinds_of_tokens(model: nn.Module, ids: Tensor) -> dict[str, Tensor]:
    """Return what a model needs to make positions of images and videos anew; nothing where it asks for nothing.

    Args:
        model: PEFT's or the model itself, not wrapped for distributed training.
        ids: `[B, T]`.

    Returns:
        `mm_token_type_ids` `[B, T]`: 1 at tokens of images, 2 at those of videos, 0 elsewhere, as LLaMA-Factory's
        collator has them for the positions that it makes itself.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if "mm_token_type_ids" not in inspect.signature(base.forward).parameters:
        return {}
    kinds = torch.zeros_like(ids)
    for kind, name in ((1, "image_token_id"), (2, "video_token_id")):
        token = getattr(base.config, name, None)
        if token is not None:
            kinds[ids == token] = kind
    return {"mm_token_type_ids": kinds}


def forward_rows(
    model: nn.Module,
    batch: Mapping[str, Any],
    *,
    wants: frozenset[str] = frozenset(),
    ld_alpha: float | None = None,
    mixture: Mixture | None = None,
) -> RowOutput:
    """Run `model` over `batch` and return log-probabilities and the other wanted quantities.

    Args:
        model: a causal language model, wrapped or not.
        batch: model inputs with a plan, or with `labels`.
        wants: of "hidden", "prompt_nll", "entropy", "logits".
        ld_alpha: see `sum_logps`.
        mixture: ask for `mixtures` too.
    """
    plan = Plan.from_batch(batch)
    inputs = {key: value for key, value in batch.items() if key != "labels" and not key.startswith(OURS)}
    if PAIR in batch:
        inputs["attention_mask"] = attention_of(batch, model)
    inputs |= {"return_dict": True, "use_cache": False}
    if plan is None:
        return _plain(model, inputs, batch["labels"], wants, ld_alpha, mixture)
    return _planned(model, inputs, plan, wants, ld_alpha, mixture)


def _planned(model, inputs, plan: Plan, wants, ld_alpha, mixture) -> RowOutput:
    def mix(logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        return mixture_token_logps(logits, mixture.reference_logits[part], plan.target[part], mixture.epsilon)

    scores = scored(model, inputs, output_layer(model), plan, wants, mix if mixture else None)
    if scores.token_logps is None:
        raise ValueError(
            f"{type(model).__name__} did not call its output layer, so its predictions cannot be read at single "
            "positions. Set disable_response_logits: true."
        )
    lengths = (plan.place < plan.target.shape[0]).sum(1)
    return RowOutput(
        logps=sum_logps(_rows(scores.token_logps, plan.place), lengths, ld_alpha),
        lengths=lengths,
        hidden=scores.hidden,
        prompt_nll=None if scores.prompt_logps is None else -_mean(scores.prompt_logps, plan.prompt_place),
        entropy=None if scores.entropy is None else _mean(scores.entropy, plan.place),
        logits=scores.logits,
        mixtures=None
        if scores.mixtures is None
        else tuple(_rows(values, plan.place).sum(1) for values in scores.mixtures),
    )


def _rows(values: Tensor, place: Tensor) -> Tensor:
    """Return `[R, L]` from `[N]`: every response's values from its first token on, 0 behind its end."""
    return torch.cat([values, values.new_zeros(1)])[place]


def _mean(values: Tensor, place: Tensor) -> Tensor:
    return _rows(values, place).sum(1) / (place < values.shape[0]).sum(1).clamp(min=1)


def _plain(model, inputs, labels: Tensor, wants, ld_alpha, mixture) -> RowOutput:
    reading = inputs_recorded(output_layer(model)) if "hidden" in wants else nullcontext([])
    with reading as recorded:
        logits = model(**inputs).logits
    shifted, targets = logits[:, :-1], labels[:, 1:]
    first = first_label(labels)
    with torch.no_grad():
        extra: dict[str, Any] = {}
        if recorded:
            rows = torch.arange(labels.shape[0], device=labels.device)
            extra["hidden"] = recorded[-1].detach()[rows, (first - 1).clamp(min=0)].float()
        if "prompt_nll" in wants:
            extra["prompt_nll"] = prompt_nll(logits, inputs["input_ids"], inputs["attention_mask"], first)
        if "entropy" in wants:
            extra["entropy"] = response_entropy(shifted, targets)
        if "logits" in wants:
            extra["logits"] = shifted[targets != IGNORE].float()
        if mixture is not None:
            extra["mixtures"] = _plain_mixtures(shifted, targets, mixture)
    return RowOutput(
        logps=sum_logps(left_aligned(token_logps(shifted, targets), targets), (targets != IGNORE).sum(1), ld_alpha),
        lengths=(targets != IGNORE).sum(1),
        **extra,
    )


def _plain_mixtures(logits: Tensor, targets: Tensor, mixture: Mixture) -> tuple[Tensor, ...]:
    place = targets != IGNORE
    sums = []
    for values in mixture_token_logps(logits[place].float(), mixture.reference_logits, targets[place], mixture.epsilon):
        rows = torch.zeros_like(targets, dtype=values.dtype)
        rows[place] = values
        sums.append(rows.sum(1))
    return tuple(sums)
