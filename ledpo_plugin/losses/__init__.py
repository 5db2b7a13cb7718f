"""Preference losses: pure functions of log-probabilities and beta, one value per example.

`LOSSES` is the table of all of them. A new loss is a function in one of the modules here and a row in that
table; the contract tests in tests/losses/test_losses.py then run over it. What each was compared with stands in
`ledpo_plugin.checked_against`.
"""

from collections.abc import Mapping
from types import MappingProxyType

from ledpo_plugin.hparams import BETA_MODES, LEARNED_MODES
from ledpo_plugin.losses._common import nll
from ledpo_plugin.losses._pairwise import (
    apo_down,
    apo_zero,
    bco_pair,
    discopop,
    dpop,
    exo_pair,
    hinge,
    ipo,
    kto_pair,
    nca_pair,
    r_dpo,
    robust,
    sigmoid,
    sigmoid_norm,
    sppo_hard,
)
from ledpo_plugin.losses._reference_free import alphapo, cpo, orpo, simpo
from ledpo_plugin.losses._types import Loss, LossOutput, PairLogps, UnpairedLogps
from ledpo_plugin.losses._unpaired import kto

__all__ = ["LOSSES", "Loss", "LossOutput", "PairLogps", "UnpairedLogps", "nll"] + [
    "alphapo", "apo_down", "apo_zero", "bco_pair", "cpo", "discopop", "dpop", "exo_pair", "hinge", "ipo",
    "kto", "kto_pair", "nca_pair", "orpo", "r_dpo", "robust", "sigmoid", "sigmoid_norm", "simpo", "sppo_hard",
]  # fmt: skip

_FIXED = frozenset({"fixed"})
_LEARNABLE = _FIXED | set(LEARNED_MODES)
_ALL = frozenset(BETA_MODES)

_SIGMOID_ONLY = (
    f"{', '.join(mode for mode in BETA_MODES if mode not in _LEARNABLE)} are offered for the sigmoid loss only."
)


def _fixed_only(reason: str) -> str:
    return f"{reason} {_SIGMOID_ONLY}"


def _rows(*losses: Loss) -> Mapping[str, Loss]:
    return MappingProxyType({loss.name: loss for loss in losses})


# `recommended` holds values for FULL fine-tuning: the resolver multiplies `learning_rate` by 10 for LoRA.
# Where no other origin is named they are those of TRL's index of papers (docs/source/paper_index.md at
# v1.9.0).
# `simpo_gamma` is absolute: the resolver divides it by `pref_beta` to get the keyword `gamma_beta_ratio`.
LOSSES: Mapping[str, Loss] = _rows(
    Loss(
        name="sigmoid",
        function=sigmoid,
        formula="-(1-e) LS(beta D) - e LS(-beta D)",
        source="DPO, arXiv:2305.18290 eq. 7; cDPO (e > 0)",
        data="pairs",
        needs_reference=True,
        length_normalised=False,
        label_smoothing=True,
        beta_modes=_ALL,
        refusal="",
        # beta: as in the examples of its authors' repository; SimPO's README found 0.01 best in all its six settings.
        # Learning rate: the alignment handbook's and SimPO's DPO runs, 5e-7.
        recommended={"pref_beta": 0.1, "dpo_label_smoothing": 0.0, "learning_rate": 5e-7},
    ),
    Loss(
        name="robust",
        function=robust,
        formula="[-(1-e) LS(beta D) + e LS(-beta D)] / (1-2e)",
        source="rDPO, arXiv:2403.00409",
        data="pairs",
        needs_reference=True,
        length_normalised=False,
        label_smoothing=True,
        beta_modes=_FIXED,
        refusal=_fixed_only(
            "robust falls without bound as beta grows on a pair that is right: a learned beta diverges."
        ),
        # The paper's 1e-3 is for a GPT-2-sized model; DPO's learning rate instead.
        recommended={"pref_beta": 0.1, "dpo_label_smoothing": 0.1, "learning_rate": 5e-7},
    ),
    Loss(
        name="hinge",
        function=hinge,
        formula="max(0, 1 - beta D)",
        source="RSO, arXiv:2309.06657; SLiC, arXiv:2305.10425",
        data="pairs",
        needs_reference=True,
        length_normalised=False,
        label_smoothing=False,
        beta_modes=_FIXED,
        refusal=_fixed_only(
            "hinge is zero for every beta >= 1 / margin: a learned beta removes the loss, not the fault."
        ),
        # beta: RSO's gamma. SLiC's 1e-4 is for T5; DPO's learning rate instead.
        recommended={"pref_beta": 0.05, "learning_rate": 5e-7},
    ),
    Loss(
        name="ipo",
        function=ipo,
        formula="(D_avg - 1/(2 beta))^2",
        source="IPO, arXiv:2310.12036 eq. 17, averaged over tokens",
        data="pairs",
        needs_reference=True,
        length_normalised=True,
        label_smoothing=False,
        beta_modes=_FIXED,
        refusal=_fixed_only("ipo is zero at beta = 1 / (2 margin): a learned beta moves the target to the margin."),
        # beta: HALOs' config/loss/ipo.yaml. The published 1e-2 is for a toy bandit; DPO's learning rate
        # instead.
        recommended={"pref_beta": 0.1, "learning_rate": 5e-7},
    ),
    Loss(
        name="exo_pair",
        function=exo_pair,
        formula="s(beta D) [LS(beta D) - ln(1-e)] + s(-beta D) [LS(-beta D) - ln e]",
        source="EXO, arXiv:2402.00856 eq. 16",
        data="pairs",
        needs_reference=True,
        length_normalised=False,
        label_smoothing=True,
        beta_modes=_LEARNABLE,
        refusal=_SIGMOID_ONLY,
        recommended={"pref_beta": 0.1, "dpo_label_smoothing": 1e-3, "learning_rate": 1e-6},
    ),
    Loss(
        name="nca_pair",
        function=nca_pair,
        formula="-LS(beta a) - LS(-beta a)/2 - LS(-beta b)/2",
        source="NCA, arXiv:2402.05369",
        data="pairs",
        needs_reference=True,
        length_normalised=False,
        label_smoothing=False,
        beta_modes=_LEARNABLE,
        refusal=_SIGMOID_ONLY,
        recommended={"pref_beta": 0.01, "learning_rate": 5e-6},
    ),
    Loss(
        name="apo_zero",
        function=apo_zero,
        formula="1 - s(beta a) + s(beta b)",
        source="APO, arXiv:2408.06266 eq. 7",
        data="pairs",
        needs_reference=True,
        length_normalised=False,
        label_smoothing=False,
        beta_modes=_LEARNABLE,
        refusal=_SIGMOID_ONLY,
        recommended={"pref_beta": 0.1, "learning_rate": 2e-7},
    ),
    Loss(
        name="apo_down",
        function=apo_down,
        formula="s(beta a) + 1 - s(beta D)",
        source="APO, arXiv:2408.06266 eq. 8",
        data="pairs",
        needs_reference=True,
        length_normalised=False,
        label_smoothing=False,
        beta_modes=_LEARNABLE,
        refusal=_SIGMOID_ONLY,
        recommended={"pref_beta": 0.1, "learning_rate": 2e-7},
    ),
    Loss(
        name="sppo_hard",
        function=sppo_hard,
        formula="(a - 1/(2 beta))^2 + (b + 1/(2 beta))^2",
        source="SPPO, arXiv:2405.00675 eq. 4.7",
        data="pairs",
        needs_reference=True,
        length_normalised=False,
        label_smoothing=False,
        beta_modes=_FIXED,
        refusal=_fixed_only(
            "sppo_hard at beta = 1 / margin is (a + b)^2 / 2, which prefers neither answer, and a learned beta "
            "goes there."
        ),
        recommended={"pref_beta": 1e-3, "learning_rate": 5e-7},
    ),
    Loss(
        name="discopop",
        function=discopop,
        formula="(1-m) (-LS(z)) + m exp(-z), z = beta D, m = s(z/tau)",
        source="DiscoPOP, arXiv:2406.08414 eq. 5",
        data="pairs",
        needs_reference=True,
        length_normalised=False,
        label_smoothing=False,
        beta_modes=_LEARNABLE,
        refusal=_SIGMOID_ONLY,
        options={"tau": "discopop_tau"},
        recommended={"pref_beta": 0.05, "discopop_tau": 0.05, "learning_rate": 5e-7},
    ),
    Loss(
        name="bco_pair",
        function=bco_pair,
        formula="-LS(beta a - delta) - LS(-(beta b - delta))",
        source="BCO, arXiv:2404.04656, with TRL's delta up to 0.28",
        data="pairs",
        needs_reference=True,
        length_normalised=False,
        label_smoothing=False,
        beta_modes=_LEARNABLE,
        refusal=_SIGMOID_ONLY,
        recommended={"pref_beta": 0.01, "learning_rate": 5e-7},
        running_reward_mean=True,
    ),
    Loss(
        name="kto_pair",
        function=kto_pair,
        formula="[1 - s(beta (a - K_l)) + 1 - s(beta (K_w - b))] / 2",
        source="TRL 0.8.6, after KTO, arXiv:2402.01306",
        data="pairs",
        needs_reference=True,
        length_normalised=False,
        label_smoothing=False,
        beta_modes=_LEARNABLE,
        refusal=_SIGMOID_ONLY,
        # No published setting of its own: KTO's beta, and a learning rate from KTO's range (TRL's KTO guide:
        # at most 1e-6 at beta 0.1).
        recommended={"pref_beta": 0.1, "learning_rate": 5e-7},
    ),
    Loss(
        name="sigmoid_norm",
        function=sigmoid_norm,
        formula="-LS(beta (a/|w| - b/|l|))",
        source="Tulu 3, arXiv:2411.15124 section 4.3",
        data="pairs",
        needs_reference=True,
        length_normalised=True,
        label_smoothing=False,
        beta_modes=_LEARNABLE,
        refusal=_SIGMOID_ONLY,
        # open-instruct's configuration of its best 8B model: beta 5 on per-token averages, 5e-7.
        recommended={"pref_beta": 5.0, "learning_rate": 5e-7},
    ),
    Loss(
        name="r_dpo",
        function=r_dpo,
        formula="-LS(beta D + alpha (|w| - |l|))",
        source="R-DPO, arXiv:2403.19159",
        data="pairs",
        needs_reference=True,
        length_normalised=False,
        label_smoothing=False,
        beta_modes=_LEARNABLE,
        refusal=_SIGMOID_ONLY,
        options={"alpha": "rdpo_alpha"},
        # alpha: the low end of SimPO's grid for R-DPO (0.05 to 1); beta and learning rate as for DPO.
        recommended={"pref_beta": 0.1, "rdpo_alpha": 0.05, "learning_rate": 5e-7},
    ),
    Loss(
        name="dpop",
        function=dpop,
        formula="-LS(beta (D - lambda max(0, -a)))",
        source="DPO-Positive (Smaug), arXiv:2402.13228",
        data="pairs",
        needs_reference=True,
        length_normalised=False,
        label_smoothing=False,
        beta_modes=_LEARNABLE,
        refusal=_SIGMOID_ONLY,
        options={"penalty": "dpop_lambda"},
        # beta 0.3 and lambda 50 are the paper's, as its public ports report them; learning rate as for DPO.
        recommended={"pref_beta": 0.3, "dpop_lambda": 50.0, "learning_rate": 5e-7},
    ),
    Loss(
        name="orpo",
        function=orpo,
        sft_term=True,
        formula="-pw + beta (-LS(log odds(pw) - log odds(pl)))",
        source="ORPO, arXiv:2403.07691 eq. 6-7",
        data="pairs",
        needs_reference=False,
        length_normalised=True,
        label_smoothing=False,
        beta_modes=_FIXED,
        refusal=_fixed_only(
            "orpo's beta weights a term that is positive for every pair: learning it always drives it to its "
            "lower bound."
        ),
        # ORPO's own scripts: lambda 0.1 (Mistral), 5e-6.
        recommended={"pref_beta": 0.1, "learning_rate": 5e-6},
    ),
    Loss(
        name="simpo",
        function=simpo,
        formula="-LS(beta (pw - pl - gamma/beta0))",
        source="SimPO, arXiv:2405.14734 eq. 6",
        data="pairs",
        needs_reference=False,
        length_normalised=True,
        label_smoothing=True,
        beta_modes=_LEARNABLE,
        refusal=_SIGMOID_ONLY,
        options={"gamma_beta_ratio": "simpo_gamma"},
        # SimPO's README, Llama-3-Base: beta 2, gamma/beta 0.5, 6e-7.
        recommended={
            "pref_beta": 2.0,
            "simpo_gamma": 1.0,
            "dpo_label_smoothing": 0.0,
            "learning_rate": 6e-7,
        },
    ),
    Loss(
        name="cpo",
        function=cpo,
        sft_term=True,
        formula="-LS(beta (lw - ll)) + alpha (-pw)",
        source="CPO, arXiv:2401.08417 eq. 3",
        data="pairs",
        needs_reference=False,
        length_normalised=False,
        label_smoothing=True,
        beta_modes=_LEARNABLE,
        refusal=_SIGMOID_ONLY,
        options={"cpo_alpha": "cpo_alpha"},
        # The paper's 1e-4 is for translation; TRL's default for CPO instead.
        recommended={"pref_beta": 0.1, "cpo_alpha": 1.0, "dpo_label_smoothing": 0.0, "learning_rate": 1e-6},
    ),
    Loss(
        name="alphapo",
        function=alphapo,
        formula="-LS(beta (R(pw) - R(pl) - gamma/beta0)), R(p) = (1 - exp(-alpha p)) / alpha",
        source="AlphaPO, arXiv:2501.03884",
        data="pairs",
        needs_reference=False,
        length_normalised=True,
        label_smoothing=True,
        beta_modes=_LEARNABLE,
        refusal=_SIGMOID_ONLY,
        options={"alpha": "alphapo_alpha", "gamma_beta_ratio": "simpo_gamma"},
        # Mistral-Instruct, the paper's table 3 as TRL lists it.
        recommended={
            "pref_beta": 2.5,
            "simpo_gamma": 0.1,
            "alphapo_alpha": 0.25,
            "dpo_label_smoothing": 0.0,
            "learning_rate": 7e-7,
        },
    ),
    Loss(
        name="kto",
        function=kto,
        formula="w_D (1 - s(beta (r - z0))) or w_U (1 - s(beta (z0 - r)))",
        source="KTO, arXiv:2402.01306 eq. 7",
        data="unpaired",
        needs_reference=True,
        length_normalised=False,
        label_smoothing=False,
        beta_modes=_LEARNABLE,
        refusal=_SIGMOID_ONLY,
        options={"desirable_weight": "kto_chosen_weight", "undesirable_weight": "kto_rejected_weight"},
        # TRL's KTO guide: at most 1e-6 at beta 0.1, from 5e-7.
        recommended={
            "pref_beta": 0.1,
            "kto_chosen_weight": 1.0,
            "kto_rejected_weight": 1.0,
            "learning_rate": 5e-7,
        },
    ),
)
