"""What the mathematics of ledpo_plugin/rl promises beside its values (those: tests/rl/test_rl_math.py).

Nothing outside the mask reaches a value or a gradient, shapes are checked, dtypes kept, answers do not mix, no value is
read on the host, and nothing overflows.
"""

import math

import numpy as np
import pytest
import torch
from rl_reference import close, mask_of, noise, rollout, tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ledpo_plugin.rl._common import LARGEST_EXPONENT
from ledpo_plugin.rl.advantages import RunningMoments, gae, group_normalised, leave_one_out, masked_whiten
from ledpo_plugin.rl.kl import KL_ESTIMATORS, kl_per_token, penalised_rewards
from ledpo_plugin.rl.objectives import (
    approx_kl,
    clipped_surrogate,
    clipped_value_loss,
    explained_variance,
    token_mean,
)

NAN = float("nan")


# --- The contract of every function ----------------------------------------------------------------------------------

# name -> (function of a batch, the fields it reads as [R, T], those of them that get a gradient)
FUNCTIONS = {
    "gae": (lambda b: gae(b.returns, b.values, b.mask, gamma=0.9, lam=0.9), ("returns", "values"), ()),
    "masked_whiten": (lambda b: (masked_whiten(b.values, b.mask),), ("values",), ()),
    "penalised_rewards": (
        lambda b: (penalised_rewards(b.scores, b.advantages, b.scores, b.mask),), ("advantages",), (),
    ),
    **{
        estimator: (
            lambda b, estimator=estimator: (kl_per_token(b.logps, b.reference_logps, estimator, mask=b.mask),),
            ("logps", "reference_logps"), ("logps",),
        )
        for estimator in KL_ESTIMATORS
    },
    "clipped_surrogate": (
        lambda b: clipped_surrogate(b.logps, b.old_logps, b.advantages, b.mask, 0.2),
        ("logps", "old_logps", "advantages"), ("logps",),
    ),
    "clipped_value_loss": (
        lambda b: clipped_value_loss(b.values, b.old_values, b.returns, b.mask, 0.2),
        ("values", "old_values", "returns"), ("values",),
    ),
    "token_mean": (lambda b: (token_mean(b.values, b.mask),), ("values",), ("values",)),
    "approx_kl": (lambda b: (approx_kl(b.logps, b.old_logps, b.mask),), ("logps", "old_logps"), ()),
    "explained_variance": (
        lambda b: (explained_variance(b.values, b.returns, b.mask),), ("values", "returns"), (),
    ),
}  # fmt: skip
BATCHWISE = {"masked_whiten", "token_mean", "approx_kl", "explained_variance"}
every_function = pytest.mark.parametrize("name", FUNCTIONS)


def backward(outputs, batch, names):
    inputs = [getattr(batch, name) for name in names]
    return torch.autograd.grad(outputs[0].sum(), inputs) if inputs else []


@every_function
@pytest.mark.parametrize("garbage", [NAN, math.inf, -math.inf])
def test_nothing_outside_the_mask_reaches_a_value_or_a_gradient(name, garbage):
    """Padding of zeros against padding of garbage, in every input: the same bits, and no gradient into padding."""
    function, fields, differentiable = FUNCTIONS[name]
    found = []
    for padding in (0.0, garbage):
        batch = rollout()
        for field in fields:
            setattr(batch, field, torch.where(batch.mask, getattr(batch, field), padding))
        if padding:
            batch.scores[~batch.mask.any(1)] = padding
        for field in differentiable:
            getattr(batch, field).requires_grad_()
        outputs = function(batch)
        gradients = backward(outputs, batch, differentiable)
        assert all((gradient[~batch.mask] == 0).all() for gradient in gradients)
        found.append([*outputs, *gradients])
    for clean, dirty in zip(*found, strict=True):
        assert torch.equal(clean, dirty)


@every_function
def test_zero_outside_the_mask(name):
    for output in FUNCTIONS[name][0](batch := rollout()):
        if output.shape == batch.mask.shape:
            outside = output[~batch.mask]
            assert (outside == 0).all() or (name == "clipped_surrogate" and (outside == 1).all())


@every_function
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_given(name, dtype):
    for output in FUNCTIONS[name][0](rollout(dtype=dtype)):
        assert output.dtype in (dtype, torch.bool)


@every_function
def test_fp32_agrees_with_fp64(name):
    low, high = rollout(dtype=torch.float32), rollout(dtype=torch.float32)
    for field, value in vars(high).items():
        setattr(high, field, value.double() if value.is_floating_point() else value)
    for ours, expected in zip(FUNCTIONS[name][0](low), FUNCTIONS[name][0](high), strict=True):
        torch.testing.assert_close(ours.double(), expected.double(), rtol=1e-5, atol=1e-5)


@every_function
@pytest.mark.parametrize("lengths, tokens", [((0, 0), 3), ((0, 0), 0), ((1,), 1)])
def test_answers_without_tokens(name, lengths, tokens):
    for output in FUNCTIONS[name][0](rollout(lengths=lengths, tokens=tokens)):
        assert output.isfinite().all()
        if not any(lengths) and name != "clipped_surrogate":
            assert (output == 0).all()


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - BATCHWISE))
def test_answers_do_not_mix(name):
    batch, part, order = rollout(), rollout(), torch.tensor([4, 0, 3])
    for field, value in vars(batch).items():
        setattr(part, field, value[order])
    for whole, some in zip(FUNCTIONS[name][0](batch), FUNCTIONS[name][0](part), strict=True):
        assert torch.equal(whole[order], some)


@every_function
def test_pure(name):
    """Twice the same, and inputs as they were."""
    batch, fresh = rollout(), rollout()
    first, second = FUNCTIONS[name][0](batch), FUNCTIONS[name][0](batch)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(value, getattr(fresh, field)) for field, value in vars(batch).items())


@every_function
@pytest.mark.parametrize("wrong", ["column", "row", "shorter"])
def test_refuses_each_input_that_would_broadcast(name, wrong):
    function, fields, _ = FUNCTIONS[name]
    for field in fields:
        batch = rollout(lengths=(7, 7, 7, 7, 7, 7, 7))  # square, so that [R] and [T] would pass for each other
        value = getattr(batch, field)
        setattr(batch, field, {"column": value[:, :1], "row": value[:1], "shorter": value[:, :-1]}[wrong])
        with pytest.raises(ValueError, match=r"has shape \(\d, \d\), expected \(\d, \d\)"):
            function(batch)


def test_refuses_scores_of_another_shape():
    scores, mask, valid = torch.zeros(3), mask_of((1, 1), 2), torch.ones(2, dtype=torch.bool)
    message = r"^\w+ has shape \(.*\), expected \(\d,\)$"
    for call in (
        lambda: leave_one_out(scores, valid, 1),
        lambda: group_normalised(scores[:, None], valid, 1),
        lambda: RunningMoments().update(scores, valid),
        lambda: penalised_rewards(scores, torch.zeros(2, 2), torch.zeros(2), mask),
        lambda: penalised_rewards(scores[:2], torch.zeros(2, 2), torch.zeros(2, 1), mask),
        lambda: clipped_surrogate(torch.zeros(2, 2), torch.zeros(2, 2), scores, mask, 0.2),
    ):
        with pytest.raises(ValueError, match=message):
            call()


class NoHostSync(TorchDispatchMode):
    """Fails where a tensor's value is read on the host: `.item()`, `if tensor:`, `float(tensor)`, `nonzero`."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero", "equal", "is_nonzero"), func
        return func(*args, **(kwargs or {}))


@every_function
def test_never_waits_for_the_device(name):
    function, _, differentiable = FUNCTIONS[name]
    batch = rollout()
    for field in differentiable:
        getattr(batch, field).requires_grad_()
    with NoHostSync():
        backward(function(batch), batch, differentiable)


def test_group_advantages_and_moments_never_wait_for_the_device():
    scores, valid, running = noise(0, 8), torch.arange(8) > 2, RunningMoments()
    with NoHostSync():
        leave_one_out(scores, valid, 4)
        group_normalised(scores, valid, 4)
        running.update(scores, valid)
        running.normalised(scores)


# --- Large values, in fp32 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("advantage", [-1e4, -1.0, 0.0, 1.0, 1e4])
def test_the_surrogate_is_finite_at_ten_thousand_nats(advantage):
    """And still pulls the right way: only a probability that grew under a negative advantage has a gradient."""
    logps = torch.tensor([[-1e4, -500.0, 0.0, 500.0, 1e4]]).requires_grad_()
    mask = torch.ones(1, 5, dtype=torch.bool)
    found = clipped_surrogate(logps, torch.zeros(1, 5), torch.full((1, 5), advantage), mask, 0.2)
    (gradient,) = torch.autograd.grad(token_mean(found.losses, mask), logps)
    for result in (found.losses, found.ratio, gradient):
        assert result.isfinite().all(), result
    signs = {-1: [0, 0, 1, 1, 1], 0: [0] * 5, 1: [0, 0, -1, 0, 0]}[int(np.sign(advantage))]
    assert gradient.sign().tolist() == [signs]


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
def test_the_kl_is_finite_at_ten_thousand_nats(estimator):
    """And its gradient points away from the reference where the policy is the larger one, and back."""
    logps = torch.tensor([-1e4, -500.0, 0.0, 500.0, 1e4]).requires_grad_()
    kl = kl_per_token(logps, torch.zeros(5), estimator)
    (gradient,) = torch.autograd.grad(kl.sum(), logps)
    assert kl.isfinite().all()
    assert gradient.isfinite().all()
    if estimator == "k1":
        assert (gradient == 1).all()
    else:
        assert gradient.sign().tolist() == [-1, -1, 0, 1, 1]
        assert kl[0] > kl[1] > kl[2] == 0


def test_the_tangent_touches_the_exponential():
    """At the cap the ratio and its slope are e^20 from both sides; one nat above, 2 e^20 instead of e^21."""
    logps = (LARGEST_EXPONENT + tensor([-1e-9, 0, 1e-9, 1.0])).requires_grad_()
    found = clipped_surrogate(logps, torch.zeros_like(logps), -torch.ones_like(logps), torch.ones_like(logps) > 0, 0.2)
    (gradient,) = torch.autograd.grad(found.losses.sum(), logps)
    top = math.exp(LARGEST_EXPONENT)
    close(found.losses, tensor([top, top, top, 2 * top]), rtol=1e-8)
    close(gradient, tensor([top, top, top, top]), rtol=1e-8)


def test_impossible_tokens_stay_finite():
    """A log-probability of -inf, of a token that top-k or top-p has ruled out since: ratio 0, loss 0 or the clip's."""
    logps, mask = torch.full((1, 2), -math.inf).requires_grad_(), torch.ones(1, 2, dtype=torch.bool)
    found = clipped_surrogate(logps, torch.zeros(1, 2), torch.tensor([[1.0, -1.0]]), mask, 0.2)
    (gradient,) = torch.autograd.grad(found.losses.sum(), logps)
    torch.testing.assert_close(found.losses, torch.tensor([[0.0, 0.8]]))
    assert (gradient == 0).all()


def test_large_rewards_and_values_stay_finite():
    batch = rollout(dtype=torch.float32)
    large = [batch.returns * 1e8, batch.values * 1e8, batch.old_values * 1e8]
    found = gae(*large[:2], batch.mask, gamma=1.0, lam=0.95)
    results = [
        *found,
        masked_whiten(found.advantages, batch.mask),
        clipped_value_loss(large[1], large[2], large[0], batch.mask, 0.2).losses,
        explained_variance(large[1], large[0], batch.mask),
        leave_one_out(batch.scores * 1e8, batch.mask.any(1), 3),
        group_normalised(batch.scores * 1e8, batch.mask.any(1), 3),
    ]
    assert all(result.isfinite().all() for result in results)
