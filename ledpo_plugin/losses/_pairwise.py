"""Losses on pairs that compare the policy with a reference model.

Notation: a = log pi(y_w|x) - log pi_ref(y_w|x) is the chosen answer's log-ratio, b the rejected one's, both sums over
tokens; D = a - b is the margin; s is the sigmoid and LS its logarithm; |w|, |l| count tokens. Every function
takes `PairLogps` of `[B]` tensors and `beta: [B]`, returns `LossOutput` of `[B]` tensors, and raises
ValueError for any other shape or a missing reference. Gradient reaches the policy's log-probabilities and
beta unless a docstring says otherwise; rewards carry none. "TRL 0.24" is trl/trainer/dpo_trainer.py at that
release.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ledpo_plugin.losses._common import log_ratios, smoothed_logistic, with_rewards
from ledpo_plugin.losses._types import LossOutput, PairLogps


def sigmoid(logps: PairLogps, beta: Tensor, *, label_smoothing: float = 0.0) -> LossOutput:
    """DPO; with label smoothing e, cDPO.

    -(1 - e) LS(beta D) - e LS(-beta D): arXiv:2305.18290 eq. 7; smoothing as in the authors' note on cDPO (TRL from
    0.29 on ignores it here).
    d/dbeta = -D s(-beta D) at e = 0, which never changes sign; at e > 0 the best beta is ln((1 - e)/e) / D.
    """
    a, b = log_ratios("sigmoid", logps, beta)
    return with_rewards(smoothed_logistic(beta * (a - b), label_smoothing), beta, a, b)


def robust(logps: PairLogps, beta: Tensor, *, label_smoothing: float = 0.1) -> LossOutput:
    """Robust DPO: an unbiased estimate of the DPO loss when a share e of the labels is flipped.

    [-(1 - e) LS(beta D) + e LS(-beta D)] / (1 - 2e): arXiv:2403.00409, as in TRL 0.24.
    Unbounded below in beta (slope -e/(1 - 2e) as beta D grows), so beta must not be learned.

    Raises:
        ValueError: also if e is not in [0, 0.5).
    """
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"robust needs 0 <= label_smoothing < 0.5, got {label_smoothing}")
    a, b = log_ratios("robust", logps, beta)
    logits = beta * (a - b)
    losses = -(1 - label_smoothing) * F.logsigmoid(logits) + label_smoothing * F.logsigmoid(-logits)
    return with_rewards(losses / (1 - 2 * label_smoothing), beta, a, b)


def hinge(logps: PairLogps, beta: Tensor) -> LossOutput:
    """SLiC's hinge on DPO's margin, as RSO writes it: 1 / beta is the target margin.

    max(0, 1 - beta D): arXiv:2309.06657; SLiC (arXiv:2305.10425) has no reference model and adds an SFT term.
    Zero for every beta >= 1 / D, so beta must not be learned.
    """
    a, b = log_ratios("hinge", logps, beta)
    return with_rewards(torch.relu(1 - beta * (a - b)), beta, a, b)


def ipo(logps: PairLogps, beta: Tensor) -> LossOutput:
    """IPO: regress the margin onto 1 / (2 beta); beta is the paper's tau.

    (a/|w| - b/|l| - 1 / (2 beta))^2: arXiv:2310.12036 eq. 17.
    Departure from the paper's formula: log-ratios are averaged over tokens, as its authors confirmed to TRL, and as
    TRL 0.24 and HALOs do; DPO's own repository sums them. Zero at beta = 1 / (2 D), so beta must not be learned.
    """
    a, b = log_ratios("ipo", logps, beta)
    a, b = a / logps.chosen_length, b / logps.rejected_length
    return with_rewards((a - b - 1 / (2 * beta)) ** 2, beta, a, b)


def exo_pair(logps: PairLogps, beta: Tensor, *, label_smoothing: float = 1e-3) -> LossOutput:
    """EXO on pairs: the KL divergence from the policy's preference to the smoothed label.

    s(beta D) [LS(beta D) - ln(1 - e)] + s(-beta D) [LS(-beta D) - ln e]: arXiv:2402.00856 eq. 16.
    Beta has the optimum of cDPO, ln((1 - e)/e) / D. Departure from TRL 0.24: e = 0 is refused (the label's
    logarithm is infinite), where TRL replaces it by 1e-3. The authors' code has 0 and -10 for the two logarithms of
    the label.

    Raises:
        ValueError: also if e is not in (0, 0.5).
    """
    if not 0 < label_smoothing < 0.5:
        raise ValueError(f"exo_pair needs 0 < label_smoothing < 0.5 (the paper: 0.001), got {label_smoothing}")
    a, b = log_ratios("exo_pair", logps, beta)
    logits = beta * (a - b)
    right = torch.sigmoid(logits) * (F.logsigmoid(logits) - math.log1p(-label_smoothing))
    wrong = torch.sigmoid(-logits) * (F.logsigmoid(-logits) - math.log(label_smoothing))
    return with_rewards(right + wrong, beta, a, b)


def nca_pair(logps: PairLogps, beta: Tensor) -> LossOutput:
    """NCA on pairs: raises the chosen answer's likelihood itself, not only the margin.

    -LS(beta a) - LS(-beta a)/2 - LS(-beta b)/2: arXiv:2402.05369, as in its authors' code and TRL 0.24.
    Convex in beta with slope -D/4 at beta = 0: a learned beta has an interior optimum wherever D > 0 and a !=
    0.
    """
    a, b = log_ratios("nca_pair", logps, beta)
    losses = -F.logsigmoid(beta * a) - 0.5 * F.logsigmoid(-beta * a) - 0.5 * F.logsigmoid(-beta * b)
    return with_rewards(losses, beta, a, b)


def apo_zero(logps: PairLogps, beta: Tensor) -> LossOutput:
    """APO-zero: for chosen answers that are better than what the policy gives.

    1 - s(beta a) + s(beta b): arXiv:2408.06266 eq. 7. Bounded by 2; d/dbeta has the sign of -D at small beta.
    """
    a, b = log_ratios("apo_zero", logps, beta)
    # s(-z), not 1 - s(z): the difference would round to 0 long before the loss does.
    return with_rewards(torch.sigmoid(-beta * a) + torch.sigmoid(beta * b), beta, a, b)


def apo_down(logps: PairLogps, beta: Tensor) -> LossOutput:
    """APO-down: for chosen answers that are worse than what the policy gives.

    s(beta a) + 1 - s(beta D): arXiv:2408.06266 eq. 8. Bounded by 2; at small beta d/dbeta = b/4, so a learned
    beta rises where the rejected answer has lost likelihood, whatever the chosen one did.
    """
    a, b = log_ratios("apo_down", logps, beta)
    return with_rewards(torch.sigmoid(beta * a) + torch.sigmoid(-beta * (a - b)), beta, a, b)


def sppo_hard(logps: PairLogps, beta: Tensor) -> LossOutput:
    """SPPO with hard labels: regress the log-ratios onto +-1 / (2 beta); 1 / beta is the paper's eta.

    (a - 1/(2 beta))^2 + (b + 1/(2 beta))^2: arXiv:2405.00675 eq. 4.7 with P = 1 and 0, as in TRL 0.24; its authors'
    code takes half of that.
    At beta = 1 / D it is (a + b)^2 / 2, which prefers neither answer, so beta must not be learned.
    """
    a, b = log_ratios("sppo_hard", logps, beta)
    target = 0.5 / beta
    return with_rewards((a - target) ** 2 + (b + target) ** 2, beta, a, b)


def discopop(logps: PairLogps, beta: Tensor, *, tau: float = 0.05) -> LossOutput:
    """DiscoPOP: a logistic loss where the pair is wrong, blended into an exponential one where it is right.

    (1 - m) (-LS(z)) + m exp(-z) with z = beta D, m = s(z / tau): arXiv:2406.08414 eq. 5.
    Not monotone: it has a hump at small z > 0, so a learned beta may be held below the hump. tau > 1
    would let the product grow without bound as z falls.
    """
    a, b = log_ratios("discopop", logps, beta)
    logits = beta * (a - b)
    logistic = torch.sigmoid(-logits / tau) * -F.logsigmoid(logits)
    # m exp(-z) in one exponent: apart, 0 * inf would be NaN at strongly negative margins.
    exponential = torch.exp(F.logsigmoid(logits / tau) - logits)
    return with_rewards(logistic + exponential, beta, a, b)


def bco_pair(logps: PairLogps, beta: Tensor, *, delta: Tensor) -> LossOutput:
    """BCO on pairs: classify each answer against delta, the running mean of all rewards (a scalar tensor).

    -LS(beta a - delta) - LS(-(beta b - delta)): arXiv:2404.04656, as in LLaMA-Factory and in TRL up to 0.28, which has
    no delta from 0.29 on.
    No gradient through delta; under a varying beta it averages rewards of different betas. Convex in beta.

    Raises:
        ValueError: also if delta is not a scalar.
    """
    a, b = log_ratios("bco_pair", logps, beta)
    if delta.dim() != 0:
        raise ValueError(f"delta has shape {tuple(delta.shape)}, expected ()")
    shift = delta.detach()
    return with_rewards(-F.logsigmoid(beta * a - shift) - F.logsigmoid(shift - beta * b), beta, a, b)


def kto_pair(logps: PairLogps, beta: Tensor) -> LossOutput:
    """KTO on pairs, as TRL 0.8.6 has it: each answer against the KL estimate of the other half.

    [1 - s(beta (a - K_l)) + 1 - s(beta (K_w - b))] / 2, K_w = max(0, mean a), K_l = max(0, mean b):
    trl/trainer/dpo_trainer.py at v0.8.6, which returned both terms of each pair; half their sum has the same
    mean.
    As published there, the means are over the local batch and gradient flows through them.
    """
    a, b = log_ratios("kto_pair", logps, beta)
    chosen_kl, rejected_kl = a.mean().clamp(min=0), b.mean().clamp(min=0)
    losses = 0.5 * (torch.sigmoid(beta * (rejected_kl - a)) + torch.sigmoid(beta * (b - chosen_kl)))
    return with_rewards(losses, beta, a, b)


def sigmoid_norm(logps: PairLogps, beta: Tensor) -> LossOutput:
    """Length-normalised DPO.

    -LS(beta (a/|w| - b/|l|)): arXiv:2411.15124 (Tulu 3) section 4.3, as in open-instruct and TRL 1.9.
    """
    a, b = log_ratios("sigmoid_norm", logps, beta)
    a, b = a / logps.chosen_length, b / logps.rejected_length
    return with_rewards(-F.logsigmoid(beta * (a - b)), beta, a, b)


def r_dpo(logps: PairLogps, beta: Tensor, *, alpha: float = 0.05) -> LossOutput:
    """R-DPO: DPO with a penalty of alpha per token by which the chosen answer is longer.

    -LS(beta D + alpha (|w| - |l|)): arXiv:2403.19159. The best policy for the reward r - alpha |y| under a KL to the
    reference has r = beta log(pi/pi_ref) + alpha |y| + const, which is what the preferences are explained by: length
    already explains a part of them, and the policy learns the rest. (Some ports have a minus, which rewards length.)
    The penalty is outside beta, so alpha keeps its meaning when beta is learned; it carries no gradient.
    """
    a, b = log_ratios("r_dpo", logps, beta)
    penalty = alpha * (logps.chosen_length - logps.rejected_length)
    return with_rewards(-F.logsigmoid(beta * (a - b) + penalty), beta, a, b)


def dpop(logps: PairLogps, beta: Tensor, *, penalty: float = 50.0) -> LossOutput:
    """DPO-Positive: DPO with a penalty lambda for a chosen answer that lost likelihood.

    -LS(beta (D - lambda max(0, -a))): arXiv:2402.13228 (Smaug); some ports have the penalty outside of LS. With
    lambda = 50 the bracket is negative as soon as a < -D/50, and d/dbeta has its sign: there a learned beta falls, and
    the penalty weakens with it.
    """
    a, b = log_ratios("dpop", logps, beta)
    return with_rewards(-F.logsigmoid(beta * (a - b - penalty * torch.relu(-a))), beta, a, b)
