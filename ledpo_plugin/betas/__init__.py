"""Beta strategies: small modules that decide beta per example.

What is known of each stands in its row of `ledpo_plugin.facts.BETAS`, by whose name it is found here. A new one is a
class in one of the modules here and a row there; the contract tests in tests/betas/test_betas.py then run over it.
"""

from ledpo_plugin.betas._published import epsilon_steps, mixture_token_logps
from ledpo_plugin.betas._types import FINISHED, BetaFeatures, BetaOutput, BetaStrategy, Progress
from ledpo_plugin.facts import BETAS, BetaMode, Need, implementation

__all__ = [
    "BETAS",
    "FINISHED",
    "BetaFeatures",
    "BetaMode",
    "BetaOutput",
    "BetaStrategy",
    "Need",
    "Progress",
    "epsilon_steps",
    "mixture_token_logps",
    "strategy_class",
]


def strategy_class(name: str) -> type[BetaStrategy]:
    """Return the strategy of a beta mode.

    Raises:
        KeyError: there is no such beta mode.
    """
    return implementation(BETAS[name].where, __name__)


def __getattr__(name: str) -> type[BetaStrategy]:
    """Return a strategy as an attribute of this package: `ledpo_plugin.betas.HeadBeta`."""
    for mode in BETAS.values():
        if mode.where.endswith(f":{name}"):
            return strategy_class(mode.name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
