"""docs/checked_against.md: every name has a row, every test it names is there, and what it says of others holds.

The formulas of others are written again here, after what was read in the repositories that the rows name.
"""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from ledpo_plugin.checked_against import BETA_CHECKS, KEY_CHECKS, LOSS_CHECKS, ROLLOUT_CHECKS
from ledpo_plugin.cli.tables import CHECK_TABLES, refresh
from ledpo_plugin.facts import BETAS, LOSSES
from ledpo_plugin.hparams import ESTIMATORS, KL_CONTROLS, KL_ESTIMATORS
from ledpo_plugin.losses import PairLogps, function_of
from ledpo_plugin.modeling.logps import sum_logps

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "checked_against.md"
ROLLOUTS = [
    *(f"advantage_estimator: {name}" for name in ESTIMATORS),
    *(f"kl_estimator: {name}" for name in KL_ESTIMATORS),
    *(f"kl_control: {name}" for name in KL_CONTROLS),
]
ALL = {**LOSS_CHECKS, **BETA_CHECKS, **KEY_CHECKS, **ROLLOUT_CHECKS}
TIGHT = {"rtol": 1e-10, "atol": 1e-12}

# --- Every name, and nothing else ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "checks, names",
    [
        (LOSS_CHECKS, list(LOSSES)),
        (BETA_CHECKS, list(BETAS)),
        (KEY_CHECKS, ["ld_alpha", "pref_ftx", "pref_bco_weight"]),
        (ROLLOUT_CHECKS, ROLLOUTS),
    ],
    ids=["losses", "beta modes", "keys", "rollouts"],
)
def test_every_name_has_its_row(checks, names):
    missing = [name for name in names if name not in checks]
    assert not missing, (
        f"{missing}: compare the formula with its authors' code (or derive it), and say in "
        "ledpo_plugin/checked_against.py with what, where others differ, and which tests hold it; then `make tables`."
    )
    assert list(checks) == names, "rows of what is no longer there, or in another order than the table of the code"


def test_no_name_stands_in_two_tables():
    assert len(ALL) == sum(map(len, (LOSS_CHECKS, BETA_CHECKS, KEY_CHECKS, ROLLOUT_CHECKS)))


@cache
def functions(file: str) -> dict[str, str]:
    """Each test of a file with its source: decorators, body, and the constants of the module that it names."""
    text = next((ROOT / "tests").rglob(file)).read_text(encoding="utf-8")
    tree = ast.parse(text)
    constants = {
        target.id: ast.get_source_segment(text, node)
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    found = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            parts = [ast.get_source_segment(text, part) for part in (*node.decorator_list, node)]
            named = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
            found[node.name] = "\n".join(parts + [constants[name] for name in sorted(named & set(constants))])
    return found


@pytest.mark.parametrize("name", ALL)
def test_the_tests_of_a_row_exist_and_one_is_of_that_name(name):
    tests = ALL[name].tests
    assert tests
    assert len(set(tests)) == len(tests)
    texts = []
    for test in tests:
        file, _, function = test.partition("::")
        assert list((ROOT / "tests").rglob(file)), f"{name}: there is no {file} in tests/"
        assert function in functions(file), f"{name}: there is no {function} in tests/{file}"
        texts.append(f"{file} {functions(file)[function]}")
    by_name = [text for text in texts if name.rpartition(" ")[2] in text.lower()]
    assert by_name, f"none of the tests of {name} names it"


BY_CASES = {
    "test_losses_equal_trl_dpo",
    "test_losses_equal_hand_derivations",
    "test_losses_equal_numbers_worked_by_hand",
}


def test_a_test_whose_cases_are_losses_has_one_of_the_row():
    rows = [
        (name, function, functions(file)[function])
        for name, check in LOSS_CHECKS.items()
        for file, _, function in (test.partition("::") for test in check.tests)
        if function in BY_CASES
    ]
    assert {function for _, function, _ in rows} == BY_CASES
    assert [(name, function) for name, function, text in rows if f'("{name}", ' not in text] == []


# --- The document ----------------------------------------------------------------------------------------------------


def test_the_document_is_up_to_date():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert re.findall(r"<!-- table: (\w+)", text) == list(CHECK_TABLES)
    assert refresh(text) == text, "run `make tables`, or `python -m ledpo_plugin.cli.tables docs/checked_against.md`"


@pytest.mark.parametrize("name", ALL)
def test_repositories_stand_with_a_commit(name):
    """A branch moves; what was read there would be unknown."""
    text = f"{ALL[name].read} {ALL[name].differs}"
    assert ALL[name].read
    for repository in re.findall(r"(?<![\w./-])(\w[\w-]*/[\w.-]+@\w*)", text):
        assert re.search(r"@[0-9a-f]{7,40}$", repository), repository


# --- What is said of others ------------------------------------------------------------------------------------------


def pairs() -> PairLogps:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(5, 40, (2, 8), generator=generator).double()
    reference = -lengths * (1 + torch.rand(2, 8, generator=generator, dtype=torch.float64))
    policy = (reference + 2 * torch.randn(2, 8, generator=generator, dtype=torch.float64)).requires_grad_()
    return PairLogps(policy[0], policy[1], reference[0], reference[1], lengths[0], lengths[1])


def same(ours: torch.Tensor, theirs: torch.Tensor, logps: PairLogps, **tolerance: float) -> None:
    """Values, and gradients in the policy under the same random cotangent."""
    tolerance = tolerance or TIGHT
    torch.testing.assert_close(ours, theirs, **tolerance)
    cotangent = torch.linspace(-1, 2, 8, dtype=torch.float64)
    wanted = [logps.policy_chosen, logps.policy_rejected]
    for mine, other in zip(
        torch.autograd.grad(ours, wanted, cotangent, retain_graph=True),
        torch.autograd.grad(theirs, wanted, cotangent, retain_graph=True),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, **tolerance)


BETA = torch.full((8,), 0.3, dtype=torch.float64)


def ratios(logps: PairLogps) -> tuple[torch.Tensor, torch.Tensor]:
    return logps.policy_chosen - logps.reference_chosen, logps.policy_rejected - logps.reference_rejected


def test_exo_pair_is_the_authors_at_their_smoothing():
    """exact-optimization: sum q (ln q - p) over both answers, ln q the log-softmax of beta a, beta b; p = (0, -10)."""
    logps = pairs()
    log_q = torch.stack([BETA * ratio for ratio in ratios(logps)]).log_softmax(0)
    theirs = (log_q.exp() * (log_q - torch.tensor([[0.0], [-10.0]], dtype=torch.float64))).sum(0)
    smoothing = torch.tensor(-10.0, dtype=torch.float64).exp().item()
    ours = function_of("exo_pair")(logps, BETA, label_smoothing=smoothing).losses
    same(ours, theirs, logps, rtol=1e-4, atol=2 * smoothing)  # ln(1 - e) = 0 there
    default = function_of("exo_pair")(logps, BETA).losses
    assert (theirs - default).abs().max() > 0.1


def test_sppo_hard_is_twice_the_authors():
    """SPPO: the mean of (a - (P_w - 1/2) / beta)^2 and (b - (P_l - 1/2) / beta)^2, at P_w = 1 and P_l = 0."""
    logps = pairs()
    a, b = ratios(logps)
    theirs = ((a - (1 - 0.5) / BETA) ** 2 + (b - (0 - 0.5) / BETA) ** 2) / 2
    same(function_of("sppo_hard")(logps, BETA).losses, 2 * theirs, logps)


def test_r_dpo_is_modpo_with_a_reward_of_minus_the_length():
    """MODPO: r(y) = [beta log-ratio - w_1 m(y)] / w_0 and -LS(r_w - r_l), m(y) = -|y|; here w_0 = 1, w_1 = alpha."""
    logps, alpha = pairs(), 0.07
    a, b = ratios(logps)
    chosen = BETA * a - alpha * -logps.chosen_length
    rejected = BETA * b - alpha * -logps.rejected_length
    same(function_of("r_dpo")(logps, BETA, alpha=alpha).losses, -F.logsigmoid(chosen - rejected), logps)


def test_nca_pair_and_discopop_are_the_authors():
    logps, tau = pairs(), 0.05
    a, b = ratios(logps)
    nca = -F.logsigmoid(BETA * a) - 0.5 * F.logsigmoid(-BETA * a) - 0.5 * F.logsigmoid(-BETA * b)
    same(function_of("nca_pair")(logps, BETA).losses, nca, logps)
    z = BETA * (a - b)
    share = torch.sigmoid(z / tau)
    theirs = -F.logsigmoid(z) * (1 - share) + torch.exp(-z) * share
    same(function_of("discopop")(logps, BETA, tau=tau).losses, theirs, logps)


def test_cpo_is_alma_s_where_every_answer_is_of_one_length():
    """ALMA averages the NLL over all answer tokens of the batch, ours each answer's; then both are the same on average.

    With unequal lengths they are not: long answers weigh more there.
    """
    logps = pairs()
    even = logps._replace(chosen_length=torch.full((8,), 12.0, dtype=torch.float64))
    for batch, equal in ((even, True), (logps, False)):
        preference = -F.logsigmoid(BETA * (batch.policy_chosen - batch.policy_rejected)).mean()
        theirs = preference - batch.policy_chosen.sum() / batch.chosen_length.sum()
        ours = function_of("cpo")(batch, BETA, cpo_alpha=1.0).losses.mean()
        assert torch.allclose(ours, theirs, rtol=1e-10) == equal


def test_ld_alpha_leaves_a_margin_where_policy_and_reference_are_one():
    """Answers of 2 and 4 tokens, -1 nat each: the policy's are -2, -2 - 2/2, the reference's -2, -4, so D = -1."""
    tokens = torch.tensor([[-1.0, -1.0, 0.0, 0.0], [-1.0, -1.0, -1.0, -1.0]])
    lengths = torch.tensor([2, 4])
    a, b = sum_logps(tokens, lengths, 0.5) - sum_logps(tokens, lengths)
    assert (a - b).item() == -1
