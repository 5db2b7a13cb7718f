"""Beta modes: one row a mode, which says everything that others rely on, and the recipe keys that they read.

Recipes, documents and the web UI read these rows; the strategies themselves are found from `where` when one is built
(`ledpo_plugin.betas`). A new mode is a class there, a row here, and the keys that it alone reads at the foot.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from ledpo_plugin.common.lookup import by_name

from ._row import LEDPO_CODE, LIKE_HOST, Check, Kind, Names, either, key

# What of a batch a strategy may ask for: fields of `ledpo_plugin.betas.BetaFeatures`, which says what each is. The
# progress of the run is told to every strategy.
Need = Literal["hidden", "prompt_nll", "margin", "reference_entropy", "epsilon_step"]
OF_PROMPT: frozenset[Need] = frozenset({"hidden", "prompt_nll"})


@dataclass(frozen=True)
class BetaMode:
    """One row of the table of beta modes."""

    name: str
    where: str  # its strategy, "module:class"; a module that starts with a dot is one of ledpo_plugin.betas
    kind: Kind
    formula: str  # one line, for the documents' table
    source: str  # paper or code it follows
    summary: str  # one sentence
    check: Check
    needs: frozenset[Need] = frozenset()
    needs_reference: bool = False  # cannot work without a reference model
    batchwise: bool = False  # compares the pairs of one forward pass with each other, so that there must be two
    recommended: Mapping[str, float] = field(default_factory=dict)  # recipe key -> value, where not the loss's
    hint: str = ""  # what `beta_mode` adds to the name where it lists all of them

    @property
    def named(self) -> str:
        """Its name, with the hint where there is one."""
        return f"{self.name} ({self.hint})" if self.hint else self.name

    @property
    def reads_prompt(self) -> bool:
        """Whether it has a head on the prompt's hidden state, so that beta differs from prompt to prompt."""
        return "hidden" in self.needs

    @property
    def before_answers(self) -> bool:
        """Whether beta is known before a prompt is answered."""
        return self.needs <= OF_PROMPT


ROWS: dict[str, BetaMode] = by_name(
    BetaMode(
        name="fixed",
        where="._fixed:FixedBeta",
        formula="beta0",
        source="DPO, arXiv:2305.18290",
        summary="The same beta for every example.",
        kind="constant",
        check=Check(
            "see `sigmoid`: a constant",
            ("test_betas.py::test_exactly_beta0_at_the_start", LIKE_HOST),
        ),
    ),
    BetaMode(
        name="global",
        where="._learned:GlobalBeta",
        formula="beta0 exp(bound(theta))",
        source="LEDPO",
        summary="One learned scalar for all examples.",
        kind="learned",
        hint="one learned scalar",
        check=Check(
            "LEDPO's own; its formula",
            ("test_betas.py::test_global_equals_its_formula", "test_betas.py::test_exactly_beta0_at_the_start"),
        ),
    ),
    BetaMode(
        name="head",
        where="._learned:HeadBeta",
        formula="beta0 exp(bound(MLP(h)))",
        source="LEDPO",
        summary="A learned head on the hidden state of the last prompt token.",
        kind="learned",
        needs=frozenset({"hidden"}),
        hint="LEDPO: beta(x) from the hidden state of the last prompt token",
        check=Check(
            f"LEDPO's own; its formula, written again in numpy. Ancestor: {LEDPO_CODE}@286e8ca:"
            "src/llamafactory/train/dpo/beta_head.py",
            (
                "test_betas.py::test_head_equals_its_formula",
                "test_betas.py::test_exactly_beta0_at_the_start",
                "test_forward.py::test_the_hidden_state_is_that_of_the_last_prompt_token_and_knows_nothing_of_the_answer",
            ),
            "The ancestor is clamp(softplus(MLP(h)), 0.01, 100), without penalty, and starts near beta0, not at it.",
        ),
    ),
    BetaMode(
        name="ppl",
        where="._ppl:PplBeta",
        formula="w PPL(x)^p (1 + eps tanh(NN(h)))",
        source="LEDPO's core theory",
        summary="The prompt's perplexity against its running mean, with a learned scale and correction.",
        kind="learned",
        needs=frozenset({"hidden", "prompt_nll"}),
        check=Check(
            f"{LEDPO_CODE}@a310333:xdpo/ledpo-core-theory.md, section 3.1",
            ("test_betas.py::test_ppl_equals_its_formula", "test_betas.py::test_ppl_network_moves_beta_by_its_share"),
            "There it is the perplexity under the policy (section 5 prefers the reference), without a running mean to "
            "compare with; here `beta_head_source` decides, the reference by default. Text and formula differ in "
            "direction there: section 6 wants a high beta on what is familiar, the formula gives it to what is not. "
            "`beta_ppl_power: -1` is the text.",
        ),
    ),
    BetaMode(
        name="beta_dpo",
        where="._published:BetaDpo",
        formula="max(beta0 (1 + alpha (mean(D kept) - M)), 0.001)",
        source="beta-DPO, arXiv:2407.08639",
        summary="One beta per batch from its mean margin, with a filter on outlying pairs. A batch is what one forward "
        "pass of all processes holds, whatever gradient_accumulation_steps is.",
        kind="published",
        needs=frozenset({"margin"}),
        batchwise=True,
        needs_reference=True,
        check=Check(
            "junkangwu/beta-DPO@1629047:trainers.py",
            ("test_betas.py::test_beta_dpo_worked_by_hand", "test_betas.py::test_beta_dpo_filter_worked_by_hand"),
            "There as here a batch is the rows of one forward pass over all ranks, whatever the gradient accumulation, "
            "and beta is at least 0.001. There evaluation filters and moves the statistics like training, each rank "
            "averages over the pairs it kept, and rewards carry beta0, not the batch's beta.",
        ),
    ),
    BetaMode(
        name="epsilon_dpo",
        where="._published:EpsilonDpo",
        formula="beta / (1 + epsilon step), step in {-1, 0, +1}",
        source="epsilon-DPO, arXiv:2502.13177",
        summary="Per pair, up or down by whether a step away from the reference widens the policy's gap.",
        kind="published",
        needs=frozenset({"epsilon_step"}),
        needs_reference=True,
        recommended={"pref_beta": 0.01},  # the authors' configs; it moves from there
        check=Check(
            "oddqueue/e-dpo@268c7ad:trainer.py",
            (
                "test_betas.py::test_epsilon_dpo_worked_by_hand",
                "test_betas.py::test_epsilon_steps_worked_by_hand",
                "test_betas.py::test_mixture_equals_softmax_of_the_mixed_logits",
            ),
            "There label smoothing has no effect (both terms have the same sign); here it is cDPO's.",
        ),
    ),
    BetaMode(
        name="mallows",
        where="._published:MallowsBeta",
        formula="beta0 (-phi ln H)",
        source="MallowsPO, arXiv:2405.14953",
        summary="Higher where the reference model gives the answers with little entropy. Plain DPO otherwise: beta 10, "
        "log-probabilities per token and no reference are the defaults of its authors' code.",
        kind="published",
        needs=frozenset({"reference_entropy"}),
        needs_reference=True,
        check=Check(
            "haoxian-chen/MallowsPO@c188a2e:mallowsPO_trainer.py (`mallows_dpo`) and mallowsPO_config.py",
            ("test_betas.py::test_mallows_worked_by_hand", "test_forward.py::test_response_entropy_by_hand"),
            "Its defaults are another loss: beta 10, log-probabilities per token, no reference in the margin. Here it "
            "is plain DPO with that factor on beta. Its IPO form, `mallows_ipo`, is not offered here. Rewards there "
            "leave the factor out.",
        ),
    ),
)
BETAS: Mapping[str, BetaMode] = MappingProxyType(ROWS)


def is_learned(mode: object) -> bool:
    """Whether `mode` names a beta that the loss trains; False for what is no mode."""
    return isinstance(mode, str) and mode in BETAS and BETAS[mode].kind == "learned"


def has_head(mode: object) -> bool:
    """Whether `mode` names a beta that a head on the prompt decides; False for what is no mode."""
    return isinstance(mode, str) and mode in BETAS and BETAS[mode].reads_prompt


def known_before_answers() -> tuple[str, ...]:
    """Return the modes whose beta is known before a prompt is answered."""
    return tuple(name for name, mode in BETAS.items() if mode.before_answers)


LEARNED = tuple(filter(is_learned, BETAS))
HEADS = tuple(filter(has_head, BETAS))
HEAD_SOURCES = ("reference", "policy")
HEAD_ACTIVATIONS = ("exp_tanh", "sigmoid", "softplus", "relu")


@dataclass
class BetaKeys:
    """The recipe keys of beta; `modes` are those that a key acts with."""

    beta_mode: str | None = key(
        None,
        f"How beta is decided: {either(row.named for row in BETAS.values())}. "
        "Left out: head for stage ledpo where the loss admits it, else fixed.",
        choices=Names(BETAS),
    )
    beta_min: float | None = key(
        None, "Lower bound of beta. Left out: pref_beta / 10.", low=0.0, open_low=True, modes=LEARNED
    )
    beta_max: float | None = key(
        None, "Upper bound of beta. Left out: pref_beta * 10.", low=0.0, open_low=True, modes=LEARNED
    )
    beta_penalty: float = key(
        0.05,
        "Weight of the penalty (ln beta - ln pref_beta)^2 that gives a learned beta its interior optimum.",
        low=0.0,
        modes=LEARNED,
    )
    beta_center: bool = key(
        False,
        "Hold the running geometric mean of beta at pref_beta, so that the head only redistributes.",
        modes=HEADS,
    )
    beta_lr_ratio: float = key(
        5.0,
        "Learning rate of beta's own parameters, as a multiple of the policy's.",
        low=0.0,
        open_low=True,
        modes=LEARNED,
    )
    beta_head_source: str | None = key(
        None,
        "Whose hidden state the head reads: reference or policy. Left out: reference, or policy where the loss "
        "needs no reference model.",
        choices=HEAD_SOURCES,
        modes=HEADS,
    )
    beta_head_widths: str = key("128", "Widths of the head's hidden layers, separated by commas.", modes=HEADS)
    beta_head_activation: str = key(
        "exp_tanh",
        "Map from the head's output to beta / pref_beta: exp_tanh, sigmoid, softplus or relu.",
        choices=HEAD_ACTIVATIONS,
        modes=("head",),
    )
    beta_head_path: str | None = key(
        None, "Folder of a finished run or checkpoint whose beta head training starts from.", modes=LEARNED
    )
    freeze_policy: bool = key(False, "Train beta alone, on the margins of a policy that stays as it is.", modes=LEARNED)
    beta_ppl_power: int = key(1, "Power of the prompt's perplexity in beta: 1 or -1.", choices=(1, -1), modes=("ppl",))
    beta_ppl_epsilon: float = key(
        0.1, "Share of beta that the network may move in ppl mode.", low=0.0, high=0.99, modes=("ppl",)
    )
    beta_dpo_alpha: float = key(0.6, "beta-DPO: gain of beta on the batch margin.", low=0.0, modes=("beta_dpo",))
    beta_dpo_filter: float = key(
        0.2, "beta-DPO: share of each batch that is filtered out.", low=0.0, high=0.9, modes=("beta_dpo",)
    )
    beta_dpo_momentum: float = key(
        0.9, "beta-DPO: momentum of the running mean and deviation.", low=0.0, high=0.999, modes=("beta_dpo",)
    )
    epsilon_dpo_epsilon: float = key(
        0.01, "epsilon-DPO: size of the perturbation.", low=0.0, open_low=True, high=0.5, modes=("epsilon_dpo",)
    )
    mallows_phi: float = key(
        0.29, "MallowsPO: scale phi* of the negative log dispersion.", low=0.0, open_low=True, modes=("mallows",)
    )
