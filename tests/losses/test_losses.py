"""Losses against TRL 0.24 and LLaMA-Factory 0.9.5, against hand derivations, and against their own table.

Three kinds of expected value, each named where it is used: a reference implementation called as it is installed; a
formula written again here in numpy, differentiated by complex steps (exact to rounding, no autograd); numbers worked
out in a docstring. The contract tests run over every row of `LOSSES`.
"""

import dataclasses
import inspect
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from llamafactory.hparams.finetuning_args import FinetuningArguments
from llamafactory.train.dpo.trainer import CustomDPOTrainer  # before trl: its import of mergekit fails otherwise
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainingArguments
from trl.trainer.cpo_trainer import CPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.orpo_trainer import ORPOTrainer

from ledpo_plugin.facts import BETAS, KINDS, is_learned
from ledpo_plugin.facts.losses import LossKeys
from ledpo_plugin.hparams import argument_fields
from ledpo_plugin.losses import LOSSES, PairLogps, UnpairedLogps, function_of, nll
from ledpo_plugin.stages import STAGES

TIGHT = {"rtol": 1e-7, "atol": 1e-12}  # float64 against float64
PAIRWISE = sorted(name for name, loss in LOSSES.items() if loss.data == "pairs")
REFERENCED = sorted(name for name in PAIRWISE if LOSSES[name].needs_reference)
LEARNABLE = sorted(name for name, loss in LOSSES.items() if "learned" in loss.admits)


def pairs(size=8, seed=0, dtype=torch.float64):
    """Log-probabilities of plausible answers of 5 to 40 tokens, about -1.5 nats each."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(5, 40, (2, size), generator=generator).to(dtype)
    reference = -lengths * (1 + torch.rand(2, size, generator=generator, dtype=dtype))
    policy = reference + 2 * torch.randn(2, size, generator=generator, dtype=dtype)
    policy = policy.clamp(max=-0.5).requires_grad_()
    return PairLogps(policy[0], policy[1], reference[0], reference[1], lengths[0], lengths[1])


def answers(size=8, seed=0, dtype=torch.float64, kl=0.3):
    generator = torch.Generator().manual_seed(seed)
    reference = -20 - 10 * torch.rand(size, generator=generator, dtype=dtype)
    policy = (reference + 2 * torch.randn(size, generator=generator, dtype=dtype)).requires_grad_()
    return UnpairedLogps(policy, reference, torch.arange(size) % 3 > 0, torch.tensor(kl, dtype=dtype))


def betas(size=8, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(100 + seed)
    return (0.05 + torch.rand(size, generator=generator, dtype=dtype)).requires_grad_()


def inputs(name, size=8, seed=0, dtype=torch.float64):
    return (answers if LOSSES[name].data == "unpaired" else pairs)(size, seed, dtype)


def call(name, logps, beta, **options):
    """Call the loss as the trainer does: its own defaults, and a running mean where it takes one."""
    if LOSSES[name].running_reward_mean:
        options.setdefault("delta", torch.tensor(0.2, dtype=beta.dtype))
    return function_of(name)(logps, beta, **options)


def policy_of(logps):
    return [logps.policy] if isinstance(logps, UnpairedLogps) else [logps.policy_chosen, logps.policy_rejected]


def assert_same(ours, theirs, logps, beta=None):
    """Compare values, and gradients with respect to the policy (and beta) under the same random cotangent."""
    torch.testing.assert_close(ours, theirs, **TIGHT)
    cotangent = torch.linspace(-1, 2, ours.numel(), dtype=ours.dtype)
    wanted = policy_of(logps) + ([] if beta is None else [beta])
    for mine, other in zip(
        torch.autograd.grad(ours, wanted, cotangent, retain_graph=True, materialize_grads=True),
        torch.autograd.grad(theirs, wanted, cotangent, retain_graph=True, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, **TIGHT)


# --- Reference implementations ---------------------------------------------------------------------------------------

ACCELERATOR = SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=lambda tensor: tensor)


def trl_dpo(loss_type, logps, beta, *, label_smoothing=0.0, tau=0.05, delta=0.2):
    """TRL 0.24's DPOTrainer.dpo_loss, unbound, as installed."""
    trainer = SimpleNamespace(
        accelerator=ACCELERATOR,
        reference_free=False,
        f_divergence_type="reverse_kl",
        beta=beta,
        label_smoothing=label_smoothing,
        args=SimpleNamespace(discopop_tau=tau),
        running=SimpleNamespace(update=lambda rewards: None, mean=delta),
    )
    return DPOTrainer.dpo_loss(trainer, *logps[:4], loss_type=loss_type)


def averaged(logps):
    return logps._replace(
        policy_chosen=logps.policy_chosen / logps.chosen_length,
        policy_rejected=logps.policy_rejected / logps.rejected_length,
        reference_chosen=logps.reference_chosen / logps.chosen_length,
        reference_rejected=logps.reference_rejected / logps.rejected_length,
    )


@pytest.fixture(params=["one beta", "beta per pair"])
def beta_pair(request):
    """Beta as ours takes it and as the reference does: a number where all are equal, else the same tensor."""
    if request.param == "one beta":
        return torch.full((8,), 0.37, dtype=torch.float64), 0.37
    tensor = betas()
    return tensor, tensor


@pytest.mark.parametrize(
    "name, options",
    [
        ("sigmoid", {}),
        ("sigmoid", {"label_smoothing": 0.1}),
        ("robust", {"label_smoothing": 0.1}),
        ("robust", {"label_smoothing": 0.0}),
        ("hinge", {}),
        ("ipo", {}),
        ("exo_pair", {"label_smoothing": 0.001}),
        ("exo_pair", {"label_smoothing": 0.2}),
        ("nca_pair", {}),
        ("apo_zero", {}),
        ("apo_down", {}),
        ("sppo_hard", {}),
        ("discopop", {"tau": 0.05}),
        ("discopop", {"tau": 0.7}),
        ("bco_pair", {"delta": 0.9}),
    ],
)
def test_losses_equal_trl_dpo(name, options, beta_pair):
    logps = pairs()
    beta, their_beta = beta_pair
    ours_options = {k: torch.tensor(v, dtype=torch.float64) if k == "delta" else v for k, v in options.items()}
    ours = call(name, logps, beta, **ours_options)
    theirs_logps = averaged(logps) if name == "ipo" else logps
    theirs = trl_dpo(name, theirs_logps, their_beta, **options)
    assert_same(ours.losses, theirs[0], logps, beta if beta.requires_grad else None)
    torch.testing.assert_close(ours.chosen_rewards, theirs[1].detach(), **TIGHT)
    torch.testing.assert_close(ours.rejected_rewards, theirs[2].detach(), **TIGHT)


def cpo_trainer(beta, *, loss_type="sigmoid", gamma=0.0, alpha=0.0, label_smoothing=0.0):
    return SimpleNamespace(
        accelerator=ACCELERATOR,
        beta=beta,
        loss_type=loss_type,
        simpo_gamma=gamma,
        alpha=alpha,
        label_smoothing=label_smoothing,
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.15])
def test_simpo_equals_trl_and_llamafactory(smoothing, beta_pair):
    logps = pairs()
    beta, their_beta = beta_pair
    ratio = 0.45
    ours = call("simpo", logps, beta, gamma_beta_ratio=ratio, label_smoothing=smoothing)
    average = averaged(logps)
    theirs = CPOTrainer.cpo_loss(
        cpo_trainer(their_beta, loss_type="simpo", gamma=ratio * their_beta, label_smoothing=smoothing), *average[:2]
    )
    assert_same(ours.losses, theirs[0], logps)
    torch.testing.assert_close(ours.chosen_rewards, theirs[1].detach(), **TIGHT)
    torch.testing.assert_close(ours.rejected_rewards, theirs[2].detach(), **TIGHT)
    if smoothing == 0:
        host = SimpleNamespace(beta=their_beta, simpo_gamma=ratio * their_beta)
        assert_same(ours.losses, CustomDPOTrainer.simpo_loss(host, *average[:2]), logps)


@pytest.mark.parametrize("alpha", [0.25, -0.5, 1.3])
def test_alphapo_equals_trl(alpha, beta_pair):
    logps = pairs()
    beta, their_beta = beta_pair
    ours = call("alphapo", logps, beta, alpha=alpha, gamma_beta_ratio=0.1, label_smoothing=0.1)
    theirs = CPOTrainer.cpo_loss(
        cpo_trainer(their_beta, loss_type="simpo", gamma=0.1 * their_beta, alpha=alpha, label_smoothing=0.1),
        *averaged(logps)[:2],
    )
    assert_same(ours.losses, theirs[0], logps)
    torch.testing.assert_close(ours.chosen_rewards, theirs[1].detach(), **TIGHT)
    torch.testing.assert_close(ours.rejected_rewards, theirs[2].detach(), **TIGHT)


def test_alphapo_tends_to_simpo():
    logps, beta = pairs(), betas()
    simpo = call("simpo", logps, beta, gamma_beta_ratio=0.3).losses
    torch.testing.assert_close(call("alphapo", logps, beta, alpha=0, gamma_beta_ratio=0.3).losses, simpo, **TIGHT)
    near = call("alphapo", logps, beta, alpha=1e-6, gamma_beta_ratio=0.3).losses
    torch.testing.assert_close(near, simpo, rtol=1e-4, atol=0)  # R(p) = p + O(alpha p^2)
    assert not torch.equal(near, simpo)


def test_cpo_equals_trl_plus_nll_per_answer(beta_pair):
    """TRL's preference term; its NLL averages over the batch's tokens, ours over each answer's (stated departure)."""
    logps = pairs()
    beta, their_beta = beta_pair
    ours = call("cpo", logps, beta, cpo_alpha=0.7, label_smoothing=0.1)
    theirs = CPOTrainer.cpo_loss(cpo_trainer(their_beta, label_smoothing=0.1), *logps[:2])
    expected = theirs[0] + 0.7 * -(logps.policy_chosen / logps.chosen_length)
    assert_same(ours.losses, expected, logps)
    torch.testing.assert_close(ours.chosen_rewards, theirs[1].detach(), **TIGHT)


def test_orpo_equals_llamafactory_and_trl(beta_pair):
    logps = pairs()
    beta, their_beta = beta_pair
    average = averaged(logps)
    ours = call("orpo", logps, beta)
    assert_same(ours.losses, CustomDPOTrainer.odds_ratio_loss(SimpleNamespace(beta=their_beta), *average[:2]), logps)
    trl = SimpleNamespace(beta=their_beta, accelerator=ACCELERATOR)
    odds_term, chosen_rewards, *_ = ORPOTrainer.odds_ratio_loss(trl, *average[:2])  # TRL's has the other sign
    assert_same(ours.losses, -average.policy_chosen - odds_term, logps)
    torch.testing.assert_close(ours.chosen_rewards, chosen_rewards, **TIGHT)


@pytest.mark.parametrize("kl", [0.8, -0.8])  # z0 is clamped from below
def test_kto_equals_trl(kl):
    logps = answers(kl=kl)
    trainer = SimpleNamespace(
        accelerator=ACCELERATOR,
        calculate_KL=True,
        loss_type="kto",
        beta=0.37,
        desirable_weight=1.3,
        undesirable_weight=0.8,
    )
    good, bad = logps.desirable, ~logps.desirable
    kl_rows = torch.tensor([kl - 1, kl + 1], dtype=torch.float64)
    theirs = KTOTrainer.kto_loss(
        trainer, logps.policy[good], logps.policy[bad], kl_rows,
        logps.reference[good], logps.reference[bad], torch.zeros(2, dtype=torch.float64),
    )  # fmt: skip
    ours = call("kto", logps, torch.full((8,), 0.37, dtype=torch.float64), desirable_weight=1.3, undesirable_weight=0.8)
    assert_same(torch.cat([ours.losses[good], ours.losses[bad]]), theirs[0], logps)
    torch.testing.assert_close(ours.chosen_rewards[good], theirs[1].detach(), **TIGHT)
    torch.testing.assert_close(ours.chosen_rewards[bad], theirs[2].detach(), **TIGHT)
    assert ours.rejected_rewards is None


def test_kto_with_a_beta_per_answer():
    """Row by row it is TRL's loss of that row with that row's beta (checked above for one beta)."""
    logps, beta = answers(), betas()
    whole = call("kto", logps, beta).losses
    for i in range(8):
        row = UnpairedLogps(*(x[i : i + 1] for x in logps[:3]), logps.kl)
        torch.testing.assert_close(call("kto", row, beta[i : i + 1]).losses[0], whole[i], **TIGHT)


def test_kto_gives_no_gradient_to_its_reference_point():
    logps = answers()._replace(kl=torch.tensor(0.5, dtype=torch.float64, requires_grad=True))
    call("kto", logps, betas()).losses.sum().backward()
    assert logps.kl.grad is None


# --- Formulas written again in numpy ---------------------------------------------------------------------------------


def np_logsigmoid(z):
    return -np.log1p(np.exp(-z))


def np_positive(z):
    return np.where(z.real > 0, z, 0)


def np_sigmoid_norm(x, beta):
    return -np_logsigmoid(beta * ((x.pc - x.rc) / x.w - (x.pr - x.rr) / x.l))


def np_r_dpo(x, beta, alpha):
    return -np_logsigmoid(beta * (x.pc - x.pr - x.rc + x.rr) + alpha * (x.w - x.l))


def np_dpop(x, beta, penalty):
    return -np_logsigmoid(beta * (x.pc - x.pr - x.rc + x.rr - penalty * np_positive(x.rc - x.pc)))


def np_kto_pair(x, beta):
    """TRL 0.8.6: 2B terms, 1 - sigmoid(.), each half against the other half's clamped mean log-ratio."""
    chosen, rejected = x.pc - x.rc, x.pr - x.rr
    terms = [
        1 - 1 / (1 + np.exp(-beta * (chosen - np_positive(rejected.mean())))),
        1 - 1 / (1 + np.exp(-beta * (np_positive(chosen.mean()) - rejected))),
    ]
    return np.mean(terms, axis=0)


NUMPY = [
    ("sigmoid_norm", np_sigmoid_norm, {}),
    ("r_dpo", np_r_dpo, {"alpha": 0.05}),
    ("dpop", np_dpop, {"penalty": 50.0}),
    ("dpop", np_dpop, {"penalty": 0.4}),
    ("kto_pair", np_kto_pair, {}),
]


@pytest.mark.parametrize("seed", [0, 1, 2, 3])  # kto_pair's means have different signs in them
@pytest.mark.parametrize("name, formula, options", NUMPY)
def test_losses_equal_hand_derivations(name, formula, options, seed):
    logps, beta = pairs(seed=seed), betas(seed=seed)
    ours = call(name, logps, beta, **options).losses
    columns = [tensor.detach().numpy() for tensor in (*logps, beta)]

    def evaluate(*columns):
        x = SimpleNamespace(**dict(zip(("pc", "pr", "rc", "rr", "w", "l"), columns, strict=False)))
        return formula(x, columns[6], **options)

    np.testing.assert_allclose(ours.detach().numpy(), evaluate(*columns), rtol=1e-7)
    wanted = [logps.policy_chosen, logps.policy_rejected, beta]
    for gradient, column in zip(torch.autograd.grad(ours.sum(), wanted), (0, 1, 6), strict=True):
        expected = []
        for row in range(8):
            shifted = [c.astype(complex) for c in columns]
            shifted[column][row] += 1e-30j
            expected.append(evaluate(*shifted).sum().imag / 1e-30)
        np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-7, atol=1e-14)


def test_kto_pair_seeds_reach_both_sides_of_the_clamp():
    means = [((x := pairs(seed=s)).policy_chosen - x.reference_chosen).mean().item() for s in range(4)]
    means += [((x := pairs(seed=s)).policy_rejected - x.reference_rejected).mean().item() for s in range(4)]
    assert min(means) < 0 < max(means)


# --- Numbers worked out by hand --------------------------------------------------------------------------------------


def two_pairs():
    """a = (1, -1), b = (-1, 1), D = (2, -2), lengths (2, 4) and (4, 2)."""
    return PairLogps(*(torch.tensor(x) for x in ([-4.0, -6.0], [-9.0, -2.0], [-5.0, -5.0], [-8.0, -3.0])),
                     torch.tensor([2, 4]), torch.tensor([4, 2]))  # fmt: skip


@pytest.mark.parametrize(
    "name, options, expected",
    [
        # beta = 1/2, so beta D = +-1 and beta a = +-1/2, beta b = -+1/2.
        # ln(1 + e^-1) = 0.3132617, ln(1 + e) = 1.3132617.
        ("sigmoid", {}, [0.3132617, 1.3132617]),
        # 0.9 * 0.3132617 + 0.1 * 1.3132617; the other way round.
        ("sigmoid", {"label_smoothing": 0.1}, [0.4132617, 1.2132617]),
        # (0.9 * 0.3132617 - 0.1 * 1.3132617) / 0.8.
        ("robust", {"label_smoothing": 0.1}, [0.1882617, 1.4382617]),
        ("hinge", {}, [0.0, 2.0]),
        # averages: a/|w| - b/|l| = 1/2 + 1/4, -1/4 - 1/2; target 1 / (2 beta) = 1.
        ("ipo", {}, [0.0625, 3.0625]),
        # (1 - 1)^2 + (-1 + 1)^2; (-1 - 1)^2 + (1 + 1)^2.
        ("sppo_hard", {}, [0.0, 8.0]),
        # s(-1/2) = 0.3775407 twice; s(1/2) = 0.6224593 twice.
        ("apo_zero", {}, [0.7550813, 1.2449187]),
        # s(1/2) + s(-1) = 0.6224593 + 0.2689414; s(-1/2) + s(1).
        ("apo_down", {}, [0.8914007, 1.1085993]),
        # means of a and b are 0: kto_pair is half of apo_zero.
        ("kto_pair", {}, [0.3775407, 0.6224593]),
        # beta (D_avg) = +-0.375: ln(1 + e^-0.375) = 0.5231233, ln(1 + e^0.375).
        ("sigmoid_norm", {}, [0.5231233, 0.8981233]),
        # |w| - |l| = -2, 2: z = 1 - 0.2, -1 + 0.2.
        ("r_dpo", {"alpha": 0.1}, [0.3711007, 1.1711007]),
        # the second pair's chosen answer lost 1 nat: z = 1; (-2 - 3) / 2 = -2.5.
        ("dpop", {"penalty": 3.0}, [0.3132617, 2.5788897]),
        # pw = -2, -1.5; pl = -2.25, -1: z = (0.25 - 0.5)/2 = -0.125, (-0.5 - 0.5)/2 = -0.5.
        ("simpo", {"gamma_beta_ratio": 0.5}, [0.7575992, 0.9740770]),
        # lw - ll = 5, -4: z = 2.5, -2; plus 2 * NLL = 4, 3.
        ("cpo", {"cpo_alpha": 2.0}, [4.0788897, 5.1269280]),
    ],
)  # fmt: skip
def test_losses_equal_numbers_worked_by_hand(name, options, expected):
    losses = call(name, two_pairs(), torch.tensor([0.5, 0.5]), **options).losses
    torch.testing.assert_close(losses, torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_nll_is_per_token():
    torch.testing.assert_close(nll(two_pairs()), torch.tensor([2.0, 1.5]))


def test_sigmoid_gradient_in_beta_is_minus_margin_times_sigmoid():
    """d/dbeta -LS(beta D) = -D s(-beta D)."""
    logps, beta = pairs(), betas()
    margin = logps.policy_chosen - logps.policy_rejected - logps.reference_chosen + logps.reference_rejected
    (gradient,) = torch.autograd.grad(call("sigmoid", logps, beta).losses.sum(), beta)
    torch.testing.assert_close(gradient, -margin * torch.sigmoid(-beta * margin), **TIGHT)


# --- Why some betas must not be learned ------------------------------------------------------------------------------


def at_margin(margin, beta, name, **options):
    """Loss and its derivative in beta for a = margin / 2 = -b and one-token answers."""
    column = lambda value: torch.tensor([value], dtype=torch.float64)  # noqa: E731
    logps = PairLogps(column(-2 + margin / 2), column(-2 - margin / 2), *[column(-2.0)] * 2, *[column(1.0)] * 2)
    beta = column(beta).requires_grad_()
    loss = call(name, logps, beta, **options).losses
    return loss.item(), torch.autograd.grad(loss.sum(), beta)[0].item()


@pytest.mark.parametrize("margin", [0.5, 2.0])
def test_a_learned_beta_would_zero_hinge_and_ipo(margin):
    assert at_margin(margin, 1 / margin + 0.01, "hinge") == (0, 0)
    assert at_margin(margin, 1 / (2 * margin), "ipo") == pytest.approx((0, 0), abs=1e-12)


def test_a_learned_beta_would_make_sppo_blind():
    """At beta = 1/D with a = -b, the loss (a + b)^2 / 2 is 0 whichever answer is preferred."""
    assert at_margin(2.0, 1 / 2.0, "sppo_hard") == pytest.approx((0, 0), abs=1e-12)


def test_a_learned_beta_would_send_robust_to_minus_infinity():
    losses = [at_margin(2.0, beta, "robust", label_smoothing=0.1)[0] for beta in (10, 100, 1000)]
    assert losses[0] > losses[1] > losses[2]
    # slope -e/(1 - 2e) in beta D: 0.125 * 2 * 900 between the last two.
    assert losses[1] - losses[2] == pytest.approx(225, rel=1e-6)


@pytest.mark.parametrize("margin", [-3.0, 0.0, 3.0])
def test_a_learned_beta_would_always_fall_in_orpo(margin):
    assert at_margin(margin, 0.1, "orpo")[1] > 0


@pytest.mark.parametrize("name", ["sigmoid", "exo_pair"])
def test_smoothing_gives_beta_its_optimum(name):
    """ln((1 - e)/e) / D with e = 0.1, D = 2: 1.0986123."""
    assert at_margin(2.0, math.log(9) / 2, name, label_smoothing=0.1)[1] == pytest.approx(0, abs=1e-9)
    assert at_margin(2.0, 0.9, name, label_smoothing=0.1)[1] < 0 < at_margin(2.0, 1.3, name, label_smoothing=0.1)[1]


# --- The contract: every row -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_value_per_example_in_the_dtype_given(name, dtype):
    output = call(name, inputs(name, 5, dtype=dtype), betas(5, dtype=dtype))
    for tensor in output:
        if tensor is not None:
            assert tensor.shape == (5,)
            assert tensor.dtype == dtype


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", [(8, 1), (1, 8), (1,), (), (7,)])
def test_refuses_a_beta_that_would_broadcast(name, shape):
    with pytest.raises(ValueError) as error:  # noqa: PT011 the whole sentence is compared
        call(name, inputs(name), torch.ones(shape, dtype=torch.float64))
    assert str(error.value) == f"beta has shape {shape}, expected (8,)"


@pytest.mark.parametrize("name", LOSSES)
def test_refuses_each_input_of_another_shape(name):
    logps = inputs(name)
    for field in logps._fields:
        wrong = logps._replace(**{field: getattr(logps, field).expand(8)[:, None]})
        with pytest.raises(ValueError, match=rf"^{field} has shape \(8, 1\), expected "):
            call(name, wrong, betas())


@pytest.mark.parametrize("name", PAIRWISE)
def test_the_reference_is_needed_as_declared(name):
    logps = pairs()
    without = logps._replace(reference_chosen=None, reference_rejected=None)
    if LOSSES[name].needs_reference:
        with pytest.raises(ValueError, match=rf"'{name}' needs the reference"):
            call(name, without, betas())
    else:
        assert torch.equal(call(name, without, betas()).losses, call(name, logps, betas()).losses)


@pytest.mark.parametrize("name", PAIRWISE)
def test_length_normalised_as_declared(name):
    """Twice the tokens at the same log-probability per token: nothing changes exactly where lengths divide out."""
    logps = pairs()
    doubled = PairLogps(*(2 * tensor for tensor in logps))
    same = torch.allclose(call(name, logps, betas()).losses, call(name, doubled, betas()).losses, rtol=1e-9)
    assert same == LOSSES[name].length_normalised


def score(name, logps):
    """What beta multiplies in the rewards: log-ratio, or log-probability, per token where the loss is."""
    chosen, rejected = logps.policy_chosen, logps.policy_rejected
    if LOSSES[name].needs_reference:
        chosen, rejected = chosen - logps.reference_chosen, rejected - logps.reference_rejected
    if LOSSES[name].length_normalised:
        chosen, rejected = chosen / logps.chosen_length, rejected / logps.rejected_length
    if name == "alphapo":  # its reward is R(p), (1 - p^-alpha) / alpha
        chosen, rejected = ((1 - torch.exp(-0.25 * x)) / 0.25 for x in (chosen, rejected))
    return chosen.detach(), rejected.detach()


@pytest.mark.parametrize("name", LOSSES)
def test_rewards_come_from_the_same_beta_and_carry_no_gradient(name):
    logps, beta = inputs(name), betas()
    output = call(name, logps, beta)
    if LOSSES[name].data == "pairs":
        chosen, rejected = score(name, logps)
        torch.testing.assert_close(output.rejected_rewards, beta.detach() * rejected, **TIGHT)
        assert not output.rejected_rewards.requires_grad
    else:
        chosen = (logps.policy - logps.reference).detach()
    torch.testing.assert_close(output.chosen_rewards, beta.detach() * chosen, **TIGHT)
    assert not output.chosen_rewards.requires_grad
    assert output.losses.requires_grad


def extremes(name, dtype=torch.float32):
    """Every combination of log-probability 0 and -1e4 over policy and reference: margins 0, +-1e4 and +-2e4."""
    if LOSSES[name].data == "unpaired":
        grid = torch.cartesian_prod(*[torch.tensor([0.0, -1e4], dtype=dtype)] * 2, torch.tensor([0.0, 1.0]))
        return UnpairedLogps(grid[:, 0].clone().requires_grad_(), grid[:, 1], grid[:, 2] > 0, torch.tensor(1e4))
    columns = torch.cartesian_prod(*[torch.tensor([0.0, -1e4], dtype=dtype)] * 4).unbind(1)
    policy = [column.clone().requires_grad_() for column in columns[:2]]
    return PairLogps(*policy, *columns[2:], *[torch.ones_like(columns[0])] * 2)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", ["recommended", "one"])
def test_finite_at_margins_of_ten_thousand_nats_in_fp32(name, scale):
    logps = extremes(name)
    value = LOSSES[name].recommended["pref_beta"] if scale == "recommended" else 1.0
    beta = torch.full_like(policy_of(logps)[0], value).requires_grad_()
    output = call(name, logps, beta)
    gradients = torch.autograd.grad(output.losses.sum(), [*policy_of(logps), beta])
    for tensor in (*output, *gradients):
        assert tensor is None or tensor.isfinite().all(), tensor


@pytest.mark.parametrize("name", LOSSES)
def test_fp32_agrees_with_fp64(name):
    """fp32 rtol 1e-5 and atol 1e-5: the inputs themselves, sums of tens of nats, are rounded at 4e-6."""
    low = call(name, inputs(name, dtype=torch.float32), betas(dtype=torch.float32)).losses
    high_inputs = type(inputs(name))(
        *(x.double() if x.is_floating_point() else x for x in inputs(name, dtype=torch.float32))
    )
    high = call(name, high_inputs, betas(dtype=torch.float32).double()).losses
    torch.testing.assert_close(low.double(), high, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LEARNABLE)
def test_gradient_in_beta(name):
    logps = inputs(name)
    fixed = type(logps)(*(tensor.detach() for tensor in logps))
    assert torch.autograd.gradcheck(lambda beta: call(name, fixed, beta).losses, betas())
    (gradient,) = torch.autograd.grad(call(name, logps, betas_ := betas()).losses.sum(), betas_)
    assert (gradient != 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_in_the_policy(name):
    """By finite differences, with every option at its recommended value; every example gets some."""
    logps = inputs(name)
    beta = torch.full((8,), LOSSES[name].recommended["pref_beta"], dtype=torch.float64)

    def losses(*policy):
        fields = ["policy"] if LOSSES[name].data == "unpaired" else ["policy_chosen", "policy_rejected"]
        return call(name, logps._replace(**dict(zip(fields, policy, strict=True))), beta).losses

    policy = [tensor.detach().clone().requires_grad_() for tensor in policy_of(logps)]
    assert torch.autograd.gradcheck(losses, policy)
    gradients = torch.autograd.grad(losses(*policy).sum(), policy)
    assert all((gradient != 0).any() for gradient in gradients)


@pytest.mark.parametrize("name", LOSSES)
def test_rows_mix_only_where_that_is_declared(name):
    logps, beta = inputs(name), betas()
    order = torch.tensor([3, 0, 7, 1])
    part = type(logps)(*(tensor if tensor.dim() == 0 else tensor[order] for tensor in logps))
    alone, together = call(name, part, beta[order]).losses, call(name, logps, beta).losses[order]
    if LOSSES[name].batchwise:
        assert not torch.allclose(alone, together)
    else:
        torch.testing.assert_close(alone, together, **TIGHT)


@pytest.mark.parametrize("name", LOSSES)
def test_pure(name):
    """Twice the same, and inputs as they were."""
    logps, beta = inputs(name), betas()
    before = [tensor.detach().clone() for tensor in (*logps, beta)]
    first, second = call(name, logps, beta), call(name, logps, beta)
    assert torch.equal(first.losses, second.losses)
    assert all(torch.equal(old, new) for old, new in zip(before, (*logps, beta), strict=True))


class NoHostSync(TorchDispatchMode):
    """Fails where a tensor's value is read on the host: `.item()`, `if tensor:`, `float(tensor)`, `nonzero`."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero", "equal", "is_nonzero"), func
        return func(*args, **(kwargs or {}))


def test_the_sync_detector_detects():
    with NoHostSync(), pytest.raises(AssertionError):
        torch.ones(()).item()


@pytest.mark.parametrize("name", LOSSES)
def test_never_waits_for_the_device(name):
    logps, beta = inputs(name), betas()
    with NoHostSync():
        call(name, logps, beta).losses.sum().backward()


HOST_KEYS = {field.name for field in dataclasses.fields(FinetuningArguments)} | {
    field.name for field in dataclasses.fields(TrainingArguments)
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_row_tells_the_truth(name):
    loss, function = LOSSES[name], function_of(name)
    assert loss.name == name == function.__name__
    parameters = list(inspect.signature(function).parameters.values())
    assert [p.name for p in parameters[:2]] == ["logps", "beta"]
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[2:])
    declared = set(loss.options)
    declared |= {"label_smoothing"} if loss.label_smoothing else set()
    declared |= {"delta"} if loss.running_reward_mean else set()
    assert {p.name for p in parameters[2:]} == declared
    assert loss.formula
    assert loss.source
    assert function.__doc__

    plugin_keys = argument_fields()
    assert set(loss.options.values()) <= HOST_KEYS | set(plugin_keys)
    assert set(loss.recommended) <= HOST_KEYS | set(plugin_keys)
    assert {"pref_beta", "learning_rate", *loss.options.values()} <= set(loss.recommended)
    assert ("dpo_label_smoothing" in loss.recommended) == loss.label_smoothing
    for key in set(loss.recommended) & set(plugin_keys):
        assert loss.recommended[key] == plugin_keys[key].default
        assert key in loss.options.values()
    assert loss.per_beta <= set(loss.options)
    assert set(loss.idle) <= HOST_KEYS | set(plugin_keys)
    assert all(name in why for why in loss.idle.values())
    assert not loss.smoothing_needed or loss.label_smoothing

    assert loss.beta_modes <= set(BETAS)
    assert "fixed" in loss.beta_modes
    assert set(loss.refuses) <= set(KINDS)
    assert all(why.endswith(".") for why in loss.refuses.values())
    assert ("learned" in loss.admits) == (set(filter(is_learned, BETAS)) <= loss.beta_modes)
    if name != "sigmoid":
        assert not loss.beta_modes & {"beta_dpo", "epsilon_dpo", "mallows"}
        assert "beta_dpo" in loss.refuses["published"]
        assert "learned" in loss.admits or name in loss.refuses["learned"]


@pytest.mark.parametrize("name", LOSSES)
def test_a_scheduled_beta_is_refused_by_none(name):
    """It is the same for all pairs of a step and takes no gradient, like a constant: each step is one of a constant."""
    assert {"constant", "scheduled"} <= LOSSES[name].admits
    logps, beta = inputs(name), torch.full((8,), LOSSES[name].recommended["pref_beta"], dtype=torch.float64)
    for share in (0.1, 1.0, 10.0):
        gradients = torch.autograd.grad(call(name, logps, share * beta).losses.sum(), policy_of(logps))
        assert any((gradient != 0).any() for gradient in gradients), "a schedule that comes by here would learn nothing"


@pytest.mark.parametrize("name", LOSSES)
def test_defaults_of_the_function_are_the_recommended_values(name):
    """So that calling the function alone and running the recipe agree; the margin ratio is gamma / beta."""
    loss = LOSSES[name]
    defaults = {p.name: p.default for p in inspect.signature(function_of(name)).parameters.values()}
    for keyword, key in {**loss.options, "label_smoothing": "dpo_label_smoothing"}.items():
        if keyword in defaults:
            expected = loss.recommended[key]
            expected /= loss.recommended["pref_beta"] if keyword in loss.per_beta else 1
            assert defaults[keyword] == pytest.approx(expected)


def test_every_plugin_key_of_a_loss_is_an_option_of_it():
    options = {key for loss in LOSSES.values() for key in loss.options.values()}
    assert [item.name for item in dataclasses.fields(LossKeys) if item.name not in options] == []


def test_which_losses_admit_which_betas():
    never_learned = {name for name, loss in LOSSES.items() if "learned" not in loss.admits}
    assert never_learned == {"hinge", "ipo", "sppo_hard", "robust", "orpo"}
    assert LOSSES["sigmoid"].beta_modes == set(BETAS)


def test_every_stage_has_its_loss():
    for stage in STAGES.values():
        assert LOSSES[stage.default_loss].data == stage.loss_data
        assert stage.default_beta_mode in LOSSES[stage.default_loss].beta_modes


def test_the_table_is_read_only():
    with pytest.raises(TypeError):
        LOSSES["sigmoid"] = LOSSES["ipo"]


# --- Errors and corners of single losses -----------------------------------------------------------------------------


@pytest.mark.parametrize("name, value", [("exo_pair", 0.0), ("exo_pair", 0.5), ("robust", 0.5), ("robust", -0.1)])
def test_refuses_a_smoothing_with_no_finite_loss(name, value):
    with pytest.raises(ValueError, match=f"{name} needs .* label_smoothing < 0.5.*, got {value}"):
        call(name, pairs(), betas(), label_smoothing=value)


def test_bco_refuses_a_delta_per_pair():
    with pytest.raises(ValueError, match=r"delta has shape \(8,\), expected \(\)"):
        call("bco_pair", pairs(), betas(), delta=torch.zeros(8, dtype=torch.float64))


def test_bco_gives_no_gradient_to_its_running_mean():
    delta = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    call("bco_pair", pairs(), betas(), delta=delta).losses.sum().backward()
    assert delta.grad is None


def test_orpo_near_certainty():
    """Where p is near 1 the naive ln(1 - e^p) of LLaMA-Factory loses its digits in fp32 and at p = 1 is infinite.

    At an average log-probability x near 0 the log odds are x - ln(-x) + O(x): at -1e-6, ln odds = 13.815511 - 5e-7.
    With the rejected answer at ln odds 0 (p = 1/2), loss = 1e-6 + ln(1 + e^-13.8155105) = 2e-6, beta = 1.
    """
    half = torch.tensor([-math.log(2)])
    sure = PairLogps(torch.tensor([-1e-6]), half, None, None, torch.ones(1), torch.ones(1))
    torch.testing.assert_close(call("orpo", sure, torch.ones(1)).losses, torch.tensor([2e-6]), rtol=1e-3, atol=0)
    # the other way round: ln 2 + ln(1 + e^13.8155105) = 14.508659
    wrong = PairLogps(half, torch.tensor([-1e-6]), None, None, torch.ones(1), torch.ones(1))
    torch.testing.assert_close(call("orpo", wrong, torch.ones(1)).losses, torch.tensor([14.508659]), rtol=1e-6, atol=0)


def test_alphapo_is_flat_beyond_its_cap():
    """alpha 0.25: the exponent reaches 30 at -120 nats per token; below it no value and no gradient changes."""
    policy = torch.tensor([-119.0, -121.0, -500.0], dtype=torch.float64, requires_grad=True)
    ones = torch.ones(3, dtype=torch.float64)
    losses = call("alphapo", PairLogps(-ones, policy, None, None, ones, ones), -ones).losses  # beta < 0: linear side
    (gradient,) = torch.autograd.grad(losses.sum(), policy)
    assert losses[0] < losses[1] == losses[2]
    assert gradient[0] != 0
    assert (gradient[1:] == 0).all()
