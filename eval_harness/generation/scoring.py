"""How likely answers are: by the model itself, and by the one it started from."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ledpo_plugin.modeling.forward import forward_rows
from ledpo_plugin.modeling.logit_positions import plan_of_rows
from ledpo_plugin.modeling.padding import answered_prompts

from .loading import Loaded


def score_outputs(
    loaded: Loaded, prompts: Sequence[str], answers: Sequence[Sequence[int]], *, batch_size: int = 8
) -> dict[str, list[float | None]]:
    """Return how likely answers to prompts are, one number an answer.

    Args:
        loaded: the model.
        prompts: user messages of one turn.
        answers: token ids, without what ended them.
        batch_size: answers at a time.

    Returns:
        `logps` (nats, summed over the answer), `lengths` (tokens), `entropy` (of the next token, nats, mean over the
        answer); of a trained run also `reference_logps` (by the model that training started from, whatever reference it
        was trained against), and `rewards`, beta(x) times the difference of the two, unless beta depends on more than
        the prompt. None for an empty answer. What ended an answer is no part of it, so that answers that were cut off
        and those that ended are scored alike; in training it counts.
    """
    ids = loaded.encode(prompts)
    lengths = [len(answer) for answer in answers]
    logps, entropy = _pass(loaded, loaded.model, ids, answers, batch_size, entropy=True)
    found: dict[str, list[float | None]] = {"logps": logps, "lengths": lengths, "entropy": entropy}
    if loaded.start is None:
        return found
    with loaded.at_start() as start:
        found["reference_logps"], _ = _pass(loaded, start, ids, answers, batch_size, entropy=False)
    if loaded.has_beta:
        betas = loaded.betas(prompts, batch_size)
        found["rewards"] = [
            None if ours is None else beta * (ours - theirs)
            for beta, ours, theirs in zip(betas, logps, found["reference_logps"], strict=True)
        ]
    return found


def logps_of(
    loaded: Loaded,
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    batch_size: int = 8,
) -> list[float | None]:
    """Return log-probabilities (nats, summed) of answers to prompts, both as tokens; None for an empty answer."""
    return _pass(loaded, model, prompts, answers, batch_size, entropy=False)[0]


@torch.no_grad()
def _pass(
    loaded: Loaded,
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    batch_size: int,
    entropy: bool,
) -> tuple[list[float | None], list[float | None]]:
    """Return log-probabilities and entropies; None for answers without tokens."""
    order = sorted((p for p, answer in enumerate(answers) if answer), key=lambda p: len(prompts[p]) + len(answers[p]))
    logps: list[float | None] = [None] * len(answers)
    entropies: list[float | None] = [None] * len(answers)
    for first in range(0, len(order), batch_size):
        part = order[first : first + batch_size]
        batch = answered_prompts(
            [prompts[p] for p in part], [answers[p] for p in part], loaded.tokenizer.pad_token_id or 0
        )
        planned = plan_of_rows(batch["input_ids"], batch["labels"], batch["attention_mask"]).to_batch()
        batch = {key: value.to(loaded.device) for key, value in (batch | planned).items()}
        output = forward_rows(model, batch, wants=frozenset({"entropy"} if entropy else ()))
        for place, value in zip(part, output.logps.tolist(), strict=True):
            logps[place] = value
        if entropy:
            for place, value in zip(part, _nats(output.entropy, model).tolist(), strict=True):
                entropies[place] = value
    return logps, entropies


def _nats(share: Tensor, model: nn.Module) -> Tensor:
    """Return entropies in nats; the forward pass gives them as shares of the largest possible."""
    return share * torch.log(torch.tensor(float(model.get_output_embeddings().weight.shape[0])))
