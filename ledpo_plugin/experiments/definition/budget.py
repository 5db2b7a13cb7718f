"""Equal budgets: what a budget means for a recipe, and whether a run kept to it.

A budget is a number of optimizer steps, examples, tokens or floating point operations. An example is a pair, an
instruction, or two single answers: two answers is what a pair is made of. Tokens and operations are those of policy
and reference together, whether the reference ran or was cached.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ledpo_plugin.data.mixture import exact_share
from ledpo_plugin.stages import STAGES

UNITS = ("steps", "examples", "tokens", "flops")
COUNTED = ("steps", "examples")  # units from which the number of steps follows before training
OF_ROLLOUTS = ("steps", "flops")  # units that mean something where answers are generated
UNENDING = 1_000_000_000  # max_steps where a budget of tokens or operations ends training


@dataclass(frozen=True)
class Budget:
    """So many of a unit."""

    unit: str
    amount: float

    def part(self, share: float) -> "Budget":
        """Return a share of it."""
        return self if share == 1 else Budget(self.unit, float(Fraction(str(self.amount)) * Fraction(str(share))))


class BudgetProblem(ValueError):
    """A recipe that cannot meet the budget; args are the key, its value, why, and what to do."""


def _number(recipe: Mapping[str, Any], key: str, default: int) -> int:
    value = recipe.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else default


def answers_an_example(recipe: Mapping[str, Any]) -> int:
    """Return how many of the stage's preference rows are one example: 1 of pairs, 2 of single answers."""
    stage = STAGES.get(recipe.get("stage"))
    return 2 if stage is not None and stage.data == "unpaired" else 1


def examples_a_step(recipe: Mapping[str, Any], processes: int = 1) -> Fraction:
    """Return the examples of one optimizer step over all processes.

    Raises:
        BudgetProblem: it differs from step to step.
    """
    rows = _number(recipe, "per_device_train_batch_size", 8) * _number(recipe, "gradient_accumulation_steps", 1)
    rows *= processes
    ratio = recipe.get("sft_ratio") or 0
    if ratio and recipe.get("sft_ratio_by") == "tokens":
        if answers_an_example(recipe) == 1:
            return Fraction(rows)  # of either kind, one example each
        why = "how many of a step's rows are single answers, two to an example, is not known before"
        raise BudgetProblem("sft_ratio_by", "tokens", why, "set sft_ratio_by: examples, or budget steps")
    share = exact_share(ratio) if isinstance(ratio, int | float) else Fraction(0)
    return rows * share + rows * (1 - share) / answers_an_example(recipe)


def steps_of(budget: Budget, recipe: Mapping[str, Any], processes: int = 1) -> int | None:
    """Return the optimizer steps that use up a budget; None where only training can tell.

    Raises:
        BudgetProblem: the budget is no whole number of this recipe's steps, or has no meaning for its stage.
    """
    stage = STAGES.get(recipe.get("stage"))
    if stage is not None and stage.rollouts and budget.unit not in OF_ROLLOUTS:
        why = f"a stage that trains on its own answers cannot be compared with others at equal {budget.unit}"
        raise BudgetProblem("stage", stage.name, why, "budget flops, which count generation and rewards, too")
    if budget.unit not in COUNTED:
        return None
    a_step = Fraction(1) if budget.unit == "steps" else examples_a_step(recipe, processes)
    steps = Fraction(str(budget.amount)) / a_step
    if steps.denominator != 1 or steps < 1:
        why = (
            f"a budget of {budget.amount:g} {budget.unit} is {float(steps):g} steps of {float(a_step):g} "
            f"{budget.unit} each, not a whole number"
        )
        fix = f"make the budget a multiple of {float(a_step):g}, or change the recipe's batch"
        raise BudgetProblem("per_device_train_batch_size", recipe.get("per_device_train_batch_size"), why, fix)
    return int(steps)


def budget_keys(budget: Budget, recipe: Mapping[str, Any], processes: int = 1) -> dict[str, Any]:
    """Return the recipe keys that enforce a budget.

    Raises:
        BudgetProblem: as `steps_of`.
    """
    steps = steps_of(budget, recipe, processes)
    if steps is not None:
        return {"max_steps": steps}
    return {"max_steps": UNENDING, f"budget_{budget.unit}": budget.amount}


def used(budget: Budget, usage: Mapping[str, Any], recipe: Mapping[str, Any]) -> float:
    """Return how much of the budget's unit a run used, by its own `ledpo_usage.json`."""
    if budget.unit == "examples":
        return usage["examples"] / answers_an_example(recipe) + usage["sft_examples"]
    if budget.unit == "tokens":
        return usage["policy_tokens"] + usage["reference_tokens"]
    return usage[budget.unit]


def overrun(
    budget: Budget, usage: Mapping[str, Any], recipe: Mapping[str, Any], log: Sequence[Mapping[str, Any]] = ()
) -> str | None:
    """Return why a finished run did not keep to its budget: too little, or more than one step too much.

    Args:
        budget: what was declared.
        usage: the run's `ledpo_usage.json`.
        recipe: what was run.
        log: the run's log of steps; of tokens and operations it tells what was used before the last step.
    """
    spent = used(budget, usage, recipe)
    if spent < budget.amount:
        return f"only {spent:g} of the budget of {budget.amount:g} {budget.unit} were used"
    if budget.unit in COUNTED:
        before = None if spent == budget.amount else spent
    else:
        earlier = [row for row in log if row.get("step", 0) < usage["steps"] and "flops" in row]
        before = logged(budget.unit, earlier[-1]) if earlier else None
    if before is not None and before >= budget.amount:
        return (
            f"{spent:g} {budget.unit} were used, and the budget of {budget.amount:g} was used up before the last step"
        )
    return None


def share_missed(recipe: Mapping[str, Any], log: Sequence[Mapping[str, Any]]) -> str | None:
    """Return in which step of its own log a run's share of instructions was not the declared one; None if in none.

    A share of examples is exact. One of tokens is as near as whole examples allow, so it is not judged here.
    """
    ratio = recipe.get("sft_ratio") or 0
    if not ratio or recipe.get("sft_ratio_by") == "tokens":
        return None
    if not log:
        return f"no step was logged, so that nothing shows whether sft_ratio, {ratio:g}, was kept"
    for row in log:
        share = row.get("sft_share")
        if share is None or abs(share - ratio) > 1e-9:
            return f"the share of instructions was {share} at step {row.get('step')}, and sft_ratio is {ratio:g}"
    return None


def logged(unit: str, row: Mapping[str, Any]) -> float:
    """Return how many tokens or operations were used when a row of the log was written."""
    return row["flops"] if unit == "flops" else row["policy_tokens"] + row["reference_tokens"]
