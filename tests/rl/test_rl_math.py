"""The mathematics of PPO, RLOO and GRPO against TRL 0.24, against hand derivations, against their definitions.

Four kinds of expected value, each named where it is used: TRL's methods and functions called as installed; lines of
the one method that TRL's PPO is, cut out of the installed source and run (tests/rl_reference.py); the definition
written again in numpy, row by row; numbers worked out in a docstring. float64. What every function promises beside
its values is in tests/rl/test_rl_contract.py.
"""

import math
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rl_reference import (
    LENGTHS,
    TIGHT,
    TRL_LENGTHS,
    TRL_WHITENED,
    close,
    mask_of,
    noise,
    rollout,
    tensor,
    trl_grpo_advantages,
    trl_grpo_loss,
    trl_ppo_advantages,
    trl_ppo_losses,
    trl_rloo_advantages,
)
from trl.core import masked_mean as trl_masked_mean
from trl.core import masked_whiten as trl_masked_whiten
from trl.trainer.utils import RunningMoments as TrlRunningMoments

from ledpo_plugin.rl._common import LARGEST_EXPONENT, moments
from ledpo_plugin.rl.advantages import RunningMoments, gae, group_normalised, leave_one_out, masked_whiten
from ledpo_plugin.rl.kl import KL_ESTIMATORS, KlCoefficient, kl_per_token, penalised_rewards
from ledpo_plugin.rl.objectives import (
    approx_kl,
    clipped_surrogate,
    clipped_value_loss,
    explained_variance,
    token_mean,
)

NAN = float("nan")


# --- GAE -------------------------------------------------------------------------------------------------------------


def test_gae_by_hand():
    """gamma = lambda = 1/2, rewards 1, 2, 3, values 2, 4, 6.

    d_2 = 3 - 6 = -3, d_1 = 2 + 3 - 4 = 1, d_0 = 1 + 2 - 2 = 1.
    A_2 = -3, A_1 = 1 - 3/4 = 1/4, A_0 = 1 + 1/16 = 17/16. Returns A + V: 49/16, 17/4, 3.
    The second row ends after one token: d = A = 5 - 1 = 4, return 5; the third has none.
    """
    rewards = tensor([1, 2, 3], [5, 99, 99], [7, 7, 7])
    values = tensor([2, 4, 6], [1, 99, 99], [7, 7, 7])
    found = gae(rewards, values, mask_of((3, 1, 0), 3), gamma=0.5, lam=0.5)
    close(found.advantages, tensor([17 / 16, 1 / 4, -3], [4, 0, 0], [0, 0, 0]))
    close(found.returns, tensor([49 / 16, 17 / 4, 3], [5, 0, 0], [0, 0, 0]))


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.5), (0.99, 1.0), (1.0, 0.0), (0.0, 0.7)])
def test_gae_is_the_sum_that_defines_it(gamma, lam):
    """numpy, row by row: A_t = sum over l of (gamma lam)^l d_(t+l), eq. 16 of the paper; no recursion, no padding."""
    batch = rollout()
    found = gae(batch.returns, batch.values, batch.mask, gamma=gamma, lam=lam)
    for row, length in enumerate(LENGTHS):
        reward, value = batch.returns[row, :length].numpy(), batch.values[row, :length].numpy()
        delta = reward + gamma * np.append(value[1:], 0)[:length] - value
        expected = [
            sum((gamma * lam) ** (later - t) * delta[later] for later in range(t, length)) for t in range(length)
        ]
        close(found.advantages[row, :length], np.array(expected))
        assert (found.advantages[row, length:] == 0).all()
        assert (found.returns[row, length:] == 0).all()


def test_gae_with_lambda_one_returns_what_was_earned():
    """The values cancel: return_t is the discounted sum of the rewards from t on, whatever the values are."""
    batch = rollout()
    found = gae(batch.returns, batch.values, batch.mask, gamma=0.9, lam=1.0)
    other = gae(batch.returns, 100 * batch.advantages, batch.mask, gamma=0.9, lam=1.0)
    close(found.returns, other.returns)
    close(found.returns[0, 0], sum(0.9**t * batch.returns[0, t] for t in range(7)))


@pytest.mark.parametrize("lengths", [(7, 7, 7, 7), TRL_LENGTHS], ids=["full", "ragged"])
@pytest.mark.parametrize("kl_estimator", ["k1", "k3"])
@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")  # TRL's indexing
def test_rewards_advantages_and_returns_are_those_of_trls_ppo(lengths, kl_estimator, whiten):
    batch = rollout(lengths=lengths)
    theirs, mask, longer = trl_ppo_advantages(batch, lengths, kl_estimator=kl_estimator, whiten=whiten)

    kl = kl_per_token(batch.old_logps, batch.reference_logps, kl_estimator, mask=mask)
    close(kl, theirs.kl)
    rewards = penalised_rewards(batch.scores, kl, torch.tensor(0.05, dtype=torch.float64), longer)
    if whiten:
        rewards = masked_whiten(rewards, longer, shift_mean=False)
    tolerance = TRL_WHITENED if whiten else TIGHT
    close(rewards, theirs.rewards, **tolerance)
    found = gae(rewards, batch.old_values, longer, gamma=0.98, lam=0.9)
    close(found.returns, theirs.returns, **tolerance)
    close(masked_whiten(found.advantages, mask), theirs.advantages, **TRL_WHITENED)


# --- RLOO and GRPO ---------------------------------------------------------------------------------------------------


def test_leave_one_out_by_hand():
    """Scores 1, 2, 6: the others' means are 4, 7/2, 3/2. Of 1, 2 alone valid: 1 - 2 and 2 - 1. One alone, none: 0."""
    scores = tensor(1, 2, 6, 1, 2, NAN, NAN, 5, NAN, 1, 2, 3)
    valid = torch.tensor([1, 1, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0]).bool()
    close(leave_one_out(scores, valid, 3), tensor(-3, -1.5, 4.5, -1, 1, 0, 0, 0, 0, 0, 0, 0))


def test_group_normalised_by_hand():
    """Scores 1, 2, 6: mean 3, deviations -2, -1, 3, std sqrt(14 / 2) = sqrt 7. Of 1, 3 alone valid: std sqrt 2."""
    scores = tensor(1, 2, 6, 1, NAN, 3, NAN, 5, NAN)
    valid = torch.tensor([1, 1, 1, 1, 0, 1, 0, 1, 0]).bool()
    three, two = math.sqrt(7) + 1e-4, math.sqrt(2) + 1e-4
    expected = tensor(-2 / three, -1 / three, 3 / three, -1 / two, 0, 1 / two, 0, 0, 0)
    close(group_normalised(scores, valid, 3), expected)
    halved = group_normalised(scores, valid, 3, eps=math.sqrt(7))
    close(halved[:3], tensor(-2, -1, 3) / (2 * math.sqrt(7)))


@pytest.mark.parametrize("group", [2, 4, 8])
def test_group_advantages_are_trls(group):
    scores = noise(3, 16, scale=5)
    valid = torch.ones(16, dtype=torch.bool)
    close(group_normalised(scores, valid, group), trl_grpo_advantages(scores, group))
    close(leave_one_out(scores, valid, group), trl_rloo_advantages(scores, group))


def test_rloo_with_its_kl_in_the_reward_is_trls():
    """TRL subtracts beta times the summed k1 from the score; so does the sum of the penalised rewards."""
    logps, reference = -noise(1, 8, 5).abs(), -noise(2, 8, 5).abs()
    scores, mask = noise(3, 8), torch.ones(8, 5, dtype=torch.bool)
    theirs = trl_rloo_advantages(scores, 4, beta=0.3, logps=logps, reference_logps=reference)
    coefficient = torch.full((8,), 0.3, dtype=torch.float64)
    rewards = penalised_rewards(scores, kl_per_token(logps, reference, "k1"), coefficient, mask)
    close(leave_one_out(rewards.sum(1), mask.any(1), 4), theirs)


@pytest.mark.parametrize("seed", range(3))
def test_group_advantages_with_holes_are_the_definition(seed):
    """numpy, group by group, over the valid rows alone."""
    scores, valid = noise(seed, 24), noise(seed + 50, 24) > -0.3
    ours, normalised = leave_one_out(scores, valid, 4), group_normalised(scores, valid, 4)
    for row in range(24):
        first = row // 4 * 4
        others = [scores[i].item() for i in range(first, first + 4) if valid[i] and i != row]
        if not valid[row] or not others:
            assert ours[row] == normalised[row] == 0
            continue
        mine = scores[row].item()
        close(ours[row], mine - np.mean(others))
        everyone = [*others, mine]
        close(normalised[row], (mine - np.mean(everyone)) / (np.std(everyone, ddof=1) + 1e-4))


@pytest.mark.parametrize("function", [leave_one_out, group_normalised])
def test_group_advantages_ignore_what_a_prompt_is_worth(function):
    """A constant added to a prompt's scores changes nothing, they sum to 0, and groups do not mix."""
    scores, valid = noise(0, 12), torch.arange(12) % 5 > 0
    found = function(scores, valid, 4)
    shifted = function(scores + tensor(7, -3, 100).repeat_interleave(4), valid, 4)
    close(shifted, found)
    close(found.view(3, 4).sum(1), tensor(0, 0, 0))
    close(function(scores[4:8], valid[4:8], 4), found[4:8])


def test_equal_scores_teach_nothing():
    scores, valid = torch.full((8,), 0.1, dtype=torch.float32), torch.ones(8, dtype=torch.bool)
    for function in (leave_one_out, group_normalised):
        assert function(scores, valid, 4).abs().max() < 1e-3


@pytest.mark.parametrize("function", [leave_one_out, group_normalised])
@pytest.mark.parametrize("group", [3, 0, -1])
def test_refuses_a_group_that_does_not_divide(function, group):
    with pytest.raises(ValueError, match=f"8 answers cannot be split into groups of {group} answers per prompt"):
        function(torch.zeros(8), torch.ones(8, dtype=torch.bool), group)


# --- Whitening and moments -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift_mean", [True, False])
@pytest.mark.parametrize("shape", [(6, 7), (9,)])
def test_whitening_is_trls(shift_mean, shape):
    values, mask = 3 * noise(0, *shape) + 5, noise(1, *shape) > -0.5
    theirs = trl_masked_whiten(values, mask, shift_mean=shift_mean)
    close(masked_whiten(values, mask, shift_mean=shift_mean), theirs.masked_fill(~mask, 0), **TRL_WHITENED)


def test_whitening_by_hand():
    """1, 3, 5: mean 3, unbiased variance 4: -1, 0, 1; without the shift 2, 3, 4. One value has no variance: 0, or 7."""
    values, mask = tensor([1, 3, 5, NAN]), torch.tensor([[True, True, True, False]])
    close(masked_whiten(values, mask), tensor([-1, 0, 1, 0]), rtol=1e-8)
    close(masked_whiten(values, mask, shift_mean=False), tensor([2, 3, 4, 0]), rtol=1e-8)
    one = torch.tensor([True, False])
    close(masked_whiten(tensor(7, NAN), one), tensor(0, 0))
    close(masked_whiten(tensor(7, NAN), one, shift_mean=False), tensor(7, 0))
    close(masked_whiten(tensor(7, NAN), ~one & one), tensor(0, 0))


def test_whitening_keeps_its_digits_far_from_zero():
    """fp32 at 1e4 +- 1: a sum of squares would have lost the variance."""
    values = noise(0, 500, dtype=torch.float32) + 1e4
    whitened = masked_whiten(values, torch.ones(500, dtype=torch.bool))
    close(whitened.double(), (values.double() - values.double().mean()) / values.double().std(), rtol=0, atol=2e-3)


def test_running_moments_are_those_of_everything_seen():
    """Against numpy over all valid scores at once, and against TRL's class, which computes in fp32."""
    ours = RunningMoments().double()
    theirs = TrlRunningMoments(SimpleNamespace(use_distributed=False))
    seen = np.array([])
    for seed, size in enumerate([5, 3, 64, 8]):
        scores, valid = noise(seed, size, scale=1 + seed) + 10 * seed, torch.arange(size) % 4 > 0
        ours.update(torch.where(valid, scores, NAN), valid)
        theirs.update(scores[valid])
        seen = np.append(seen, scores[valid].numpy())
        close(ours.mean, seen.mean())
        close(ours.var, seen.var())
        close(ours.std, seen.std(ddof=1))
        assert ours.count == theirs.count == len(seen)
        assert (ours.mean.item(), ours.std.item()) == pytest.approx((theirs.mean, theirs.std), rel=1e-5)
        close(ours.normalised(scores), (scores - seen.mean()) / (seen.std(ddof=1) + torch.finfo(torch.float64).eps))


def test_running_moments_without_scores_stay():
    """Nothing yet: mean 0, deviation 1. One score: still no deviation. Then a batch without any changes no bit."""
    running, none = RunningMoments(), torch.zeros(3, dtype=torch.bool)
    close(running.normalised(torch.tensor([3.0])), tensor(3.0), rtol=1e-6)
    running.update(torch.full((3,), NAN), none)
    assert (running.mean, running.var, running.count) == (0, 1, 0)
    running.update(torch.tensor([4.0, NAN]), torch.tensor([True, False]))
    assert (running.mean, running.std, running.count) == (4, 1, 1)
    running.update(torch.tensor([0.1, 0.7, -3.0]), ~none)
    before = {name: buffer.clone() for name, buffer in running.state_dict().items()}
    running.update(torch.full((3,), NAN), none)
    assert all(torch.equal(before[name], buffer) for name, buffer in running.state_dict().items())


def test_equal_scores_normalise_to_zero():
    """Their deviation is 0: without the epsilon, 0 / 0."""
    running, scores = RunningMoments(), torch.full((4,), 2.0)
    running.update(scores, torch.ones(4, dtype=torch.bool))
    assert (running.normalised(scores) == 0).all()


@pytest.mark.parametrize("module, update", [
    (RunningMoments, lambda m: m.update(torch.tensor([1.0, 5.0]), torch.ones(2, dtype=torch.bool))),
    (lambda: KlCoefficient(0.1, target=6.0), lambda m: m.update(60.0, 500)),
])  # fmt: skip
def test_what_was_learned_is_in_the_state(module, update):
    """Saved and loaded, it goes on as if nothing had happened."""
    first, second = module(), module()
    update(first)
    second.load_state_dict(first.state_dict())
    update(first)
    update(second)
    assert list(first.state_dict().values()) == list(second.state_dict().values())
    assert list(module().state_dict().values()) != list(first.state_dict().values())
    assert list(first.parameters()) == []


class Ranks:
    """Runs a function once per rank in threads; `total` adds what all ranks bring, and waits for them."""

    def __init__(self, size):
        self.barrier, self.brought = threading.Barrier(size, timeout=20), [None] * size

    def run(self, function, *per_rank):
        results = [None] * self.barrier.parties

        def work(rank):
            try:
                results[rank] = function(*(values[rank] for values in per_rank), total=lambda x: self.total(rank, x))
            except BaseException:
                self.barrier.abort()
                raise

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(results))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    def total(self, rank, brought):
        self.brought[rank] = brought
        self.barrier.wait()
        summed = sum(self.brought)
        self.barrier.wait()
        return summed


@pytest.mark.parametrize("first_has_none", [False, True])
def test_three_ranks_are_one(first_has_none):
    """Every statistic over ranks equals that of all rows on one rank, also where a rank has no token at all."""
    batch = rollout()
    mask = batch.mask.clone()
    mask[:2] &= not first_has_none
    parts = [x.split(2) for x in (batch.values, batch.returns, mask)]

    whitened = Ranks(3).run(masked_whiten, parts[0], parts[2])
    close(torch.cat(whitened), masked_whiten(batch.values, mask))
    explained = Ranks(3).run(explained_variance, *parts)
    for value in explained:
        close(value, explained_variance(batch.values, batch.returns, mask))
    for found in Ranks(3).run(moments, parts[0], parts[2]):
        for ours, expected in zip(found, moments(batch.values, mask), strict=True):
            close(ours, expected)

    running, alone = [RunningMoments().double() for _ in range(3)], RunningMoments().double()
    Ranks(3).run(
        lambda module, scores, valid, total: module.update(scores, valid, total),
        running, batch.scores.split(2), mask.any(1).split(2),
    )  # fmt: skip
    alone.update(batch.scores, mask.any(1))
    for module in running:
        close(module.mean, alone.mean)
        close(module.var, alone.var)
        assert module.count == alone.count


# --- KL --------------------------------------------------------------------------------------------------------------


def test_kl_estimators_by_hand():
    """d = ln 2: k1 = ln 2, k2 = (ln 2)^2 / 2, k3 = 1/2 - 1 + ln 2. d = -ln 2: k3 = 2 - 1 - ln 2. d = 0: all 0."""
    policy, reference = tensor(0, math.log(0.5), -1), tensor(math.log(0.5), 0, -1)
    two = math.log(2)
    close(kl_per_token(policy, reference, "k1"), tensor(two, -two, 0))
    close(kl_per_token(policy, reference, "k2"), tensor(two**2 / 2, two**2 / 2, 0))
    close(kl_per_token(policy, reference, "k3"), tensor(two - 0.5, 1 - two, 0))


def distributions():
    logits = noise(0, 30, scale=1.5).requires_grad_()
    return logits, torch.log_softmax(logits, 0), torch.log_softmax(noise(1, 30), 0)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_kl_estimators_average_to_the_kl(estimator):
    """Over the whole vocabulary, weighted by the policy: torch's own KL divergence, exactly."""
    _, policy, reference = distributions()
    mean = (policy.exp() * kl_per_token(policy, reference, estimator)).sum()
    close(mean, torch.nn.functional.kl_div(reference, policy, log_target=True, reduction="sum"))


def test_the_gradient_of_k2_averages_to_that_of_the_kl():
    """E[grad k2] = E[d grad log p] = grad KL: what makes k2 right inside a loss, where the sample is not redrawn."""
    logits, policy, reference = distributions()
    inside = (policy.exp().detach() * kl_per_token(policy, reference, "k2")).sum()
    exact = torch.nn.functional.kl_div(reference, policy, log_target=True, reduction="sum")
    close(*(torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (inside, exact)))


def test_k3_is_never_negative_and_exact_near_zero():
    """At d = 1e-9, k3 = d^2 / 2: e^-d - 1 + d as written would give 0 or rounding's 1e-16."""
    close(kl_per_token(tensor(1e-9), tensor(0), "k3"), tensor(5e-19), rtol=0, atol=1e-24)
    assert (kl_per_token(noise(0, 1000), noise(1, 1000), "k3") >= 0).all()


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
def test_gradient_of_the_kl(estimator):
    """By finite differences, on both sides of the exponent's cap, in both inputs."""
    policy = torch.cat([noise(0, 6), tensor(-LARGEST_EXPONENT - 3.0)]).requires_grad_()
    reference = torch.cat([noise(1, 6), tensor(0)]).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: kl_per_token(a, b, estimator), (policy, reference))


def test_refuses_an_unknown_estimator():
    with pytest.raises(ValueError, match="one of k1, k2, k3, got 'k4'"):
        kl_per_token(tensor(0), tensor(0), "k4")


def test_penalised_rewards_by_hand():
    """KL 1, 2, 3 at coefficients 1/2 and 1: the score is on the last token, also where that is the only one."""
    kl = tensor([1, 2, 3], [1, NAN, NAN], [NAN, NAN, NAN])
    coefficient = tensor(0.5, 1, NAN)
    found = penalised_rewards(tensor(10, 20, NAN), kl, coefficient, mask_of((3, 1, 0), 3))
    close(found, tensor([-0.5, -1, 8.5], [19, 0, 0], [0, 0, 0]))
    same = penalised_rewards(tensor(10, 20, NAN), kl, torch.tensor(2.0), mask_of((3, 1, 0), 3))
    close(same, tensor([-2, -4, 4], [18, 0, 0], [0, 0, 0]))


def test_penalised_rewards_sum_to_score_less_kl():
    batch = rollout()
    kl, coefficient = batch.advantages, batch.scores.square()
    found = penalised_rewards(batch.scores, kl, coefficient, batch.mask)
    expected = batch.scores - coefficient * (kl * batch.mask).sum(1)
    close(found.sum(1), torch.where(batch.mask.any(1), expected, torch.zeros(())))


def test_a_fixed_coefficient_stays():
    coefficient = KlCoefficient(0.05)
    coefficient.update(1e6, 1000)
    coefficient.update(NAN, 1000)
    assert coefficient.value == torch.tensor(0.05)


def test_the_adaptive_coefficient_by_hand():
    """Target 6, horizon 1000, 100 answers each, from 1: Ziegler et al., section 2.2.

    KL 6.6: error 0.1, factor 1 + 0.1 / 10 = 1.01. KL 60: error 9, clipped to 0.2, factor 1.02.
    KL 5.4: error -0.1, factor 0.99. KL -3: error -1.5, clipped to -0.2, factor 0.98. KL 6: 1.
    """
    coefficient = KlCoefficient(1.0, target=6.0, horizon=1000).double()
    expected = 1.0
    for kl, factor in [(6.6, 1.01), (torch.tensor(60.0), 1.02), (5.4, 0.99), (-3.0, 0.98), (6.0, 1.0)]:
        coefficient.update(kl, 100)
        expected *= factor
        close(coefficient.value, expected)


def test_the_adaptive_coefficient_finds_its_target():
    """A policy whose KL is 1 / coefficient, target 4: the coefficient goes to 1/4 from either side."""
    for start in (1e-2, 10.0):
        coefficient = KlCoefficient(start, target=4.0, horizon=1000)
        for _ in range(1500):
            coefficient.update(1 / coefficient.value, 128)
        assert coefficient.value.item() == pytest.approx(0.25, rel=1e-3)


def test_no_update_changes_the_coefficient_by_more_than_a_fifth():
    """Ten horizons of answers at once would make it 1 - 0.2 * 10 = -1 times what it was."""
    coefficient = KlCoefficient(1.0, target=6.0, horizon=100)
    coefficient.update(0.0, 1000)
    assert coefficient.value.item() == pytest.approx(0.8)
    coefficient.update(NAN, 0)
    assert coefficient.value.item() == pytest.approx(0.8)


@pytest.mark.parametrize("kl", [NAN, math.inf, torch.tensor(NAN)])
def test_a_kl_that_is_no_number_stops_the_run(kl):
    with pytest.raises(
        ValueError, match=r"mean KL of 8 answers to the reference is (nan|inf): the policy has diverged"
    ):
        KlCoefficient(1.0, target=6.0).update(kl, 8)


@pytest.mark.parametrize("options", [
    {"initial": -0.1}, {"initial": NAN}, {"initial": 1, "target": 0}, {"initial": 1, "target": NAN},
    {"initial": 1, "horizon": 0}, {"initial": 1, "horizon": NAN},
])  # fmt: skip
def test_refuses_a_coefficient_that_cannot_steer(options):
    with pytest.raises(ValueError, match=r"got (-0\.1|nan|0)$"):
        KlCoefficient(**options)


# --- Losses ----------------------------------------------------------------------------------------------------------


def test_the_surrogate_by_hand():
    """Clip 0.2, advantages 1 and -1, ratios 1/2, 1, 2: -min(r A, clip(r) A).

    A = 1: -1/2, -1, -1.2 (clipped: the gain is capped). A = -1: 0.8 (clipped: enough was taken away), 1, 2.
    Gradients in logps, -A r where not clipped: -1/2, -1, 0 and 0, 1, 2.
    """
    logps = torch.log(tensor([0.5, 1, 2], [0.5, 1, 2])).requires_grad_()
    mask = torch.ones(2, 3, dtype=torch.bool)
    found = clipped_surrogate(logps, torch.zeros(2, 3, dtype=torch.float64), tensor(1, -1), mask, 0.2)
    close(found.losses, tensor([-0.5, -1, -1.2], [0.8, 1, 2]))
    assert found.clipped.tolist() == [[False, False, True], [True, False, False]]
    close(found.ratio, tensor([0.5, 1, 2], [0.5, 1, 2]))
    (gradient,) = torch.autograd.grad(found.losses.sum(), logps)
    close(gradient, tensor([-0.5, -1, 0], [0, 1, 2]))


def test_the_value_loss_by_hand():
    """Clip 1/2, old value 0, return 1: value 0.3 -> 0.49 / 2. Value 0.8, clipped to 0.5: 0.25 > 0.04 -> 0.25 / 2.

    Value -2, clipped to -0.5: 2.25 < 9 -> 9 / 2. Gradients V - G where not clipped: -0.7, 0, -3.
    """
    values = tensor([0.3, 0.8, -2]).requires_grad_()
    zeros, ones = torch.zeros(1, 3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)
    found = clipped_value_loss(values, zeros, ones, ones.bool(), 0.5)
    close(found.losses, tensor([0.245, 0.125, 4.5]))
    assert found.clipped.tolist() == [[False, True, False]]
    (gradient,) = torch.autograd.grad(found.losses.sum(), values)
    close(gradient, tensor([-0.7, 0, -3]))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("clip, value_clip", [(0.2, 0.2), (0.05, 0.4)])
def test_losses_and_what_is_watched_are_those_of_trls_ppo(seed, clip, value_clip):
    """Values, clip fractions, approximate KL, and the gradient of the whole loss."""
    batch = rollout(seed)
    batch.logps.requires_grad_()
    batch.values.requires_grad_()
    theirs = trl_ppo_losses(batch, clip=clip, value_clip=value_clip)
    policy = clipped_surrogate(batch.logps, batch.old_logps, batch.advantages, batch.mask, clip)
    value = clipped_value_loss(batch.values, batch.old_values, batch.returns, batch.mask, value_clip)

    close(token_mean(policy.losses, batch.mask), theirs.pg_loss)
    close(token_mean(value.losses, batch.mask), theirs.vf_loss)
    close(policy.ratio, theirs.ratio.detach())
    assert 0 < policy.clipped.sum() < batch.mask.sum()
    assert 0 < value.clipped.sum() < batch.mask.sum()
    close(token_mean(policy.clipped.double(), batch.mask), theirs.pg_clipfrac, rtol=1e-6)  # theirs is fp32
    close(token_mean(value.clipped.double(), batch.mask), theirs.vf_clipfrac, rtol=1e-6)
    # TRL divides by padding too
    close(approx_kl(batch.logps, batch.old_logps, batch.mask) * batch.mask.double().mean(), theirs.approxkl.detach())

    loss = token_mean(policy.losses, batch.mask) + 0.1 * token_mean(value.losses, batch.mask)
    for ours, expected in zip(
        *(torch.autograd.grad(x, [batch.logps, batch.values]) for x in (loss, theirs.loss)), strict=True
    ):
        close(ours, expected)


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_losses_are_those_of_trls_grpo(beta):
    """Clipped surrogate plus beta k3 with gradient, mean over tokens. No row is empty: TRL counts those as 0."""
    batch = rollout(lengths=TRL_LENGTHS)
    batch.logps.requires_grad_()
    theirs = trl_grpo_loss(batch, batch.scores, beta)
    losses = clipped_surrogate(batch.logps, batch.old_logps, batch.scores, batch.mask, 0.2).losses
    losses = losses + beta * kl_per_token(batch.logps, batch.reference_logps, "k3", mask=batch.mask)
    ours = token_mean(losses, batch.mask)
    close(ours, theirs)
    close(*(torch.autograd.grad(x, batch.logps)[0] for x in (ours, theirs)))


def test_gradients_of_the_losses():
    """By finite differences: the surrogate in logps, the value loss in values, the mean over tokens."""
    batch = rollout()
    logps, values = batch.logps.requires_grad_(), batch.values.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: clipped_surrogate(x, batch.old_logps, batch.advantages, batch.mask, 0.2).losses, logps
    )
    assert torch.autograd.gradcheck(
        lambda x: clipped_value_loss(x, batch.old_values, batch.returns, batch.mask, 0.2).losses, values
    )
    assert torch.autograd.gradcheck(lambda x: token_mean(x, batch.mask), values)


def test_the_first_step_is_the_policy_gradient():
    """At ratio 1 nothing is clipped and the gradient is that of -A log p, token by token."""
    batch = rollout()
    logps = batch.old_logps.clone().requires_grad_()
    found = clipped_surrogate(logps, batch.old_logps, batch.advantages, batch.mask, 0.2)
    (gradient,) = torch.autograd.grad(found.losses.sum(), logps)
    close(gradient, torch.where(batch.mask, -batch.advantages, torch.zeros(())))
    assert not found.clipped.any()


def test_data_of_the_rollout_gets_no_gradient():
    batch = rollout()
    data = [batch.old_logps, batch.advantages, batch.old_values, batch.returns]
    for x in (*data, batch.logps, batch.values, batch.scores):
        x.requires_grad_()
    policy = clipped_surrogate(batch.logps, batch.old_logps, batch.advantages, batch.mask, 0.2)
    value = clipped_value_loss(batch.values, batch.old_values, batch.returns, batch.mask, 0.2)
    (policy.losses + value.losses).sum().backward()
    assert all(x.grad is None for x in data)
    assert not policy.ratio.requires_grad
    without = [
        *gae(batch.returns, batch.values, batch.mask, gamma=1.0, lam=0.95),
        penalised_rewards(batch.scores, batch.logps, batch.scores, batch.mask),
        leave_one_out(batch.scores, batch.mask.any(1), 2),
        group_normalised(batch.scores, batch.mask.any(1), 2),
        masked_whiten(batch.values, batch.mask),
        approx_kl(batch.logps, batch.old_logps, batch.mask),
        explained_variance(batch.values, batch.returns, batch.mask),
    ]
    assert not any(x.requires_grad for x in without)


# --- The mean over tokens and what is watched ------------------------------------------------------------------------


def test_mean_by_hand():
    """Rows 1, 2, 3 and 6: 12 / 4 = 3."""
    values, mask = tensor([1, 2, 3], [6, NAN, NAN], [NAN, NAN, NAN]), mask_of((3, 1, 0), 3)
    close(token_mean(values, mask), 3.0)
    close(token_mean(values, mask), trl_masked_mean(torch.nan_to_num(values), mask))
    close(token_mean(values, mask, count=8), 1.5)
    close(token_mean(values, mask, count=torch.tensor(8)), 1.5)


def test_parts_of_a_step_add_up_to_its_mean():
    batch = rollout()
    parts = zip(batch.values.split(2), batch.mask.split(2), strict=True)
    count = batch.mask.sum()
    close(sum(token_mean(v, m, count=count) for v, m in parts), token_mean(batch.values, batch.mask))


def test_averaged_parts_may_share_less_than_one_token_each():
    """One token of 5 in eight parts: each divides by 1/8, and their average is 5."""
    values, masks = torch.full((8, 1, 1), 5.0), torch.arange(8).view(8, 1, 1) == 3
    for share in (0.125, torch.tensor(0.125)):
        parts = [token_mean(value, mask, count=share) for value, mask in zip(values, masks, strict=True)]
        assert sum(parts) / 8 == 5


def test_nothing_to_average_is_zero():
    """With a gradient of 0, so that a rank whose answers all failed can still take part in the backward pass."""
    values, none = noise(0, 2, 3).requires_grad_(), torch.zeros(2, 3, dtype=torch.bool)
    for count in (None, 0, torch.tensor(0)):
        found = token_mean(values, none, count=count)
        assert found == 0
        assert (torch.autograd.grad(found, values)[0] == 0).all()
    assert approx_kl(values, values, none) == explained_variance(values, values, none) == 0


def test_approx_kl_by_hand():
    """Differences 1, 2 and, outside, NaN: (1/2 + 4/2) / 2 = 5/4."""
    close(approx_kl(tensor([1, 0, NAN]), tensor([0, 2, 0]), mask_of((2,), 3)), 1.25)


def test_explained_variance_by_hand():
    """Returns 1, 2, 3 (sum of squares 2). Their own: 1. A constant: 0. Values 1, 2, 4: errors 0, 0, -1, 2/3: 2/3.

    Values 3, 2, 1: errors -2, 0, 2, 8: -3. Returns that do not vary: 0.
    """
    returns, mask = tensor([1, 2, 3, NAN]), mask_of((3,), 4)
    for values, expected in [([1, 2, 3, 9], 1), ([5, 5, 5, 9], 0), ([1, 2, 4, NAN], 2 / 3), ([3, 2, 1, NAN], -3)]:
        close(explained_variance(tensor(values), returns, mask), tensor(expected)[0])
    assert explained_variance(returns, tensor([4, 4, 4, NAN]), mask) == 0
