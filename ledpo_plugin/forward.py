"""One pass of a causal model over a batch of rows: log-probabilities of the responses and what a strategy asks for."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .logps import IGNORE, first_label, prompt_nll, response_entropy, sum_logps, token_logps

# Keys that the collator adds for this module; the model never sees them.
KEEP_FROM = "ledpo_keep_from"


@dataclass(frozen=True)
class RowOutput:
    """What a pass gives for `R` rows; a field that was not asked for is None."""

    logps: Tensor  # [R], summed over the response
    lengths: Tensor  # [R], response tokens
    hidden: Tensor | None = None  # [R, d], last prompt token, detached fp32
    prompt_nll: Tensor | None = None  # [R], detached
    entropy: Tensor | None = None  # [R], detached
    logits: Tensor | None = None  # [R, K, V], detached
    labels: Tensor | None = None  # [R, K], the labels that `logits` predict


def add_keep_from(batch: dict[str, Any], labels_key: str = "labels", prefix: str = "") -> None:
    """Note in the batch, on the CPU where it was collated, the first position whose logits are needed."""
    first = int(first_label(batch[labels_key]).min())
    batch[prefix + KEEP_FROM] = max(first - 1, 0)


def output_layer(model: nn.Module) -> nn.Module:
    """Return the layer whose input is the last hidden state.

    Raises:
        ValueError: the model has none, so no head can read its hidden state.
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


def _takes_logits_to_keep(model: nn.Module) -> bool:
    inner = model
    while hasattr(inner, "module"):
        inner = inner.module
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    return "logits_to_keep" in inspect.signature(inner.forward).parameters


def forward_rows(
    model: nn.Module,
    batch: Mapping[str, Any],
    *,
    wants: frozenset[str] = frozenset(),
    ld_alpha: float | None = None,
) -> RowOutput:
    """Run `model` over the rows of `batch` and return log-probabilities and the other wanted quantities.

    Args:
        model: a causal language model, wrapped or not.
        batch: model inputs, `labels` and, optionally, `KEEP_FROM`.
        wants: of "hidden", "prompt_nll", "entropy", "logits".
        ld_alpha: see `sum_logps`.
    """
    inputs = {key: value for key, value in batch.items() if key not in ("labels", KEEP_FROM)}
    labels = batch["labels"]
    keep_from = batch.get(KEEP_FROM, 0) if _takes_logits_to_keep(model) else 0
    if "prompt_nll" in wants:
        keep_from = 0  # the prompt's own tokens are predicted too
    if keep_from:
        inputs["logits_to_keep"] = labels.shape[1] - keep_from
    first = first_label(labels)
    captured: list[Tensor] = []
    hook = None
    if "hidden" in wants:
        hook = output_layer(model).register_forward_pre_hook(lambda _, args: captured.append(args[0].detach()))
    try:
        logits = model(**inputs, return_dict=True, use_cache=False).logits
    finally:
        if hook is not None:
            hook.remove()
    if logits.shape[1] != labels.shape[1] - keep_from:
        raise ValueError(
            f"The model returned logits for {logits.shape[1]} positions, {labels.shape[1] - keep_from} were expected."
        )
    shifted, targets = logits[:, :-1], labels[:, keep_from + 1 :]
    hidden = None
    if captured:
        rows = torch.arange(labels.shape[0], device=labels.device)
        hidden = captured[-1][rows, (first - 1 - keep_from).clamp(min=0)].float()
    with torch.no_grad():
        nll = (
            prompt_nll(logits, inputs["input_ids"], inputs["attention_mask"], first)
            if "prompt_nll" in wants
            else None
        )
        entropy = response_entropy(shifted, targets) if "entropy" in wants else None
    return RowOutput(
        logps=sum_logps(token_logps(shifted, targets), targets, ld_alpha),
        lengths=(labels[:, 1:] != IGNORE).sum(1),
        hidden=hidden,
        prompt_nll=nll,
        entropy=entropy,
        logits=shifted.detach() if "logits" in wants else None,
        labels=targets if "logits" in wants else None,
    )
