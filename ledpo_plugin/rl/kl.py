"""The KL to the reference: its estimators, its coefficient, and the rewards that it is taken from."""

import math

import torch
from torch import Tensor, nn

from ledpo_plugin.rl._common import bounded_expm1, check_shapes, masked

KL_ESTIMATORS = ("k1", "k2", "k3")


def kl_per_token(logps: Tensor, reference_logps: Tensor, estimator: str, *, mask: Tensor | None = None) -> Tensor:
    """Return an estimate of KL(policy || reference) per sampled token, in nats, of the inputs' shape.

    With d = logps - reference_logps: k1 = d, k2 = d^2 / 2, k3 = e^-d - 1 + d (Schulman, "Approximating KL
    divergence", joschu.net/blog/kl-approx.html). The exponential goes on along its tangent above -d = 20.
    Gradient reaches both inputs. With a mask (bool) the estimate is 0 outside it, without gradient there; without
    one, NaN of padding reaches the gradient of padding.

    Raises:
        ValueError: an unknown estimator, or shapes differ.
    """
    check_shapes(logps.shape, reference_logps=reference_logps)
    ratio = logps - reference_logps
    if mask is not None:
        check_shapes(logps.shape, mask=mask)
        ratio = masked(ratio, mask)
    if estimator == "k1":
        return ratio
    if estimator == "k2":
        return ratio.square() / 2
    if estimator == "k3":
        return bounded_expm1(-ratio) + ratio
    raise ValueError(f"the KL estimator is one of {', '.join(KL_ESTIMATORS)}, got {estimator!r}")


@torch.no_grad()
def penalised_rewards(scores: Tensor, kl_tokens: Tensor, coefficient: Tensor, mask: Tensor) -> Tensor:
    """Return the reward of each token, `[R, T]`: -coefficient * KL, and the answer's score on its last token.

    `scores` is `[R]`, `kl_tokens` `[R, T]` in nats, `coefficient` `[R]` or a scalar, `mask` `[R, T]` bool. A row
    without tokens gets 0 everywhere, its score is dropped. Ziegler et al. 2019, arXiv:1909.08593 eq. 2, spread over
    tokens as TRL does. No gradient.

    Raises:
        ValueError: a shape is wrong.
    """
    check_shapes(mask.shape, kl_tokens=kl_tokens)
    check_shapes(mask.shape[:1], scores=scores)
    if coefficient.dim():
        check_shapes(mask.shape[:1], coefficient=coefficient)
        coefficient = coefficient[:, None]
    penalties = masked(-coefficient * kl_tokens, mask)
    last = mask.clone()
    last[:, :-1] &= ~mask[:, 1:]
    return torch.where(last, penalties + scores[:, None], penalties)


class KlCoefficient(nn.Module):
    """The coefficient of the KL penalty: fixed, or adaptive to a target; buffer `value`, saved with the module.

    Adaptive: value *= 1 + error * n / horizon, error = KL / target - 1 clipped to +-0.2, n the answers since the last
    update: Ziegler et al. 2019, arXiv:1909.08593 section 2.2, as in TRL up to 0.9.

    Args:
        initial: The coefficient to begin with, >= 0.
        target: Nats of KL per answer that the coefficient is steered to; None for a fixed one.
        horizon: Answers over which an error of 0.2 changes the coefficient by a fifth.

    Raises:
        ValueError: `initial` is negative, or `target` or `horizon` is not positive.
    """

    value: Tensor

    def __init__(self, initial: float, *, target: float | None = None, horizon: float = 10_000) -> None:
        super().__init__()
        if not (math.isfinite(initial) and initial >= 0):
            raise ValueError(f"a KL coefficient is a number >= 0, got {initial}")
        if target is not None and not (math.isfinite(target) and target > 0):
            raise ValueError(f"a target KL is a number of nats > 0, got {target}")
        if not horizon > 0:
            raise ValueError(f"the horizon of the KL coefficient is a number of answers > 0, got {horizon}")
        self.target = target
        self.horizon = horizon
        self.register_buffer("value", torch.tensor(initial, dtype=torch.float32))

    @torch.no_grad()
    def update(self, kl: Tensor | float, answers: int) -> None:
        """Steer the coefficient by the mean KL of `answers` answers over all ranks, in nats summed per answer.

        Nothing happens where the coefficient is fixed or there are no answers. At most `horizon` answers count, so
        that no update changes the coefficient by more than a fifth, and it stays positive.

        Raises:
            ValueError: the KL is NaN or infinite.
        """
        if self.target is None or answers == 0:
            return
        kl = float(kl)
        if not math.isfinite(kl):
            raise ValueError(f"the mean KL of {answers} answers to the reference is {kl}: the policy has diverged")
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.value.mul_(1 + error * min(answers / self.horizon, 1.0))
