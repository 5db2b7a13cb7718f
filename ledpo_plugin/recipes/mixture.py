"""Checks: instructions mixed into the training data, and budgets."""

from collections.abc import Iterator

from ledpo_plugin.common.problem import Problem, problem
from ledpo_plugin.data.mixture import share_problem
from ledpo_plugin.facts import BETAS

from .combinations import processes
from .reading import HOST_DEFAULTS, Reading

ENDLESS = ("constant", "constant_with_warmup")  # schedules that do not need to know when training ends


def check_mixture(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem where instructions and preferences cannot be mixed as the recipe says."""
    ratio = recipe.number("sft_ratio") or 0
    if ratio <= 0:
        if recipe.is_set("sft_dataset"):
            why = "sft_dataset has no effect: sft_ratio, its share of each step, is 0"
            yield problem("sft_dataset", recipe.raw.get("sft_dataset"), why, "set sft_ratio, for example to 0.25")
        return
    if not recipe.is_set("sft_dataset"):
        why = "sft_ratio asks for instructions, and no data set of them is named"
        yield problem("sft_ratio", ratio, why, "set sft_dataset to a data set of instructions, or remove sft_ratio")
    if recipe.flag("streaming"):
        why = "a share of each step needs data of known size, and streamed data has none"
        yield problem("sft_ratio", ratio, why, "remove streaming, or sft_ratio and sft_dataset")
    if recipe.flag("freeze_policy"):
        why = "freeze_policy keeps the policy as it is, so instructions teach it nothing"
        yield problem("sft_ratio", ratio, why, "remove freeze_policy, or sft_ratio and sft_dataset")
    yield from _check_share(recipe, ratio)


def _check_share(recipe: Reading, ratio: float) -> Iterator[Problem]:
    given = recipe.number("per_device_train_batch_size")
    batch = HOST_DEFAULTS["per_device_train_batch_size"] if given is None else given
    accumulated = recipe.number("gradient_accumulation_steps")
    accumulated = 1 if accumulated is None else accumulated
    if ratio >= 1 or batch < 1 or accumulated < 1 or batch != int(batch) or accumulated != int(accumulated):
        return  # the checks of ranges and types say so
    if recipe.raw.get("sft_ratio_by") == "tokens":
        if batch < 2:
            why = "a batch holds at least one preference, so with batches of one there is no room for instructions"
            yield problem("per_device_train_batch_size", int(batch), why, "set per_device_train_batch_size: 2 or more")
        return
    found = share_problem(ratio, int(batch), int(batch * accumulated * processes(recipe.environ)))
    if found is not None:
        yield problem("sft_ratio", ratio, *found)


def check_budget(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem where a schedule, of the learning rate or of beta, would be cut off by a budget."""
    schedule = recipe.text("lr_scheduler_type") or "linear"
    beta = BETAS.get(recipe.mode or "")
    for key in ("budget_tokens", "budget_flops"):
        if recipe.number(key) is not None and beta is not None and beta.kind == "scheduled":
            why = f"{key} ends training at a step not known before, and beta_mode {beta.name} has to know it"
            yield problem(
                key, recipe.raw.get(key), why, f"give max_steps instead of {key}, or choose another beta_mode"
            )
        if recipe.number(key) is not None and schedule not in ENDLESS:
            why = f"{key} ends training at a step not known before, and the schedule {schedule} has to know it"
            fix = f"set lr_scheduler_type to {' or '.join(ENDLESS)}, or give max_steps instead of {key}"
            yield problem(key, recipe.raw.get(key), why, fix)
