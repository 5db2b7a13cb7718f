"""R-DPO against its derivation: its loss leads to the policy that is best for "reward minus alpha per token"."""

import itertools

import pytest
import torch

from ledpo_plugin.losses import PairLogps
from ledpo_plugin.losses._pairwise import r_dpo

BETA, ALPHA = 0.4, 0.07
REWARD = torch.tensor([1.0, -0.5, 0.3, 0.8, -1.2], dtype=torch.float64)
LENGTH = torch.tensor([9.0, 2.0, 5.0, 30.0, 14.0], dtype=torch.float64)
REFERENCE = torch.tensor([0.3, 0.1, 0.25, 0.15, 0.2], dtype=torch.float64)


def _best() -> torch.Tensor:
    """Return argmax of E_pi[r - alpha |y|] - beta KL(pi, ref): ref exp((r - alpha |y|) / beta), normalised."""
    return torch.softmax(REFERENCE.log() + (REWARD - ALPHA * LENGTH) / BETA, dim=0)


def _expected_loss(logits: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return R-DPO's mean loss over all pairs of answers, labelled as Bradley and Terry do by the reward."""
    logps, total = torch.log_softmax(logits, dim=0), logits.new_zeros(())
    for w, other in itertools.permutations(range(len(REWARD)), 2):
        pair = PairLogps(
            policy_chosen=logps[w : w + 1],
            policy_rejected=logps[other : other + 1],
            reference_chosen=REFERENCE[w : w + 1].log(),
            reference_rejected=REFERENCE[other : other + 1].log(),
            chosen_length=LENGTH[w : w + 1],
            rejected_length=LENGTH[other : other + 1],
        )
        loss = r_dpo(pair, torch.full((1,), BETA, dtype=torch.float64), alpha=alpha).losses
        total = total + torch.sigmoid(REWARD[w] - REWARD[other]) * loss.sum()
    return total


def test_the_best_policy_is_where_the_objective_has_no_gradient():
    """The closed form above, checked by the gradient of the objective itself."""
    logits = _best().log().requires_grad_()
    policy = torch.softmax(logits, dim=0)
    kl = (policy * (policy / REFERENCE).log()).sum()
    objective = (policy * (REWARD - ALPHA * LENGTH)).sum() - BETA * kl
    (gradient,) = torch.autograd.grad(objective, logits)
    assert gradient.abs().max() < 1e-12


def test_the_loss_has_no_gradient_at_the_best_policy():
    """And with the penalty's sign reversed it has."""
    logits = _best().log().requires_grad_()
    (right,) = torch.autograd.grad(_expected_loss(logits, ALPHA), logits)
    (wrong,) = torch.autograd.grad(_expected_loss(logits, -ALPHA), logits)
    assert right.abs().max() < 1e-12
    assert wrong.abs().max() > 0.1


@pytest.mark.parametrize("longer", ["chosen", "rejected"])
def test_length_that_explains_the_preference_teaches_less(longer):
    """A chosen answer that is longer pulls the policy less than one that is as long; a shorter one, more."""

    def pull(chosen: float, rejected: float) -> float:
        logp = torch.tensor([-3.0], dtype=torch.float64, requires_grad=True)
        rest = torch.tensor([-3.0], dtype=torch.float64)
        lengths = torch.tensor([chosen], dtype=torch.float64), torch.tensor([rejected], dtype=torch.float64)
        pair = PairLogps(
            policy_chosen=logp,
            policy_rejected=rest,
            reference_chosen=rest,
            reference_rejected=rest,
            chosen_length=lengths[0],
            rejected_length=lengths[1],
        )
        r_dpo(pair, torch.ones(1, dtype=torch.float64), alpha=ALPHA).losses.sum().backward()
        return -logp.grad.item()

    same = pull(10, 10)
    assert pull(20, 10) < same if longer == "chosen" else pull(10, 20) > same
