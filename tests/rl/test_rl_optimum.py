"""PPO, RLOO and GRPO on a task whose best policy is known: they reach it, KL is held to its target, beta(x) weighs it.

Policies are judged by exact sums over all answers there are, never by samples. `benchmarks/ppo_optimum.py` runs more of
the same and draws it.
"""

from itertools import pairwise

import pytest
import rl_task
import torch
from conftest import series, train
from rl_task import BETAS, RUNS, SAMPLES, STATED, Task, judge, per_prompt, recipe, write_head


@pytest.fixture(scope="module")
def task(tiny, tmp_path_factory) -> Task:
    """The task, written and summed up once."""
    return Task.make(tiny, tmp_path_factory.mktemp("task"))


# ---- the yardstick


def test_all_answers_together_have_probability_one(task):
    assert len(set(task.outcomes.ids)) == len(task.outcomes.ids)
    total = task.exact.reference.exp().sum(1)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-6, atol=0)  # sums of fp32 logits


@pytest.mark.parametrize("coefficient", [0.1, 0.25, 1.0])
def test_the_enumerated_optimum_beats_every_other_policy(task, coefficient):
    exact = task.exact
    best = exact.best(coefficient)
    value = exact.value(coefficient)
    torch.testing.assert_close(exact.point(best).objective(coefficient), value, rtol=1e-9, atol=1e-9)
    generator = torch.Generator().manual_seed(1)
    others = [exact.reference, exact.best(coefficient * 0.9), exact.best(coefficient * 1.1)]
    for size in (0.01, 0.3, 3.0):
        noise = torch.randn(best.shape, generator=generator, dtype=best.dtype)
        others += [torch.log_softmax(start + size * noise, dim=1) for start in (best, exact.reference)]
    for other in others:
        assert bool((exact.point(other).objective(coefficient) < value).all())


def test_the_gradient_is_zero_at_the_optimum_and_nowhere_near(task):
    exact, coefficient = task.exact, 0.2

    def steepest(start):
        logits = start.clone().requires_grad_()
        exact.point(torch.log_softmax(logits, dim=1)).objective(coefficient).sum().backward()
        return float(logits.grad.abs().max())

    assert steepest(exact.best(coefficient)) < 1e-12
    assert steepest(exact.reference) > 1e-7


def test_no_policy_of_that_kl_has_more_reward(task):
    """Of all policies with the same mean KL, pi*(c) has the most reward: bisection for c must find the KL asked for."""
    exact = task.exact
    for target in (0.3, 1.0, 2.0):
        coefficient = exact.coefficient_for(target)
        point = exact.point(exact.best(coefficient))
        assert float(point.kl.mean()) == pytest.approx(target, rel=1e-6)
        # A mixture of two best policies of other KLs has at most their mean KL (KL is convex), so no more reward.
        low, high = (exact.best(exact.coefficient_for(target * factor)) for factor in (0.5, 1.5))
        mixed = exact.point(torch.logaddexp(low, high) - torch.tensor(2.0).log())
        assert float(mixed.kl.mean()) <= target
        assert float(mixed.reward.mean()) < exact.best_reward(float(mixed.kl.mean())) + 1e-9


def test_the_stage_scores_answers_as_the_enumeration_does(task):
    """The plugin's own pass over some answers gives the enumeration's log-probabilities."""
    from ledpo_plugin.rl.scores import answers_batch, score_answers

    model, _, _ = rl_task.load(task.files.model)
    picked = [0, 1, 700, 30_000, len(task.outcomes.ids) - 1]
    for row, prompt in enumerate(task.ids[:3]):
        answers = [task.outcomes.ids[i] for i in picked]
        found = score_answers(model, answers_batch([prompt] * len(answers), answers, 0)).logps.sum(1)
        torch.testing.assert_close(found.double(), task.exact.reference[row, picked], rtol=1e-5, atol=1e-5)


# ---- the estimators


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("adaptive")])
@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3, 4, 5))])
def test_estimators_reach_the_optimum_with_kl_at_its_target(task, tmp_path, name, seed):
    """Within SAMPLES answers, from a coefficient that is wrong at first; what is STATED is in the documentation."""
    run = train(recipe(task.files, tmp_path / "run", seed=seed, **RUNS[name]))
    found = judge(task, run, RUNS[name])
    print(name, seed, found)
    assert found["answers"] == SAMPLES
    assert abs(found["kl"] / RUNS[name]["ppo_target"] - 1) <= STATED["kl"]
    assert found["gain"] >= STATED["gain"]
    assert found["efficiency"] >= STATED["efficiency"]
    assert series(run, "kl/coefficient")[-1] != pytest.approx(RUNS[name]["kl_coef"], rel=0.05)  # it was steered


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("fixed")])
@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
def test_estimators_reach_the_optimum_of_a_fixed_coefficient(task, tmp_path, name, seed):
    run = train(recipe(task.files, tmp_path / "run", seed=seed, **RUNS[name]))
    found = judge(task, run, RUNS[name])
    print(name, seed, found)
    assert found["objective"] >= STATED["objective"]


def test_a_policy_that_is_not_trained_is_found_wanting(task, tmp_path):
    """The judgement can fail: after two steps nothing is reached."""
    changes = RUNS["adaptive rloo"] | {"max_steps": 2}
    found = judge(task, train(recipe(task.files, tmp_path / "run", **changes)), changes)
    assert found["gain"] < STATED["gain"] / 2
    assert abs(found["kl"] / changes["ppo_target"] - 1) > STATED["kl"]


# ---- beta(x)


@pytest.mark.parametrize(
    "name", ["beta rloo", *(pytest.param(name, marks=pytest.mark.slow) for name in ("beta gae", "beta grpo"))]
)
def test_beta_weighs_the_kl_prompt_by_prompt(task, tmp_path, name):
    """Prompts of low beta move far from the reference, those of high beta little, as the exact optimum says."""
    write_head(task, tmp_path / "head", BETAS, RUNS[name]["pref_beta"])
    run = train(recipe(task.files, tmp_path / "run", beta_head_path=str(tmp_path / "head"), **RUNS[name]))
    found = per_prompt(task, run, RUNS[name])
    print(name, found)
    torch.testing.assert_close(torch.tensor(found["beta"]), torch.tensor(BETAS), rtol=0.1, atol=0)
    assert found["rank_correlation"] <= -0.85
    means = [sum(found["kl"][i::4]) / len(found["kl"][i::4]) for i in range(4)]  # by mood, from high beta to low
    assert all(second > 1.3 * first for first, second in pairwise(means))
    if name == "beta grpo":  # whose optimum is another one: its advantages are divided by their deviation
        assert means[3] > 3 * means[0]
    else:
        assert means[3] > 4 * means[0]
        assert found["log_error"] <= 0.35
    assert series(run, "kl/coefficient_std")[0] > 0.05
