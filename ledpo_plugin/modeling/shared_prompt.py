"""Pairs as `[prompt | chosen | rejected]`, several to a row: every prompt is computed once, padding hardly at all.

The rejected answer does not see the chosen one and takes up the positions where the prompt ends, so every token gets
exactly what it would get in a row of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import pair_attention
from .logit_positions import Plan, place_table
from .logps import IGNORE

PAIR, PART = "ledpo_pair", "ledpo_part"  # [r, S]: number of the pair (-1: padding); 0 prompt, 1 chosen, 2 rejected
SPANS = "ledpo_spans"  # the same as a list of `Span`, on the host
MULTIPLE = 8
MAX_PADDING = 0.05


@dataclass(frozen=True)
class Costs:
    """Relative cost of a row: per token, and per token and token it might attend to."""

    token: float = 1.0
    attention: float = 0.0

    @classmethod
    def of(cls, config: Any) -> "Costs":
        """Estimate from a model's configuration: 24 d^2 per token and layer against 4 d per token pair and layer."""
        width = getattr(config.get_text_config(), "hidden_size", 1)
        return cls(token=1.0, attention=1.0 / (6.0 * width))


def _bins(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Deal items into `count` bins, longest first, each to the emptiest bin."""
    bins: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        target = loads.index(min(loads))
        bins[target].append(item)
        loads[target] += lengths[item]
    return bins


def arrange(lengths: Sequence[int], costs: Costs) -> list[list[int]]:
    """Return which pairs share a row: the cheapest arrangement with at most 5 % of padding.

    One row for all has no padding to speak of, but every token pair of a row costs attention, seen or not.
    """
    best, best_cost = [list(range(len(lengths)))], None
    total = sum(lengths)
    for count in range(1, len(lengths) + 1):
        bins = _bins(lengths, count)
        width = max(sum(lengths[i] for i in row) for row in bins)
        if count > 1 and count * width - total > MAX_PADDING * count * width:
            continue
        cost = count * width * (costs.token + costs.attention * width)
        if best_cost is None or cost < best_cost:
            best, best_cost = bins, cost
    return best


def shared_batch(features: Sequence[dict[str, Any]], pad_id: int, costs: Costs, prompts: bool = False) -> dict | None:
    """Collate tokenized pairs into shared rows; None if a pair's two halves have different prompts.

    Args:
        features: rows of LLaMA-Factory's pairwise dataset.
        pad_id: any token id.
        costs: see `arrange`.
        prompts: also plan the prompts' own tokens.
    """
    pieces = []
    for feature in features:
        start = _first(feature["chosen_labels"])
        chosen, rejected = feature["chosen_input_ids"], feature["rejected_input_ids"]
        if start < 1 or start != _first(feature["rejected_labels"]) or chosen[:start] != rejected[:start]:
            return None
        pieces.append((chosen[:start], chosen[start:], rejected[start:]))
    lengths = [sum(map(len, piece)) for piece in pieces]
    bins = arrange(lengths, costs)
    width = max(sum(lengths[i] for i in row) for row in bins)
    width = -(-width // MULTIPLE) * MULTIPLE
    ids = torch.full((len(bins), width), pad_id)
    positions = torch.zeros((len(bins), width), dtype=torch.long)
    pair = torch.full((len(bins), width), -1)
    part = torch.zeros((len(bins), width), dtype=torch.long)
    count = len(pieces)
    predict: list[list[int]] = [[] for _ in range(2 * count)]
    last_prompt = [0] * count
    spans = []
    prompt_predict: list[list[int]] = [[] for _ in range(count)]
    for r, row in enumerate(bins):
        column = 0
        for i in row:
            prompt, *answers = pieces[i]
            begin = r * width + column
            spans.append((r, column, *map(len, pieces[i])))
            last_prompt[i] = begin + len(prompt) - 1
            prompt_predict[i] = list(range(begin, begin + len(prompt) - 1))
            whole = slice(column, column + lengths[i])
            ids[r, whole] = torch.tensor([*prompt, *answers[0], *answers[1]])
            pair[r, whole] = i
            positions[r, column : column + len(prompt)] = torch.arange(len(prompt))
            column += len(prompt)
            for side, answer in enumerate(answers):
                here = slice(column, column + len(answer))
                positions[r, here] = torch.arange(len(prompt), len(prompt) + len(answer))
                part[r, here] = side + 1
                # The last prompt token predicts the first token of both answers.
                first = r * width + column
                predict[side * count + i] = [last_prompt[i], *range(first, first + len(answer) - 1)]
                column += len(answer)
    plan = _plan(pieces, predict, last_prompt, prompt_predict if prompts else None)
    where = {PAIR: pair, PART: part, SPANS: spans}
    return {"input_ids": ids, "position_ids": positions, **where, **plan.to_batch()}


def _first(labels: Sequence[int]) -> int:
    return next((i for i, label in enumerate(labels) if label != IGNORE), -1)


def _plan(pieces, predict, last_prompt, prompt_predict) -> Plan:
    targets = [piece[1] for piece in pieces] + [piece[2] for piece in pieces]
    extra = {}
    if prompt_predict is not None:
        extra = {
            "prompt_predict": _flat(prompt_predict),
            "prompt_target": _flat([piece[0][1:] for piece in pieces]),
            "prompt_place": place_table(torch.tensor([len(row) for row in prompt_predict])).repeat(2, 1),
        }
    return Plan(
        predict=_flat(predict),
        target=_flat(targets),
        place=place_table(torch.tensor([len(row) for row in targets])),
        last_prompt=torch.tensor(last_prompt * 2),
        **extra,
    )


def _flat(rows: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor([value for row in rows for value in row], dtype=torch.long)


def attention_of(batch: Mapping[str, Any], model: nn.Module) -> Tensor:
    """Return what makes a token see what stands before it in its own answer and its prompt, and nothing else.

    For attention in pieces a `carrier` of the spans; else a mask `[r, 1, S, S]`, boolean for sdpa, which takes it
    whatever the precision, added to the scores for eager attention.
    """
    if _implementation(model) == pair_attention.NAME:
        return pair_attention.carrier(batch[SPANS], batch[PAIR].device)
    pair, part = batch[PAIR], batch[PART]
    size = pair.shape[1]
    same = pair.unsqueeze(2) == pair.unsqueeze(1)
    visible = (part.unsqueeze(1) == 0) | (part.unsqueeze(2) == part.unsqueeze(1))
    before = torch.ones((size, size), dtype=torch.bool, device=pair.device).tril()
    mask = (same & visible & before).unsqueeze(1)  # padding sees padding: no row is empty, so nothing is NaN
    if _implementation(model) == "sdpa":
        return mask
    return torch.zeros_like(mask, dtype=torch.float32).masked_fill_(~mask, torch.finfo(torch.float32).min)


def _implementation(model: nn.Module) -> str:
    while hasattr(model, "module"):
        model = model.module
    return getattr(model.config, "_attn_implementation", None) or "eager"


def attend_in_pieces(models: Sequence[nn.Module], wanted: bool) -> bool:
    """Switch models between sdpa and attention in pieces; return whether all of them now do as wanted."""
    old, new = ("sdpa", pair_attention.NAME) if wanted else (pair_attention.NAME, "sdpa")
    for model in models:
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        if _implementation(inner) == old:
            inner.set_attn_implementation(new)
    return all(_implementation(model) == new for model in models)


def unsuitable(model: nn.Module) -> str | None:
    """Return why a model cannot take shared rows by what its configuration says, or None."""
    config = model.config.get_text_config()
    if _implementation(model) not in ("sdpa", "eager", pair_attention.NAME):
        return f"attention {_implementation(model)} takes no mask of its own (sdpa and eager do)"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "the model attends to a sliding window"
    return None
