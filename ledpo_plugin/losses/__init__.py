"""Preference losses: pure functions of log-probabilities and beta, one value per example.

What is known of each stands in its row of `ledpo_plugin.facts.LOSSES`, by whose name it is found here. A new loss is a
function in one of the modules here and a row there; the contract tests in tests/losses/test_losses.py then run over it.
"""

from collections.abc import Callable

from ledpo_plugin.facts import LOSSES, Loss, implementation
from ledpo_plugin.losses._common import nll
from ledpo_plugin.losses._types import LossOutput, PairLogps, UnpairedLogps

__all__ = ["LOSSES", "Loss", "LossOutput", "PairLogps", "UnpairedLogps", "function_of", "nll"]


def function_of(name: str) -> Callable[..., LossOutput]:
    """Return the loss of that name: `(logps, beta, **options) -> LossOutput`, every tensor `[B]`.

    Raises:
        KeyError: there is no such loss.
    """
    return implementation(LOSSES[name].where, __name__)


def __getattr__(name: str) -> Callable[..., LossOutput]:
    """Return a loss as an attribute of this package: `ledpo_plugin.losses.simpo`."""
    if name in LOSSES:
        return function_of(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
