"""From logits and labels to what losses and beta strategies are made of. Pure functions; `R` rows, `T` positions.

Labels are aligned with the input tokens and hold `IGNORE` outside the response, as LLaMA-Factory writes them: the
logits at position t-1 predict the label at position t.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100


def first_label(labels: Tensor) -> Tensor:
    """Return, per row `[R]`, the position of the first response token; the last prompt token stands before it.

    Found by the labels alone: comparing with a pad id would, on a right-padded row whose pad id occurs nowhere else,
    land inside the response and leak the answer into whatever reads that position.
    """
    return (labels != IGNORE).int().argmax(dim=1)


def token_logps(logits: Tensor, labels: Tensor) -> Tensor:
    """Return log p of each label `[R, K]` (0 where ignored), in fp32.

    Args:
        logits: `[R, K, V]`, the predictions of `labels`, already shifted.
        labels: `[R, K]`.
    """
    logits = logits.float()
    targets = labels.clamp(min=0)
    picked = logits.gather(2, targets.unsqueeze(2)).squeeze(2)
    return (picked - logits.logsumexp(2)) * (labels != IGNORE)


def sum_logps(per_token: Tensor, lengths: Tensor, ld_alpha: float | None = None) -> Tensor:
    """Sum token log-probabilities per response `[R]`.

    With `ld_alpha`, LD-DPO (arXiv:2409.06411, eq. 9): the tokens of a response beyond the length of its pair's
    shorter one count `ld_alpha` times; rows are `[chosen; rejected]`, halves of equal size.

    Args:
        per_token: `[R, L]`, each response from its first token on, 0 behind its end.
        lengths: `[R]`, tokens of each response.
        ld_alpha: weight of the tokens beyond the common length; None: 1.
    """
    if ld_alpha is None:
        return per_token.sum(1)
    half = lengths.shape[0] // 2
    common = torch.minimum(lengths[:half], lengths[half:]).repeat(2)
    index = torch.arange(per_token.shape[1], device=per_token.device)
    return torch.where(index < common.unsqueeze(1), per_token, ld_alpha * per_token).sum(1)


def left_aligned(per_token: Tensor, labels: Tensor) -> Tensor:
    """Return `per_token` `[R, K]` with each row's response (one run of labels) moved to the row's start."""
    width = per_token.shape[1]
    columns = torch.arange(width, device=labels.device) + first_label(labels).unsqueeze(1)
    return per_token.gather(1, columns.clamp(max=width - 1)) * (columns < width)


def prompt_nll(logits: Tensor, input_ids: Tensor, attention_mask: Tensor, first: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of the prompt's tokens per row `[R]`, nats; the first token has none.

    Args:
        logits: `[R, T, V]`, of every position.
        input_ids: `[R, T]`.
        attention_mask: `[R, T]`.
        first: `[R]`, position of the first response token.
    """
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)
    inside = (positions[1:] < first.unsqueeze(1)) & attention_mask[:, 1:].bool() & attention_mask[:, :-1].bool()
    labels = torch.where(inside, input_ids[:, 1:], IGNORE)
    return -token_logps(logits[:, :-1], labels).sum(1) / inside.sum(1).clamp(min=1)


def response_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the token entropy, averaged over the response and divided by ln|V|, per row `[R]`, in (0, 1).

    MallowsPO's dispersion proxy (arXiv:2405.14953, section 4).
    """
    logp = F.log_softmax(logits.float(), dim=2)
    entropy = -(logp.exp() * logp).sum(2)
    mask = labels != IGNORE
    mean = (entropy * mask).sum(1) / mask.sum(1).clamp(min=1)
    return mean / torch.log(torch.tensor(float(logits.shape[2]), device=logits.device))
