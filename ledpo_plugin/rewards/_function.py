"""Rewards from a Python function of the user."""

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from numbers import Real
from typing import Any

from torch import Tensor, nn

from ._types import RewardBatch, RewardError, as_rewards


class FunctionProblem(ValueError):
    """`module:function` names nothing that can be called for rewards; `fix` says what to do."""

    def __init__(self, why: str, fix: str):
        super().__init__(why)
        self.why, self.fix = why, fix


SIGNATURE = "a function that takes prompts and responses (two lists of texts) and returns a list of numbers"


def _working_directory_last() -> None:
    """Let modules of the working directory be found, behind everything that is installed.

    `llamafactory-cli` starts with its own folder on the path, so that a file of the user's would not be found. It stays
    there, as the function may import more when it is called.
    """
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)


def load_function(where: str) -> Callable[..., Any]:
    """Return the function that `module:function` names.

    Raises:
        FunctionProblem: there is none, it cannot be imported, or it does not take prompts and responses.
    """
    module_name, separator, name = where.partition(":")
    if not separator or not module_name or not name:
        raise FunctionProblem("this is not of the form module:function", "write for example my_rewards:score")
    try:
        _working_directory_last()
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name == missing or module_name.startswith(missing + "."):
            raise FunctionProblem(
                f"there is no module {missing} in {os.getcwd()} or among the installed ones",
                "correct the name, start in the folder that holds it, or set PYTHONPATH to that folder",
            ) from error
        raise FunctionProblem(f"module {module_name} needs {missing}", f"pip install what holds {missing}") from error
    except Exception as error:
        raise FunctionProblem(
            f"importing {module_name} stops with {summary(error)}", f"repair {module_name}"
        ) from error
    function: Any = module
    for part in name.split("."):
        function = getattr(function, part, None)
    if function is None:
        raise FunctionProblem(f"module {module_name} has no {name}", f"write the name of {SIGNATURE}")
    if not callable(function):
        raise FunctionProblem(f"{name} is a {type(function).__name__}, not a function", f"name {SIGNATURE}")
    if inspect.iscoroutinefunction(function):
        raise FunctionProblem(f"{name} is an async function", "write an ordinary one (it may call asyncio.run)")
    try:
        inspect.signature(function).bind(prompts=[], responses=[])
    except TypeError as error:
        raise FunctionProblem(
            f"{name} cannot be called as {name}(prompts=..., responses=...): {error}", f"name {SIGNATURE}"
        ) from error
    except ValueError:
        pass  # a built-in without a signature
    return function


def summary(error: BaseException) -> str:
    """Return an exception with the place in the user's code that it comes from, on one line."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "importlib" not in frame.filename and frame.filename != __file__]
    place = f" at {own[-1].filename}:{own[-1].lineno} in {own[-1].name}" if own else ""
    text = (str(error).splitlines() or [""])[0][:200]
    return f"{type(error).__name__}: {text}{place}"


def _number(value: Any) -> float | None:
    """Return a number, or None; of numpy, torch and Python."""
    if value is None:
        return None
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, Real):
        raise TypeError(f"{value!r:.80} is no number")
    return float(value)


class FunctionReward:
    """Asks a function for the rewards of a batch."""

    passes = 0.0

    def __init__(self, where: str):
        """Take the function that `module:function` names.

        Raises:
            RewardError: there is none.
        """
        self.where = where
        try:
            self.function = load_function(where)
        except FunctionProblem as problem:
            raise RewardError(f"{where}: {problem.why}. Fix: {problem.fix}.") from problem

    def score(self, batch: RewardBatch, model: nn.Module) -> Tensor:
        """Return what the function says `[R]`; None, NaN and infinities are no reward.

        Raises:
            RewardError: it raises, or returns something else than one number or None per answer.
        """
        try:
            values = self.function(prompts=list(batch.prompts), responses=list(batch.responses))
        except Exception as error:
            raise RewardError(
                f"The reward function {self.where} stopped with {summary(error)}. It is not asked again, because it "
                "would stop again. Repair it, or let it return None for answers that it cannot judge."
            ) from error
        try:
            numbers = [_number(value) for value in values]
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise RewardError(
                f"The reward function {self.where} returned {type(values).__name__}: {error}. It must return one "
                "number per answer, or None where it cannot judge."
            ) from error
        if len(numbers) != batch.size:
            raise RewardError(
                f"The reward function {self.where} returned {len(numbers)} values for {batch.size} answers. It must "
                "return one number per answer, in their order, or None where it cannot judge."
            )
        return as_rewards(numbers)


def build_function(one: Any, context: Any) -> FunctionReward:
    """Return the rewards of a function.

    Raises:
        RewardError: it cannot be imported or does not fit.
    """
    context.log(f"Reward {one.name}: the function {one.where}.")
    return FunctionReward(one.where)
