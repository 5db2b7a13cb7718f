"""Beta strategies: the contract over every row of `BETAS`, and hand-worked numbers for each rule.

The contract runs over all strategies and, for the head, over all activations, with and without `center`.
"""

import inspect
import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ledpo_plugin.betas import (
    BETAS,
    BetaDpo,
    BetaFeatures,
    BetaStrategy,
    EpsilonDpo,
    FixedBeta,
    GlobalBeta,
    HeadBeta,
    MallowsBeta,
    PplBeta,
    Progress,
    epsilon_steps,
    mixture_token_logps,
    strategy_class,
)
from ledpo_plugin.betas._maps import ACTIVATIONS, Bounds
from ledpo_plugin.facts import HEAD_ACTIVATIONS, has_head, is_learned
from ledpo_plugin.hparams import LedpoArguments

BETA0, SIZE, WIDTH = 0.1, 8, 16


def features(seed=0, size=SIZE, training=True, **changes):
    """A batch with every feature set, a third of the way through the run."""
    generator = torch.Generator().manual_seed(seed)
    values = {
        "hidden": torch.randn(size, WIDTH, generator=generator),
        "prompt_nll": 1 + torch.rand(size, generator=generator),
        "margin": 3 * torch.randn(size, generator=generator),
        "reference_entropy": 0.02 + 0.1 * torch.rand(size, generator=generator),
        "epsilon_step": torch.randint(-1, 2, (size,), generator=generator).float(),
    }
    return BetaFeatures(size=size, training=training, **{"progress": Progress(2, 6), **values, **changes})


CASES = {name: (name, {}) for name in BETAS}
CASES |= {f"head {a}": ("head", {"beta_head_activation": a}) for a in HEAD_ACTIVATIONS}
CASES |= {
    "head centred": ("head", {"beta_center": True}),
    "head deep": ("head", {"beta_head_widths": "8, 4"}),
    "head linear": ("head", {"beta_head_widths": ""}),
    "ppl centred": ("ppl", {"beta_center": True}),
    "ppl inverse": ("ppl", {"beta_ppl_power": -1}),
    "beta_dpo unfiltered": ("beta_dpo", {"beta_dpo_filter": 0.0}),
}
LEARNED = [case for case, (name, _) in CASES.items() if is_learned(name)]
EXACT_AT_START = [case for case, (name, _) in CASES.items() if name in ("fixed", "global", "head")]


def build(case, seed=0, beta0=BETA0):
    """Build the strategy as the trainer does: from a recipe's arguments."""
    name, options = CASES[case]
    return strategy_class(name).from_arguments(LedpoArguments(**options), beta0=beta0, hidden_size=WIDTH, seed=seed)


def perturb(strategy, seed=0, size=0.5):
    """Move every parameter, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in strategy.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return strategy


def run(strategy, steps, first=0):
    """Forwards and optimizer-step calls as in training; what came out of each."""
    out = []
    for step in range(first, first + steps):
        output = strategy(features(seed=step))
        strategy.after_optimizer_step(lambda tensor: tensor)
        out.append((output.beta.detach().clone(), output.weights))
    return out


# --- The contract: every row -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("training", [True, False])
def test_one_positive_fp32_beta_per_example(case, training):
    output = perturb(build(case))(features(training=training))
    for tensor in output:
        if tensor is not None:
            assert tensor.shape == (SIZE,)
            assert tensor.dtype == torch.float32
            assert tensor.isfinite().all()
    assert (output.beta > 0).all()


@pytest.mark.parametrize("case", CASES)
def test_only_what_it_declares_is_needed(case):
    """With its needs alone it works; with any one of them missing it says which."""
    strategy = build(case)
    whole = features()
    wanted = {name: getattr(whole, name) for name in strategy.needs}
    strategy(BetaFeatures(size=SIZE, progress=whole.progress, **wanted))
    for missing in strategy.needs:
        with pytest.raises(ValueError, match=f"needs the feature '{missing}', which is not set"):
            strategy(BetaFeatures(size=SIZE, progress=whole.progress, **{**wanted, missing: None}))


@pytest.mark.parametrize("case", CASES)
def test_refuses_features_that_would_broadcast(case):
    strategy = build(case)
    for name in strategy.needs:
        right = getattr(features(), name)
        for wrong in (right[..., None], right[:1], right.flatten()[: SIZE - 1]):
            with pytest.raises(ValueError, match=rf"^{name} has shape \({wrong.shape[0]},.*expected \(8,"):
                strategy(features(**{name: wrong}))


@pytest.mark.parametrize("case", EXACT_AT_START)
@pytest.mark.parametrize("beta0", [0.1, 0.01, 2.5, 1e-3])
@pytest.mark.parametrize("size", [1, 7, 64])
def test_exactly_beta0_at_the_start(case, beta0, size):
    """Bit for bit, for every prompt, in training and evaluation: the run starts as plain DPO."""
    strategy = build(case, beta0=beta0)
    for training in (False, True, True):
        output = strategy(features(size=size, training=training))
        assert torch.equal(output.beta, torch.full((size,), beta0))
        assert output.log_ratio is None or torch.equal(output.log_ratio, torch.zeros(size))


@pytest.mark.parametrize("case", LEARNED)
def test_learned_betas_give_gradient_to_every_parameter(case):
    strategy = perturb(build(case), size=0.1)
    output = strategy(features())
    for value in (output.beta, output.log_ratio):
        gradients = torch.autograd.grad(
            (value * torch.randn(SIZE)).sum(), list(strategy.parameters()), retain_graph=True
        )
        assert all((gradient != 0).any() for gradient in gradients)
    torch.testing.assert_close(output.log_ratio, torch.log(output.beta / BETA0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", sorted(set(CASES) - set(LEARNED)))
def test_the_others_have_no_parameters_and_no_gradient(case):
    strategy = build(case)
    hot = {name: getattr(features(), name).requires_grad_() for name in strategy.needs}
    output = strategy(features(**{name: tensor.detach() for name, tensor in hot.items()}))
    assert not list(strategy.parameters())
    assert not output.beta.requires_grad
    assert output.log_ratio is None


@pytest.mark.parametrize("case", LEARNED)
@pytest.mark.parametrize("hidden", [torch.zeros(SIZE, WIDTH), torch.full((SIZE, WIDTH), 1e3), "wild"])
def test_finite_and_inside_the_bounds_for_wild_inputs(case, hidden):
    """|h| = 1e3 and parameters far from where they started: value and gradient are finite, 0.01 < beta < 1."""
    if isinstance(hidden, str):
        hidden = 1e3 * torch.randn(SIZE, WIDTH, generator=torch.Generator().manual_seed(3))
    for size in (0.1, 10.0, 1e4):
        strategy = perturb(build(case), size=size)
        output = strategy(features(hidden=hidden, prompt_nll=torch.linspace(0, 50, SIZE)))
        assert output.beta.isfinite().all()
        assert (output.beta > BETA0 / 10).all()
        assert (output.beta < BETA0 * 10).all()
        gradients = torch.autograd.grad(
            output.beta.sum() + output.log_ratio.square().sum(), list(strategy.parameters())
        )
        assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_continues_identically(case):
    """Save after three steps, load into a fresh strategy of another seed's weights: the next three are the same."""
    strategy = perturb(build(case))
    run(strategy, 3)
    saved = {key: value.clone() for key, value in strategy.state_dict().items()}
    expected = run(strategy, 3, first=3)
    fresh = build(case)
    fresh.load_state_dict(saved)
    for (beta, weights), (other_beta, other_weights) in zip(expected, run(fresh, 3, first=3), strict=True):
        assert torch.equal(beta, other_beta)
        assert weights is other_weights is None or torch.equal(weights, other_weights)


@pytest.mark.parametrize("case", CASES)
def test_evaluation_changes_nothing(case):
    strategy = perturb(build(case))
    run(strategy, 2)
    before = {key: value.clone() for key, value in strategy.state_dict().items()}
    first = strategy(features(seed=9, training=False))
    second = strategy(features(seed=9, training=False))
    assert torch.equal(first.beta, second.beta)
    assert first.weights is None
    assert all(torch.equal(value, strategy.state_dict()[key]) for key, value in before.items())


@pytest.mark.parametrize("case", CASES)
def test_leaves_the_global_random_state_alone(case):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    run(perturb(build(case)), 2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("case", ["head", "ppl"])
def test_head_weights_come_from_the_seed_alone(case):
    first, again, other = build(case, seed=1), build(case, seed=1), build(case, seed=2)
    weight = lambda strategy: strategy.head.layers[0].weight  # noqa: E731
    assert torch.equal(weight(first), weight(again))
    assert not torch.equal(weight(first), weight(other))
    assert weight(first).std() > 0.05


class NoHostSync(TorchDispatchMode):
    """Fails where a tensor's value is read on the host: `.item()`, `if tensor:`, `float(tensor)`, `nonzero`."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero", "equal", "is_nonzero"), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("case", CASES)
def test_never_waits_for_the_device(case):
    strategy, batch = build(case), features()
    with NoHostSync():
        strategy(batch)
        strategy(features(training=False))
        strategy.after_optimizer_step(lambda tensor: tensor)


@pytest.mark.parametrize("case", CASES)
def test_fp32_under_autocast_and_a_bf16_default(case):
    """The same bits with autocast on; a model built in bf16 does not make a bf16 head."""
    batch = features()
    expected = perturb(build(case))(batch).beta
    torch.set_default_dtype(torch.bfloat16)
    try:
        strategy = build(case)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(value.dtype in (torch.float32, torch.bool, torch.int64) for value in strategy.state_dict().values())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(perturb(strategy)(batch).beta, expected)


@pytest.mark.parametrize("name", BETAS)
def test_the_row_tells_the_truth(name):
    mode, cls = BETAS[name], strategy_class(name)
    assert mode.name == name
    assert issubclass(cls, BetaStrategy)
    assert build(name).mode is mode
    assert (mode.kind == "learned") == is_learned(name)
    assert mode.needs <= set(BetaFeatures.__dataclass_fields__)
    assert ("hidden" in mode.needs) == has_head(name)
    assert all((mode.formula, mode.source, mode.summary.endswith("."), cls.__doc__))
    parameters = list(inspect.signature(cls).parameters.values())
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters)
    assert all(p.default is not p.empty for p in parameters if p.name != "hidden_size")
    assert bool(list(build(name).parameters())) == is_learned(name)


def test_the_tables_are_complete_and_read_only():
    assert tuple(BETAS) == tuple(LedpoArguments.__dataclass_fields__["beta_mode"].metadata["choices"])
    assert set(ACTIVATIONS) == set(HEAD_ACTIVATIONS)
    with pytest.raises(TypeError):
        BETAS["fixed"] = BETAS["global"]


OPTIONS = {
    "beta_min": ("global", 0.05, lambda s: s.bounds.beta_min),
    "beta_max": ("global", 0.3, lambda s: s.bounds.beta_max),
    "beta_center": ("head", True, lambda s: s.center),
    "beta_head_widths": ("head", "24,12", lambda s: "24,12" if s.head.layers[2].weight.shape == (12, 24) else None),
    "beta_head_activation": ("head", "relu", lambda s: s.activation),
    "beta_ppl_power": ("ppl", -1, lambda s: s.power),
    "beta_ppl_epsilon": ("ppl", 0.3, lambda s: s.epsilon),
    "beta_dpo_alpha": ("beta_dpo", 0.2, lambda s: s.alpha),
    "beta_dpo_filter": ("beta_dpo", 0.5, lambda s: s.filter_share),
    "beta_dpo_momentum": ("beta_dpo", 0.5, lambda s: s.momentum),
    "epsilon_dpo_epsilon": ("epsilon_dpo", 0.2, lambda s: s.epsilon),
    "mallows_phi": ("mallows", 0.5, lambda s: s.phi),
}


@pytest.mark.parametrize("key", OPTIONS)
def test_each_recipe_key_arrives(key):
    name, value, read = OPTIONS[key]
    built = lambda **options: strategy_class(name).from_arguments(  # noqa: E731
        LedpoArguments(**options), beta0=BETA0, hidden_size=WIDTH
    )
    assert read(built(**{key: value})) == value
    assert read(built()) != value


@pytest.mark.parametrize("bounds", [{"beta_min": 0.2}, {"beta_max": 0.1}, {"beta_min": 0.0}, {"beta_max": 0.05}])
def test_refuses_bounds_that_exclude_beta0(bounds):
    for cls, extra in ((GlobalBeta, {}), (HeadBeta, {"hidden_size": 4}), (PplBeta, {"hidden_size": 4})):
        with pytest.raises(ValueError, match="0 < beta_min < pref_beta < beta_max must hold, got beta_min="):
            cls(beta0=0.1, **bounds, **extra)


# --- Bounded maps ----------------------------------------------------------------------------------------------------

BOUNDS = Bounds(beta0=0.1, beta_min=0.02, beta_max=0.4)  # r_down = ln 5, r_up = ln 4


def test_bound_equals_its_formula():
    """v >= 0: ln4 tanh(v / ln4); v < 0: ln5 tanh(v / ln5)."""
    v = np.array([-30.0, -2.0, -0.3, 0.0, 0.3, 2.0, 30.0])
    expected = [(math.log(4) if x >= 0 else math.log(5)) for x in v]
    expected = np.array(expected) * np.tanh(v / expected)
    np.testing.assert_allclose(BOUNDS.bound(torch.tensor(v)).numpy(), expected, rtol=1e-12)


def test_bound_is_smooth_at_zero_and_strict_at_infinity():
    raw = torch.tensor([-1e-4, 0.0, 1e-4], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(BOUNDS.bound(raw).sum(), raw)
    torch.testing.assert_close(slope, torch.ones(3, dtype=torch.float64), rtol=1e-6, atol=0)
    extreme = BOUNDS.beta(BOUNDS.bound(torch.tensor([-1e9, 1e9])))
    assert 0.02 < extreme[0] < 0.02001
    assert 0.3999 < extreme[1] < 0.4
    grid = BOUNDS.bound(torch.linspace(-8, 8, 1001, dtype=torch.float64))
    assert (grid.diff() > 0).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_are_exactly_zero_at_zero_whatever_the_bounds(activation):
    """Rounding differs from bounds to bounds and from a vector's body to its tail: 100 bounds, 7 and 64 elements."""
    generator = torch.Generator().manual_seed(0)
    for low, beta0, high in (torch.rand(100, 3, generator=generator).sort(dim=1).values + 1e-3).tolist():
        for size in (7, 64):
            zeros = torch.zeros(size)
            assert torch.equal(ACTIVATIONS[activation](zeros, Bounds(beta0, low, high)), zeros)


def softplus_factor(u):
    """softplus(u + c) / softplus(c) with c = ln(e - 1), for which softplus(c) = 1."""
    return np.log1p(np.exp(u + math.log(math.e - 1)))


@pytest.mark.parametrize(
    "activation, factor",
    [
        ("exp_tanh", np.exp),
        ("softplus", softplus_factor),
        ("relu", lambda u: np.maximum(1 + u, 1e-6)),
    ],
)
def test_activations_equal_their_formula_inside_the_bound(activation, factor):
    u = np.array([-3.0, -0.9, -0.1, 0.0, 0.1, 0.9, 3.0])
    raw = np.log(factor(u))
    expected = np.where(raw >= 0, math.log(4) * np.tanh(raw / math.log(4)), math.log(5) * np.tanh(raw / math.log(5)))
    ours = ACTIVATIONS[activation](torch.tensor(u), BOUNDS)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_sigmoid_activation_equals_its_formula():
    """0.02 + 0.38 s(u + c) with s(c) = 0.08 / 0.38, that is c = ln(0.08 / 0.30)."""
    u = np.array([-30.0, -3.0, 0.0, 0.5, 3.0, 30.0])
    expected = 0.02 + 0.38 / (1 + np.exp(-(u + math.log(0.08 / 0.30))))
    ours = BOUNDS.beta(ACTIVATIONS["sigmoid"](torch.tensor(u), BOUNDS))
    np.testing.assert_allclose(ours.numpy(), expected, rtol=2e-6)  # 1e-6 of it: the strict bounds
    assert ours[2] == 0.1


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_rise_and_survive_any_u(activation):
    u = torch.cat([torch.linspace(-3, 3, 200), torch.tensor([-1e4, -90.0, -20.0, 20.0, 90.0, 1e4])]).requires_grad_()
    value = ACTIVATIONS[activation](u, BOUNDS)
    (gradient,) = torch.autograd.grad(value.sum(), u)
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    assert (gradient >= 0).all()
    assert (value[:200].diff() >= 0).all()


def test_a_dead_relu_has_no_gradient():
    u = torch.tensor([-1.5, -0.5], requires_grad=True)
    (gradient,) = torch.autograd.grad(ACTIVATIONS["relu"](u, BOUNDS).sum(), u)
    assert gradient[0] == 0
    assert gradient[1] > 0


# --- Learned betas ---------------------------------------------------------------------------------------------------


def test_global_equals_its_formula():
    """beta0 0.1, bounds 0.01 and 1, theta 0.7: 0.1 exp(ln10 tanh(0.7 / ln10)) = 0.1 e^0.6792006."""
    strategy = GlobalBeta(beta0=0.1)
    with torch.no_grad():
        strategy.theta.fill_(0.7)
    expected = 0.1 * math.exp(math.log(10) * math.tanh(0.7 / math.log(10)))
    torch.testing.assert_close(strategy(features()).beta, torch.full((SIZE,), expected))


def test_head_equals_its_formula():
    """u = W2 gelu(W1 layernorm(h) + b1) + b2 in numpy, beta = 0.1 exp(ln10 tanh(u / ln10))."""
    strategy = perturb(HeadBeta(hidden_size=WIDTH, widths=(5,)))
    w1, b1, w2, b2 = (p.detach().double().numpy() for p in strategy.parameters())
    h = features().hidden.double().numpy()
    normed = (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-5)
    inner = normed @ w1.T + b1
    gelu = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
    u = (gelu @ w2.T + b2)[:, 0]
    expected = 0.1 * np.exp(math.log(10) * np.tanh(u / math.log(10)))
    np.testing.assert_allclose(strategy(features()).beta.detach().numpy(), expected, rtol=1e-5)


def test_head_gives_no_gradient_to_the_hidden_state():
    hidden = features().hidden.requires_grad_()
    perturb(build("head"))(features(hidden=hidden)).beta.sum().backward()
    assert hidden.grad is None


def test_head_reacts_to_the_prompt_after_one_step_and_not_before():
    """The zero layer gets gradient from the first loss, and then beta differs between prompts."""
    strategy = build("head")
    optimizer = torch.optim.Adam(strategy.parameters(), lr=1e-2)
    loss = -(strategy(features()).beta * features().margin).sum()
    loss.backward()
    assert (strategy.head.layers[0].weight.grad == 0).all()
    assert (strategy.head.layers[-1].weight.grad != 0).any()
    optimizer.step()
    assert strategy(features()).beta.std() > 1e-4


@pytest.mark.parametrize("case", ["head centred", "ppl centred", "head sigmoid", "head softplus", "head relu"])
def test_center_brings_the_geometric_mean_back_to_beta0(case):
    """A head with a constant bias of 0.8 would hold beta at about 0.1 e^0.75; centred, its mean comes back."""
    strategy = build(case)
    strategy.center = True
    with torch.no_grad():
        strategy.head.layers[-1].bias += 0.8
    batch = features()
    first = strategy(batch).log_ratio.mean()
    for _ in range(80):
        last = strategy(batch).log_ratio.mean()
    assert first > (0.05 if case.startswith("ppl") else 0.2)
    assert abs(last) < 0.01
    off = build(case)
    off.center = False
    with torch.no_grad():
        off.head.layers[-1].bias += 0.8
    for _ in range(3):
        same = off(batch).log_ratio.mean()
    assert abs(same - off(batch).log_ratio.mean()) < 0.02
    assert off.offset == 0


def test_center_moves_by_half_of_the_mean_over_all_ranks():
    """The other rank's log factors are all 1; ours are bound(0.5) = ln10 tanh(0.5 / ln10) = 0.4923..."""
    strategy = HeadBeta(hidden_size=WIDTH, center=True)
    with torch.no_grad():
        strategy.head.layers[-1].bias += 0.5
    strategy(features(gather=lambda tensor: torch.cat([tensor, torch.ones(SIZE)])))
    ours = math.log(10) * math.tanh(0.5 / math.log(10))
    assert strategy.offset.item() == pytest.approx(0.5 * (ours + 1) / 2, rel=1e-5)
    assert not strategy.offset.requires_grad


def test_ppl_equals_its_formula():
    """First batch sets PPL_ref to its geometric mean: nll = (1, 2), so beta = 0.1 e^(-+0.5) inside ln10 tanh(./ln10).

    Second batch, nll = (2, 4): ln PPL_ref = 0.99 * 1.5 + 0.01 * 3 = 1.515.
    """
    hidden = torch.zeros(2, WIDTH)
    for power in (1, -1):
        strategy = PplBeta(hidden_size=WIDTH, power=power)
        for nll, reference in (((1.0, 2.0), 1.5), ((2.0, 4.0), 1.515)):
            beta = strategy(BetaFeatures(size=2, hidden=hidden, prompt_nll=torch.tensor(nll))).beta
            raw = power * (np.array(nll) - reference)
            expected = 0.1 * np.exp(math.log(10) * np.tanh(raw / math.log(10)))
            np.testing.assert_allclose(beta.detach().numpy(), expected, rtol=1e-5)


def test_ppl_network_moves_beta_by_its_share():
    """theta = 0.2 and a saturated network: raw = 0.2 + ln(1 + 0.1) at the reference perplexity."""
    strategy = PplBeta(hidden_size=WIDTH, epsilon=0.1)
    with torch.no_grad():
        strategy.theta.fill_(0.2)
        strategy.head.layers[-1].bias.fill_(50.0)
    beta = strategy(BetaFeatures(size=2, hidden=torch.zeros(2, WIDTH), prompt_nll=torch.full((2,), 3.0))).beta
    raw = 0.2 + math.log(1.1)
    torch.testing.assert_close(beta, torch.full((2,), 0.1 * math.exp(math.log(10) * math.tanh(raw / math.log(10)))))


def test_ppl_before_any_training_compares_within_the_batch():
    strategy = build("ppl")
    output = strategy(features(training=False))
    assert output.log_ratio.mean().abs() < 0.02
    assert not strategy.seen


def test_ppl_reference_is_over_all_ranks():
    strategy = build("ppl")
    strategy(features(gather=lambda tensor: torch.cat([tensor, torch.full((SIZE,), 9.0)])))
    expected = (features().prompt_nll.mean() + 9) / 2
    torch.testing.assert_close(strategy.log_ppl_reference, expected)


# --- beta-DPO --------------------------------------------------------------------------------------------------------


def margins(*values, **changes):
    return BetaFeatures(size=len(values), margin=torch.tensor(values), **changes)


def test_beta_dpo_worked_by_hand():
    """beta0 0.1, alpha 0.6, momentum 0.9, no filter.

    Step 1, margins (2, 4): M = 0.1 * 3 = 0.3, S = 0.1 * sqrt(2); beta = 0.1 (1 + 0.6 (3 - 0.3)) = 0.262.
    Step 2, margins (0, 1): M = 0.27 + 0.05 = 0.32, S = 0.9 * 0.1414214 + 0.1 * 0.7071068 = 0.1979899;
    beta = 0.1 (1 + 0.6 (0.5 - 0.32)) = 0.1108.
    Step 3, margins (-30, -10): M = 0.288 - 2 = -1.712; 0.1 (1 + 0.6 (-20 + 1.712)) < 0, so beta = 0.001.
    """
    strategy = BetaDpo(filter_share=0.0)
    for values, mean, deviation, beta in (
        ((2.0, 4.0), 0.3, 0.1414214, 0.262),
        ((0.0, 1.0), 0.32, 0.1979899, 0.1108),
        ((-30.0, -10.0), -1.712, 0.9 * 0.1979899 + 0.1 * 14.1421356, 0.001),
    ):
        output = strategy(margins(*values))
        assert strategy.mean.item() == pytest.approx(mean, rel=1e-5)
        assert strategy.deviation.item() == pytest.approx(deviation, rel=1e-5)
        torch.testing.assert_close(output.beta, torch.full((2,), beta), rtol=1e-5, atol=1e-7)
        assert torch.equal(output.weights, torch.ones(2))


def test_beta_dpo_filter_worked_by_hand():
    """Half of (2, 4) is kept: M = 0.3, S = 0.1414214, z = 12.02 and 26.16, weights e^-72.3 and e^-342.3.

    The first pair is as good as sure: beta = 0.1 (1 + 0.6 (2 - 0.3)) = 0.202, weights N / n = 2 and 0. In fp32 the
    second weight underflows to 0 and both would with margins twice as large: hence logarithms.
    """
    for scale in (1.0, 100.0):
        output = BetaDpo(filter_share=0.5)(margins(2.0 * scale, 4.0 * scale))
        assert torch.equal(output.weights, torch.tensor([2.0, 0.0]))
        mean_kept = 2 * scale - 0.3 * scale
        torch.testing.assert_close(output.beta, torch.full((2,), 0.1 * (1 + 0.6 * mean_kept)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("share, kept", [(0.0, 10), (0.2, 8), (0.25, 7), (0.9, 1)])
def test_beta_dpo_keeps_the_floor(share, kept):
    """10 * 0.1 is one although 10 * (1 - 0.9) = 0.9999999999999998 in floating point."""
    weights = BetaDpo(filter_share=share)(features(size=10)).weights
    assert (weights > 0).sum() == kept
    torch.testing.assert_close(weights.mean(), torch.tensor(1.0))


def test_beta_dpo_keeps_at_least_one_pair():
    assert (BetaDpo(filter_share=0.9)(margins(1.0, 2.0)).weights > 0).sum() == 1


def test_beta_dpo_draws_in_proportion_to_its_weights():
    """One of three is kept. With M = 0, S = 1 (set by hand, momentum near 1) the weights of (0, 1, 2) are 1, e^-0.5,
    e^-2, so the shares of 4000 draws are 0.574, 0.348, 0.078; the standard error is below 0.008.
    """
    strategy = BetaDpo(filter_share=0.6, momentum=1.0)
    strategy.deviation.fill_(1.0)
    counts = torch.zeros(3)
    batch = margins(0.0, 1.0, 2.0)
    for _ in range(4000):
        counts += strategy(batch).weights / 3
    weights = torch.tensor([1, math.exp(-0.5), math.exp(-2)])
    torch.testing.assert_close(counts / 4000, weights / weights.sum(), rtol=0, atol=0.03)


def test_beta_dpo_survives_equal_margins():
    """At step 0 policy and reference are one: all margins 0, S = 0, and every pair has the same chance."""
    strategy = BetaDpo()
    output = strategy(margins(*[0.0] * 10))
    assert torch.equal(output.beta, torch.full((10,), 0.1))
    assert (output.weights > 0).sum() == 8


def test_beta_dpo_needs_two_pairs():
    with pytest.raises(ValueError, match="at least 2 pairs per step over all ranks, got 1"):
        BetaDpo()(margins(1.0))


def test_beta_dpo_evaluates_at_beta0():
    strategy = BetaDpo()
    run(strategy, 3)
    output = strategy(features(training=False))
    assert torch.equal(output.beta, torch.full((SIZE,), 0.1))


def test_beta_dpo_agrees_over_ranks():
    """Two ranks: one beta, and the mean over ranks of mean(weights * losses) is the mean over the kept pairs."""
    both = 3 * torch.randn(2 * SIZE, generator=torch.Generator().manual_seed(5))
    ranks, alone = [BetaDpo(seed=3), BetaDpo(seed=3)], BetaDpo(seed=3)
    for _ in range(3):
        outputs = [
            strategy(BetaFeatures(size=SIZE, margin=both[rank * SIZE :][:SIZE], gather=lambda _: both, rank=rank))
            for rank, strategy in enumerate(ranks)
        ]
        whole = alone(BetaFeatures(size=2 * SIZE, margin=both))
        assert torch.equal(torch.cat([output.weights for output in outputs]), whole.weights)
        assert torch.equal(torch.cat([output.beta for output in outputs]), whole.beta)
        losses = both.square()
        kept = whole.weights > 0
        mean = (outputs[0].weights * losses[:SIZE]).mean() / 2 + (outputs[1].weights * losses[SIZE:]).mean() / 2
        assert kept.sum() == 12
        torch.testing.assert_close(mean, losses[kept].mean())


def test_beta_dpo_draws_anew_each_step_and_by_seed():
    """The CPU generator drops all but 32 bits of a seed: neighbouring seeds and steps must not collide."""
    drawn = set()
    for seed in (0, 1, 42, 2**31):
        strategy = BetaDpo(seed=seed, filter_share=0.5)
        strategy.deviation.fill_(1e6)
        drawn |= {tuple(strategy(features(size=32)).weights.tolist()) for _ in range(20)}
    assert len(drawn) == 80


# --- epsilon-DPO -----------------------------------------------------------------------------------------------------


def test_epsilon_dpo_worked_by_hand():
    """beta 0.1, epsilon 0.1, steps (1, 0, -1): 0.1 / 1.1, 0.1, 0.1 / 0.9.

    Two micro-batches of mean step 0 and 2/3, so mean 1/3: beta becomes 0.1 / (1 + 0.1 / 3) = 0.0967742. The counts
    then start anew: a second optimizer step without a forward changes nothing, and after one forward of mean step 1
    beta is divided by 1.1.
    """
    strategy = EpsilonDpo(beta0=0.1, epsilon=0.1)
    step = lambda *values: BetaFeatures(size=3, epsilon_step=torch.tensor(values))  # noqa: E731
    torch.testing.assert_close(strategy(step(1, 0, -1)).beta, torch.tensor([0.1 / 1.1, 0.1, 0.1 / 0.9]))
    torch.testing.assert_close(strategy(step(1.0, 1.0, 0.0)).beta, torch.tensor([0.1 / 1.1, 0.1 / 1.1, 0.1]))
    strategy.after_optimizer_step(lambda tensor: tensor)
    assert strategy.beta.item() == pytest.approx(0.0967742, rel=1e-6)
    strategy.after_optimizer_step(lambda tensor: tensor)
    assert strategy.beta.item() == pytest.approx(0.0967742, rel=1e-6)
    strategy(step(1, 1, 1))
    strategy.after_optimizer_step(lambda tensor: tensor)
    assert strategy.beta.item() == pytest.approx(0.0967742 / 1.1, rel=1e-6)


def test_epsilon_dpo_averages_over_ranks():
    """Our mean step is 1, the mean over ranks 0.5: beta = 0.1 / (1 + 0.01 * 0.5)."""
    strategy = EpsilonDpo(beta0=0.1)
    strategy(BetaFeatures(size=2, epsilon_step=torch.ones(2)))
    strategy.after_optimizer_step(lambda tensor: tensor / 2)
    assert strategy.beta.item() == pytest.approx(0.1 / 1.005, rel=1e-6)


def test_epsilon_dpo_evaluation_uses_beta_but_does_not_count():
    strategy = EpsilonDpo(beta0=0.1, epsilon=0.1)
    batch = BetaFeatures(size=2, epsilon_step=torch.ones(2), training=False)
    torch.testing.assert_close(strategy(batch).beta, torch.full((2,), 0.1 / 1.1))
    strategy.after_optimizer_step(lambda tensor: tensor)
    assert strategy.beta.item() == pytest.approx(0.1)


def test_epsilon_steps_worked_by_hand():
    """Strictly rising from down to up: +1; strictly falling: -1; a tie or a bend: 0."""
    up = torch.tensor([3.0, 1.0, 2.0, 3.0, 1.0])
    gap = torch.tensor([2.0, 2.0, 2.0, 1.0, 2.0])
    down = torch.tensor([1.0, 3.0, 1.0, 2.0, 1.0])
    assert epsilon_steps(up, gap, down).tolist() == [1, -1, 0, 0, 0]


def test_mixture_worked_by_hand():
    """Two tokens, policy logits (1, 0), reference (0, 0), epsilon 1/2: up (1.5, 0), down (0.5, 0).

    ln p of token 0: -ln(1 + e^-1.5) = -0.2014133, -ln(1 + e^-0.5) = -0.4740770; of token 1: 1.5 and 0.5 less.
    """
    policy = torch.tensor([[1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    up, down = mixture_token_logps(policy, torch.zeros(2, 2), torch.tensor([0, 1]), 0.5)
    torch.testing.assert_close(up, torch.tensor([-0.2014133, -1.7014133]))
    torch.testing.assert_close(down, torch.tensor([-0.4740770, -0.9740770]))
    assert not up.requires_grad


def test_mixture_equals_softmax_of_the_mixed_logits():
    """numpy in float64, and bf16 logits are taken up to fp32 before they are mixed."""
    generator = torch.Generator().manual_seed(0)
    policy, reference = (torch.randn(6, 11, generator=generator).bfloat16() for _ in range(2))
    labels = torch.arange(6)
    for sign, ours in zip((1, -1), mixture_token_logps(policy, reference, labels, 0.01), strict=True):
        z, r = policy.double().numpy(), reference.double().numpy()
        mixed = (1 + sign * 0.01) * z - sign * 0.01 * r
        expected = mixed[np.arange(6), np.arange(6)] - np.log(np.exp(mixed).sum(1))
        assert ours.dtype == torch.float32
        np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-5)


# --- MallowsPO -------------------------------------------------------------------------------------------------------


def test_mallows_worked_by_hand():
    """beta0 0.1, phi 0.29: H = e^-1 gives 0.029, e^-4 0.116; H = e^(-1/0.29) is where beta is beta0."""
    entropy = torch.tensor([math.exp(-1), math.exp(-4), math.exp(-1 / 0.29)])
    beta = MallowsBeta()(BetaFeatures(size=3, reference_entropy=entropy)).beta
    torch.testing.assert_close(beta, torch.tensor([0.029, 0.116, 0.1]))


def test_mallows_survives_no_entropy_and_full_entropy():
    beta = MallowsBeta()(BetaFeatures(size=2, reference_entropy=torch.tensor([0.0, 1.0]))).beta
    assert beta.isfinite().all()
    assert beta[0] > beta[1] > 0


def test_fixed_state_does_not_override_the_recipe():
    assert FixedBeta(beta0=0.3).state_dict() == {}
