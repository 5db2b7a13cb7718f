"""Attention over shared rows in pieces, so that no score is computed that nobody sees.

Under a dense mask a row of several pairs pays for every token pair of the row. Here each pair costs one causal
attention over prompt and chosen answer, and one of the rejected answer over prompt and itself. It is registered with
transformers as an attention implementation of its own; whatever is not a shared row goes to sdpa as ever.
"""

from collections.abc import Sequence
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "ledpo_pairs"
Span = tuple[int, int, int, int, int]  # row, first column, tokens of prompt, chosen and rejected answer

# A model hands an attention mask of four dimensions through to its attention as it is, also when a checkpointed layer
# runs again in the backward pass, and moves it between devices. What must arrive is not a mask but a list of numbers on
# the host. So the list stays here, and the "mask" tells by its last dimension which one is meant: asking a tensor for
# its shape never waits for a device. Far fewer lists are alive at a time than there are slots.
_SLOTS = 512
_arrangements: dict[int, "Arrangement"] = {}
_numbers = count()


class Arrangement:
    """The pairs of one batch of shared rows, and the masks of their rejected answers, made once per device."""

    def __init__(self, spans: Sequence[Span]):
        self.spans = list(spans)
        self._masks: dict[tuple[int, int, torch.device], Tensor] = {}

    def mask(self, answer: int, prompt: int, device: torch.device) -> Tensor:
        """Return the mask `[answer, prompt + answer]` of an answer that stands right behind its prompt."""
        key = (answer, prompt, device)
        if key not in self._masks:
            ones = torch.ones((answer, prompt + answer), dtype=torch.bool, device=device)
            self._masks[key] = ones.tril(diagonal=prompt)
        return self._masks[key]


def carrier(spans: Sequence[Span], device: torch.device) -> Tensor:
    """Return the tensor that stands for `spans` where a model expects an attention mask."""
    slot = next(_numbers) % _SLOTS
    _arrangements[slot] = Arrangement(spans)
    return torch.ones((1, 1, 1, slot + 1), dtype=torch.bool, device=device)


def _arrangement(attention_mask: Tensor | None, length: int) -> Arrangement | None:
    if attention_mask is None or attention_mask.dim() != 4 or attention_mask.shape[2] != 1 or length == 1:
        return None
    return _arrangements[attention_mask.shape[3] - 1]


def pair_attention_forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs
) -> tuple[Tensor, None]:
    """Attend within pairs where the mask is a `carrier`; else as sdpa does.

    Args:
        module: the attention layer.
        query: `[r, heads, S, d]`.
        key: `[r, key heads, S, d]`.
        value: `[r, key heads, S, d]`.
        attention_mask: a carrier, a mask, or None.
    """
    arrangement = _arrangement(attention_mask, query.shape[2])
    if arrangement is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    options = {"scale": kwargs.get("scaling"), "dropout_p": kwargs.get("dropout", 0.0)}
    rows = []
    for row in range(query.shape[0]):
        spans = [span for span in arrangement.spans if span[0] == row]
        parts = [_segments(tensor[row : row + 1], spans) for tensor in (query, key, value)]
        seen = [_attend(span, arrangement, segments, options) for span, *segments in zip(spans, *parts, strict=True)]
        whole = torch.cat([part.transpose(1, 2) for pair in seen for part in pair], dim=1)
        rows.append(F.pad(whole, (0, 0, 0, 0, 0, query.shape[2] - whole.shape[1])))
    return torch.cat(rows), None


def _segments(row: Tensor, spans: Sequence[Span]) -> list[tuple[Tensor, Tensor]]:
    """Cut a row `[1, heads, S, d]` into (prompt and chosen, rejected) of each pair, all at once.

    The gradient of one split is one concatenation; that of single slices would be a row of zeros for each of them.
    """
    sizes = [size for _, _, prompt, chosen, rejected in spans for size in (prompt + chosen, rejected)]
    parts = row.split([*sizes, row.shape[2] - sum(sizes)], dim=2)
    return list(zip(parts[:-1:2], parts[1::2], strict=True))


def _attend(span: Span, arrangement: Arrangement, segments: Sequence[tuple], options: dict) -> tuple[Tensor, Tensor]:
    """Return what (prompt and chosen, rejected) of one pair see, each `[1, heads, n, d]`."""
    prompt, rejected = span[2], span[4]
    (q, own_q), (k, own_k), (v, own_v) = segments
    first = F.scaled_dot_product_attention(q, k, v, is_causal=True, **options)
    own = [torch.cat([whole[:, :, :prompt], part], dim=2) for whole, part in ((k, own_k), (v, own_v))]
    mask = arrangement.mask(rejected, prompt, q.device)
    return first, F.scaled_dot_product_attention(own_q, *own, attn_mask=mask, **options)


AttentionInterface.register(NAME, pair_attention_forward)
AttentionMaskInterface.register(NAME, sdpa_mask)
