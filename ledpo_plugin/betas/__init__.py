"""Beta strategies: small modules that decide beta per example.

`BETAS` is the table of all of them. A new one is a class in one of the modules here and a row in that table; the
contract tests in tests/betas/test_betas.py then run over it. What each was compared with stands in
`ledpo_plugin.checked_against`.
"""

from collections.abc import Mapping
from types import MappingProxyType

from ledpo_plugin.betas._fixed import FixedBeta
from ledpo_plugin.betas._learned import GlobalBeta, HeadBeta
from ledpo_plugin.betas._ppl import PplBeta
from ledpo_plugin.betas._published import BetaDpo, EpsilonDpo, MallowsBeta, epsilon_steps, mixture_token_logps
from ledpo_plugin.betas._types import BetaFeatures, BetaMode, BetaOutput, BetaStrategy, Need

__all__ = [
    "BETAS",
    "BetaDpo",
    "BetaFeatures",
    "BetaMode",
    "BetaOutput",
    "BetaStrategy",
    "EpsilonDpo",
    "FixedBeta",
    "GlobalBeta",
    "HeadBeta",
    "MallowsBeta",
    "Need",
    "PplBeta",
    "epsilon_steps",
    "mixture_token_logps",
]


def _rows(*modes: BetaMode) -> Mapping[str, BetaMode]:
    return MappingProxyType({mode.name: mode for mode in modes})


BETAS: Mapping[str, BetaMode] = _rows(
    BetaMode(
        name="fixed",
        cls=FixedBeta,
        formula="beta0",
        source="DPO, arXiv:2305.18290",
        summary="The same beta for every example.",
        learned=False,
        needs_reference=False,
    ),
    BetaMode(
        name="global",
        cls=GlobalBeta,
        formula="beta0 exp(bound(theta))",
        source="LEDPO",
        summary="One learned scalar for all examples.",
        learned=True,
        needs_reference=False,
    ),
    BetaMode(
        name="head",
        cls=HeadBeta,
        formula="beta0 exp(bound(MLP(h)))",
        source="LEDPO",
        summary="A learned head on the hidden state of the last prompt token.",
        learned=True,
        needs_reference=False,
    ),
    BetaMode(
        name="ppl",
        cls=PplBeta,
        formula="w PPL(x)^p (1 + eps tanh(NN(h)))",
        source="LEDPO's core theory",
        summary="The prompt's perplexity against its running mean, with a learned scale and correction.",
        learned=True,
        needs_reference=False,
    ),
    BetaMode(
        name="beta_dpo",
        cls=BetaDpo,
        formula="max(beta0 (1 + alpha (mean(D kept) - M)), 0.001)",
        source="beta-DPO, arXiv:2407.08639",
        summary="One beta per batch from its mean margin, with a filter on outlying pairs. A batch is what one forward "
        "pass of all processes holds, whatever gradient_accumulation_steps is.",
        learned=False,
        needs_reference=True,
    ),
    BetaMode(
        name="epsilon_dpo",
        cls=EpsilonDpo,
        formula="beta / (1 + epsilon step), step in {-1, 0, +1}",
        source="epsilon-DPO, arXiv:2502.13177",
        summary="Per pair, up or down by whether a step away from the reference widens the policy's gap.",
        learned=False,
        needs_reference=True,
        recommended={"pref_beta": 0.01},  # the authors' configs; it moves from there
    ),
    BetaMode(
        name="mallows",
        cls=MallowsBeta,
        formula="beta0 (-phi ln H)",
        source="MallowsPO, arXiv:2405.14953",
        summary="Higher where the reference model gives the answers with little entropy. Plain DPO otherwise: beta 10, "
        "log-probabilities per token and no reference are the defaults of its authors' code.",
        learned=False,
        needs_reference=True,
    ),
)
