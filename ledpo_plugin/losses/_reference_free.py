"""Losses on pairs that need no reference model.

Notation: lw, ll are the policy's log-probabilities of the chosen and rejected answer, summed over tokens; pw = lw/|w|
and pl = ll/|l| their averages; s is the sigmoid and LS its logarithm. Shapes, errors and gradients are those
of `_pairwise`; the reference fields of `PairLogps` may be None and are never read.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ledpo_plugin.losses._common import average_logps, check_shapes, nll, smoothed_logistic, with_rewards
from ledpo_plugin.losses._types import LossOutput, PairLogps

# A token-average log-probability above this counts as this: at 0 the odds are infinite. The gradient of the
# log odds is 1 / (1 - p), hence at most 1e7; beyond the clamp it is 0.
_LARGEST_AVERAGE_LOGP = -1e-7
# exp() of more than this counts as exp() of this. exp(30) = 1e13 keeps losses, gradients and their squared
# norm inside fp32; at alpha = 0.25 it is reached at -120 nats per token, ten times worse than a uniform
# guess.
_LARGEST_EXPONENT = 30.0


def _log_odds(average_logp: Tensor) -> Tensor:
    """Return ln(p / (1 - p)) of p = exp(average_logp), with finite value and gradient for every p in [0, 1]."""
    logp = average_logp.clamp(max=_LARGEST_AVERAGE_LOGP)
    # ln(1 - e^x): each form is accurate on its side of -ln 2; both stay finite on the other, so `where` is
    # safe.
    log_one_minus_p = torch.where(logp > -math.log(2), torch.log(-torch.expm1(logp)), torch.log1p(-torch.exp(logp)))
    return logp - log_one_minus_p


def orpo(logps: PairLogps, beta: Tensor) -> LossOutput:
    """ORPO: the chosen answer's NLL plus beta (the paper's lambda) times an odds-ratio loss.

    -pw + beta (-LS(log odds(pw) - log odds(pl))), log odds(p) = p - ln(1 - e^p): arXiv:2403.07691 eq. 6-7.
    The SFT term is over the response only, as in LLaMA-Factory; TRL 0.24 includes the prompt, and so does the authors'
    code unless `disable_prompt_loss` is set.
    Beta weights a positive term: d/dbeta > 0 for every pair, so beta must not be learned.
    """
    chosen, rejected = average_logps(logps, beta)
    odds_ratio = -F.logsigmoid(_log_odds(chosen) - _log_odds(rejected))
    return with_rewards(nll(logps) + beta * odds_ratio, beta, chosen, rejected)


def simpo(logps: PairLogps, beta: Tensor, *, gamma_beta_ratio: float = 0.5, label_smoothing: float = 0.0) -> LossOutput:
    """SimPO: DPO's logistic loss on average log-probabilities, with a target margin.

    -LS(beta (pw - pl - rho)): arXiv:2405.14734 eq. 6 with rho = gamma / beta fixed, as in its official code;
    at one fixed beta this is LLaMA-Factory's `simpo_gamma` form. A target in nats per token keeps its meaning
    when beta varies: a learned beta rises where the margin exceeds rho and falls where it does not.
    """
    chosen, rejected = average_logps(logps, beta)
    logits = beta * (chosen - rejected - gamma_beta_ratio)
    return with_rewards(smoothed_logistic(logits, label_smoothing), beta, chosen, rejected)


def cpo(logps: PairLogps, beta: Tensor, *, cpo_alpha: float = 1.0, label_smoothing: float = 0.0) -> LossOutput:
    """CPO: DPO with a uniform reference, plus cpo_alpha times the chosen answer's NLL.

    -LS(beta (lw - ll)) + cpo_alpha (-pw): arXiv:2401.08417 eq. 3. Departure from the authors' code and TRL 0.24: the
    NLL is the average over each chosen response, one value per pair, where they average over all answer tokens of the
    batch (prompts are left out there, too).
    Beta's gradient does not vanish at step 0: lw - ll is not a difference to a reference.
    """
    check_shapes(logps, beta)
    chosen, rejected = logps.policy_chosen, logps.policy_rejected
    preference = smoothed_logistic(beta * (chosen - rejected), label_smoothing)
    return with_rewards(preference + cpo_alpha * nll(logps), beta, chosen, rejected)


def alphapo(
    logps: PairLogps,
    beta: Tensor,
    *,
    alpha: float = 0.25,
    gamma_beta_ratio: float = 0.04,
    label_smoothing: float = 0.0,
) -> LossOutput:
    """AlphaPO: SimPO with a reward whose shape alpha bends; alpha = 0 is SimPO.

    -LS(beta (R(pw) - R(pl) - rho)), R(p) = (1 - e^(-alpha p)) / alpha: arXiv:2501.03884, as in TRL 0.24.
    The rewards are beta R, as the paper defines them. Departure: the exponent is capped at 30, beyond which R
    is constant and has no gradient; uncapped it overflows for an answer the policy finds all but impossible.
    """
    chosen, rejected = (_bent(logp, alpha) for logp in average_logps(logps, beta))
    logits = beta * (chosen - rejected - gamma_beta_ratio)
    return with_rewards(smoothed_logistic(logits, label_smoothing), beta, chosen, rejected)


def _bent(average_logp: Tensor, alpha: float) -> Tensor:
    """Return AlphaPO's R(p); its limit p at alpha = 0."""
    if alpha == 0:
        return average_logp
    return -torch.expm1((-alpha * average_logp).clamp(max=_LARGEST_EXPONENT)) / alpha
