"""What is to be learned from answers that were scored: the KL's weight, advantages, and pairs of best and worst."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ledpo_plugin.modeling.logps import IGNORE
from ledpo_plugin.training.side_optimizer import sum_over_ranks

from .advantages import RunningMoments, gae, group_normalised, leave_one_out, masked_whiten
from .experience import Scored
from .generate import Answer
from .kl import kl_per_token, penalised_rewards


def coefficients(value: Tensor, beta: Tensor | None, pref_beta: float, like: Tensor) -> Tensor:
    """Return the weight `[R]` of each answer's KL: `value`, times beta(x) / pref_beta where `beta` `[R]` decides."""
    whole = value.cpu().expand(like.shape).clone()
    return whole if beta is None else whole * beta / pref_beta


def adjusted_scores(scored: Scored, answers: Sequence[Answer], args: Any, moments: RunningMoments) -> Tensor:
    """Return what each answer is worth `[R]`: its reward, normalised and less the penalty if the recipe says so.

    Where there is no reward it is 0, and the answer must be left out by its mask.
    """
    valid = ~scored.rewards.failed
    scores = torch.where(valid, scored.rewards.total, torch.zeros(()))
    if args.ppo_score_norm:
        device = moments.mean.device
        moments.update(scores.to(device), valid.to(device), sum_over_ranks)
        scores = moments.normalised(scores.to(device)).cpu()
    if args.missing_eos_penalty:
        scores = scores - args.missing_eos_penalty * torch.tensor([not answer.ended for answer in answers])
    return scores


def advantages_of(
    scored: Scored, scores: Tensor, coefficient: Tensor, mask: Tensor, *, group: int, args: Any, device: Any
) -> tuple[Tensor, Tensor | None]:
    """Return advantages, `[R, T]` or `[R]`, and with gae the returns `[R, T]`.

    Args:
        scored: what is said of the answers.
        scores: `[R]`, what each is worth.
        coefficient: `[R]`, of its KL.
        mask: `[R, T]`, tokens to learn from.
        group: answers of a prompt, which are neighbours.
        args: of the recipe.
        device: where sums over processes are made.
    """
    valid = ~scored.rewards.failed
    if args.advantage_estimator == "grpo":  # the KL is a term of the loss
        return group_normalised(scores, valid, group), None
    kl = kl_per_token(scored.policy, scored.reference, args.kl_estimator, mask=mask)
    if args.advantage_estimator == "rloo":
        return leave_one_out(scores - coefficient * kl.sum(1), valid, group), None
    rewards = penalised_rewards(scores, kl, coefficient, mask)
    if args.ppo_whiten_rewards:
        rewards = masked_whiten(rewards.to(device), mask.to(device), shift_mean=False, total=sum_over_ranks).cpu()
    found = gae(rewards, scored.values, mask, gamma=args.gae_gamma, lam=args.gae_lambda)
    white = masked_whiten(found.advantages.to(device), mask.to(device), total=sum_over_ranks)
    return white.cpu(), found.returns


def best_and_worst(scores: Tensor, valid: Tensor, group: int) -> list[tuple[int, int]]:
    """Return, per prompt whose valid answers differ in score, the rows of its best and of its worst answer.

    Args:
        scores: `[R]`; the answers of a prompt are `group` neighbouring rows.
        valid: `[R]`, bool.
        group: answers of a prompt.
    """
    values, known = scores.tolist(), valid.tolist()
    pairs = []
    for first in range(0, len(values), group):
        rows = [row for row in range(first, first + group) if known[row]]
        if rows:
            best, worst = max(rows, key=values.__getitem__), min(rows, key=values.__getitem__)
            if values[best] > values[worst]:
                pairs.append((best, worst))
    return pairs


def pair_row(prompt: list[int], best: list[int], worst: list[int]) -> dict[str, Any]:
    """Return a preference pair as the host's data processing writes it."""
    row: dict[str, Any] = {"images": None, "videos": None, "audios": None}
    for side, answer in (("chosen", best), ("rejected", worst)):
        both = [*prompt, *answer]
        row[f"{side}_input_ids"] = both
        row[f"{side}_attention_mask"] = [1] * len(both)
        row[f"{side}_labels"] = [IGNORE] * len(prompt) + answer
    return row


def head_pairs(pairs: Sequence[tuple[int, int]], scored: Scored) -> dict[str, Tensor]:
    """Return what the beta head alone learns from of pairs: their margins `[N]`, and what their betas come from."""
    best, worst = (torch.tensor([pair[side] for pair in pairs], dtype=torch.long) for side in (0, 1))
    ratio = ((scored.policy - scored.reference) * scored.mask).sum(1)
    kept = {"pair_margin": ratio[best] - ratio[worst]}
    kept |= {} if scored.hidden is None else {"pair_hidden": scored.hidden[best]}
    return kept | ({} if scored.prompt_nll is None else {"pair_nll": scored.prompt_nll[best]})
