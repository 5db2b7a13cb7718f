"""Preference losses: one row a loss, which says everything that others rely on, and the recipe keys that they read.

Recipes, documents and the web UI read these rows; the functions themselves are found from `where` when one is called
(`ledpo_plugin.losses`). A new loss is a function there, a row here, and the keys that it alone reads at the foot.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Literal

from ledpo_plugin.common.lookup import by_name

from ._row import DPO_CODE, HALOS, HOST_CODE, KINDS, LIKE_HOST, Check, Kind, key
from .betas import BETAS

_LIKE_TRL = "test_losses.py::test_losses_equal_trl_dpo"
_BY_HAND = "test_losses.py::test_losses_equal_numbers_worked_by_hand"
_DERIVED = "test_losses.py::test_losses_equal_hand_derivations"
_LIKE_AUTHORS = "test_checked_against.py::test_nca_pair_and_discopop_are_the_authors"


@dataclass(frozen=True)
class Loss:
    """One row of the table of losses."""

    name: str
    where: str  # its function, "module:name"; a module that starts with a dot is one of ledpo_plugin.losses
    formula: str  # one line, for the documents' table
    source: str  # paper and equation, or the code it follows
    data: Literal["pairs", "unpaired"]
    needs_reference: bool
    length_normalised: bool
    label_smoothing: bool  # takes the keyword `label_smoothing`
    refuses: Mapping[Kind, str]  # kinds of beta that it does not admit, each with why
    check: Check
    options: Mapping[str, str] = field(default_factory=dict)  # keyword of the function -> recipe key
    per_beta: frozenset[str] = frozenset()  # those keywords that take their key's value divided by `pref_beta`
    recommended: Mapping[str, float] = field(default_factory=dict)  # recipe key -> value
    smoothing_needed: str = ""  # what it does with label smoothing, so that 0 will not do
    idle: Mapping[str, str] = field(default_factory=dict)  # recipe keys that have no effect with it, each with why
    sft_term: bool = False  # holds the chosen answer's NLL as a term of its own
    running_reward_mean: bool = False  # takes the keyword `delta`, a running mean of rewards (BCO)
    batchwise: bool = False  # a pair's loss depends on the other pairs of the batch

    @property
    def admits(self) -> frozenset[Kind]:
        """The kinds of beta that it can be trained with."""
        return frozenset(KINDS) - self.refuses.keys()

    @property
    def beta_modes(self) -> frozenset[str]:
        """The values of `beta_mode` that it can be trained with."""
        return frozenset(name for name, mode in BETAS.items() if mode.kind in self.admits)

    def options_of(self, args: Any) -> dict[str, float]:
        """Return the keywords of its function, from arguments that have the recipe keys as attributes."""
        found = {
            keyword: getattr(args, option) / args.pref_beta if keyword in self.per_beta else getattr(args, option)
            for keyword, option in self.options.items()
        }
        return found | ({"label_smoothing": args.dpo_label_smoothing} if self.label_smoothing else {})


# A constant and a schedule take no gradient from the loss, so that none can lower itself by moving beta: no loss
# refuses them. What some refuse is a beta that their own gradient moves.
_PUBLISHED: Mapping[Kind, str] = {
    "published": f"{', '.join(name for name, mode in BETAS.items() if mode.kind == 'published')} are offered for the "
    "sigmoid loss only, which is the one they were compared with their authors' code by."
}


def _not_learned(why: str) -> Mapping[Kind, str]:
    return {"learned": why, **_PUBLISHED}


# `recommended` holds values for FULL fine-tuning: the resolver multiplies `learning_rate` by 10 for LoRA.
# Where no other origin is named they are those of TRL's index of papers (docs/source/paper_index.md at
# v1.9.0).
ROWS: dict[str, Loss] = by_name(
    Loss(
        name="sigmoid",
        where="._pairwise:sigmoid",
        formula="-(1-e) LS(beta D) - e LS(-beta D)",
        source="DPO, arXiv:2305.18290 eq. 7; cDPO (e > 0)",
        data="pairs",
        needs_reference=True,
        length_normalised=False,
        label_smoothing=True,
        refuses={},
        # beta: as in the examples of its authors' repository; SimPO's README found 0.01 best in all its six settings.
        # Learning rate: the alignment handbook's and SimPO's DPO runs, 5e-7.
        recommended={"pref_beta": 0.1, "dpo_label_smoothing": 0.0, "learning_rate": 5e-7},
        check=Check(
            f"{DPO_CODE}:trainers.py, which names arXiv:2305.18290 eq. 7 and eq. 3 of the note on cDPO; {HALOS}; "
            "TRL 0.24",
            (_LIKE_TRL, _BY_HAND, LIKE_HOST, "test_losses.py::test_smoothing_gives_beta_its_optimum"),
            "TRL from 0.29 on ignores label smoothing here. The recommended beta is 0.1, as in that repository's "
            "examples; in all six settings that princeton-nlp/SimPO@1b3e8f3:README.md reports for DPO, 0.01 was best.",
        ),
    ),
    Loss(
        name="robust",
        where="._pairwise:robust",
        formula="[-(1-e) LS(beta D) + e LS(-beta D)] / (1-2e)",
        source="rDPO, arXiv:2403.00409",
        data="pairs",
        needs_reference=True,
        length_normalised=False,
        label_smoothing=True,
        refuses=_not_learned(
            "robust falls without bound as beta grows on a pair that is right: a learned beta diverges."
        ),
        # The paper's 1e-3 is for a GPT-2-sized model; DPO's learning rate instead.
        recommended={"pref_beta": 0.1, "dpo_label_smoothing": 0.1, "learning_rate": 5e-7},
        check=Check(
            "TRL 0.24 and 1.9, which name arXiv:2403.00409; no code of the authors was found",
            (_LIKE_TRL, _BY_HAND, "test_losses.py::test_a_learned_beta_would_send_robust_to_minus_infinity"),
        ),
    ),
    Loss(
        name="hinge",
        where="._pairwise:hinge",
        formula="max(0, 1 - beta D)",
        source="RSO, arXiv:2309.06657; SLiC, arXiv:2305.10425",
        data="pairs",
        needs_reference=True,
        length_normalised=False,
        label_smoothing=False,
        refuses=_not_learned(
            "hinge is zero for every beta >= 1 / margin: a learned beta removes the loss, not the fault."
        ),
        # beta: RSO's gamma. SLiC's 1e-4 is for T5; DPO's learning rate instead.
        recommended={"pref_beta": 0.05, "learning_rate": 5e-7},
        check=Check(
            "TRL 0.24 and 1.9",
            (_LIKE_TRL, _BY_HAND, "test_stock_parity.py::test_losses_at_zero_margin_through_the_real_cli"),
            f"SLiC in {HALOS} has no reference model, its margin is beta itself, and it adds an SFT term: "
            "max(0, beta - lw + ll) + lambda NLL.",
        ),
    ),
    Loss(
        name="ipo",
        where="._pairwise:ipo",
        formula="(D_avg - 1/(2 beta))^2",
        source="IPO, arXiv:2310.12036 eq. 17, averaged over tokens",
        data="pairs",
        needs_reference=True,
        length_normalised=True,
        label_smoothing=False,
        refuses=_not_learned("ipo is zero at beta = 1 / (2 margin): a learned beta moves the target to the margin."),
        # beta: HALOs' config/loss/ipo.yaml. The published 1e-2 is for a toy bandit; DPO's learning rate
        # instead.
        recommended={"pref_beta": 0.1, "learning_rate": 5e-7},
        check=Check(
            f"TRL 0.24 and 1.9, which name arXiv:2310.12036 eq. 17; {HALOS}; {DPO_CODE}:trainers.py",
            (_LIKE_TRL, _BY_HAND, "test_stock_parity.py::test_losses_at_zero_margin_through_the_real_cli"),
            f"Log-ratios are averages over tokens here, in TRL (1.9: confirmed by IPO's authors) and in HALOs; "
            f"{DPO_CODE} and uclaml/SPPO@5e61c4e sum them.",
        ),
    ),
    Loss(
        name="exo_pair",
        where="._pairwise:exo_pair",
        formula="s(beta D) [LS(beta D) - ln(1-e)] + s(-beta D) [LS(-beta D) - ln e]",
        source="EXO, arXiv:2402.00856 eq. 16",
        data="pairs",
        needs_reference=True,
        length_normalised=False,
        label_smoothing=True,
        smoothing_needed="takes the logarithm of the label smoothing",
        refuses=_PUBLISHED,
        recommended={"pref_beta": 0.1, "dpo_label_smoothing": 1e-3, "learning_rate": 1e-6},
        check=Check(
            "haozheji/exact-optimization@a8ab360:src/align_stage/loss.py (`exact_loss`, exo-pref); TRL 0.24 and 1.9, "
            "which name arXiv:2402.00856 eq. 16",
            (_LIKE_TRL, "test_checked_against.py::test_exo_pair_is_the_authors_at_their_smoothing"),
            "The authors' code has ln(1-e) = 0 and ln e = -10 fixed, a smoothing of 4.5e-5, where TRL's default and "
            "ours is 1e-3. At e = 0 TRL 0.24 takes 1e-3; TRL 1.9 refuses it, as here.",
        ),
    ),
    Loss(
        name="nca_pair",
        where="._pairwise:nca_pair",
        formula="-LS(beta a) - LS(-beta a)/2 - LS(-beta b)/2",
        source="NCA, arXiv:2402.05369",
        data="pairs",
        needs_reference=True,
        length_normalised=False,
        label_smoothing=False,
        refuses=_PUBLISHED,
        recommended={"pref_beta": 0.01, "learning_rate": 5e-6},
        check=Check(
            "thu-ml/Noise-Contrastive-Alignment@cbb9248:preference_trainer.py (`NCA`); TRL 0.24 and 1.9",
            (_LIKE_TRL, _LIKE_AUTHORS),
        ),
    ),
    Loss(
        name="apo_zero",
        where="._pairwise:apo_zero",
        formula="1 - s(beta a) + s(beta b)",
        source="APO, arXiv:2408.06266 eq. 7",
        data="pairs",
        needs_reference=True,
        length_normalised=False,
        label_smoothing=False,
        refuses=_PUBLISHED,
        recommended={"pref_beta": 0.1, "learning_rate": 2e-7},
        check=Check(
            "TRL 0.24 and 1.9, which name arXiv:2408.06266 eq. 7; the authors' ContextualAI/CLAIR_and_APO@c91193b "
            "runs TRL's",
            (_LIKE_TRL, _BY_HAND),
        ),
    ),
    Loss(
        name="apo_down",
        where="._pairwise:apo_down",
        formula="s(beta a) + 1 - s(beta D)",
        source="APO, arXiv:2408.06266 eq. 8",
        data="pairs",
        needs_reference=True,
        length_normalised=False,
        label_smoothing=False,
        refuses=_PUBLISHED,
        recommended={"pref_beta": 0.1, "learning_rate": 2e-7},
        check=Check(
            "TRL 0.24 and 1.9, which name arXiv:2408.06266 eq. 8; the authors' ContextualAI/CLAIR_and_APO@c91193b "
            "runs TRL's",
            (_LIKE_TRL, _BY_HAND),
        ),
    ),
    Loss(
        name="sppo_hard",
        where="._pairwise:sppo_hard",
        formula="(a - 1/(2 beta))^2 + (b + 1/(2 beta))^2",
        source="SPPO, arXiv:2405.00675 eq. 4.7",
        data="pairs",
        needs_reference=True,
        length_normalised=False,
        label_smoothing=False,
        refuses=_not_learned(
            "sppo_hard at beta = 1 / margin is (a + b)^2 / 2, which prefers neither answer, and a learned beta "
            "goes there."
        ),
        recommended={"pref_beta": 1e-3, "learning_rate": 5e-7},
        check=Check(
            "uclaml/SPPO@5e61c4e:sppo/trainer.py (`sppo` with win probabilities 1 and 0); TRL 0.24 and 1.9, which name "
            "arXiv:2405.00675 eq. 4.7",
            (_LIKE_TRL, _BY_HAND, "test_checked_against.py::test_sppo_hard_is_twice_the_authors"),
            "The authors' code takes half of the sum of the two squares, and win probabilities from a model that ranks "
            "pairs. So its gradients are half of ours.",
        ),
    ),
    Loss(
        name="discopop",
        where="._pairwise:discopop",
        formula="(1-m) (-LS(z)) + m exp(-z), z = beta D, m = s(z/tau)",
        source="DiscoPOP, arXiv:2406.08414 eq. 5",
        data="pairs",
        needs_reference=True,
        length_normalised=False,
        label_smoothing=False,
        refuses=_PUBLISHED,
        options={"tau": "discopop_tau"},
        recommended={"pref_beta": 0.05, "discopop_tau": 0.05, "learning_rate": 5e-7},
        check=Check(
            "SakanaAI/DiscoPOP@3307865:src/alignment/gpo.py (`log_ratio_modulated_loss`, tau 0.05); TRL 0.24 and 1.9, "
            "which name arXiv:2406.08414 eq. 5",
            (_LIKE_TRL, _LIKE_AUTHORS),
            "An older form in the same file (`log_ratio_modulated_loss_old`) modulates by s(D), without beta and tau.",
        ),
    ),
    Loss(
        name="bco_pair",
        where="._pairwise:bco_pair",
        formula="-LS(beta a - delta) - LS(-(beta b - delta))",
        source="BCO, arXiv:2404.04656, with TRL's delta up to 0.28",
        data="pairs",
        needs_reference=True,
        length_normalised=False,
        label_smoothing=False,
        idle={"pref_bco_weight": "the loss bco_pair is the BCO loss already"},
        refuses=_PUBLISHED,
        recommended={"pref_beta": 0.01, "learning_rate": 5e-7},
        running_reward_mean=True,
        check=Check(
            f"TRL 0.24 and 0.28; {HOST_CODE} (`bco_loss`); haoxian-chen/MallowsPO@c188a2e",
            (_LIKE_TRL, LIKE_HOST, "test_losses.py::test_bco_gives_no_gradient_to_its_running_mean"),
            "TRL from 0.29 on has no delta. With delta, the running mean takes in a batch before it is used on it, as "
            "here; in TRL 0.24 and LLaMA-Factory batches of evaluation move it, too, and here they do not.",
        ),
    ),
    Loss(
        name="kto_pair",
        where="._pairwise:kto_pair",
        formula="[1 - s(beta (a - K_l)) + 1 - s(beta (K_w - b))] / 2",
        source="TRL 0.8.6, after KTO, arXiv:2402.01306",
        data="pairs",
        needs_reference=True,
        length_normalised=False,
        label_smoothing=False,
        batchwise=True,
        refuses=_PUBLISHED,
        # No published setting of its own: KTO's beta, and a learning rate from KTO's range (TRL's KTO guide:
        # at most 1e-6 at beta 0.1).
        recommended={"pref_beta": 0.1, "learning_rate": 5e-7},
        check=Check(
            "TRL 0.8.6:trl/trainer/dpo_trainer.py; the same in uclaml/SPPO@5e61c4e:sppo/trainer.py",
            (_DERIVED, _BY_HAND, "test_losses.py::test_kto_pair_seeds_reach_both_sides_of_the_clamp"),
            "They return two terms for each pair; ours is half of the sum, which has the same mean. TRL 0.24 has it no "
            f"more, and {HOST_CODE}'s own `pref_loss: kto_pair` trains sigmoid.",
        ),
    ),
    Loss(
        name="sigmoid_norm",
        where="._pairwise:sigmoid_norm",
        formula="-LS(beta (a/|w| - b/|l|))",
        source="Tulu 3, arXiv:2411.15124 section 4.3",
        data="pairs",
        needs_reference=True,
        length_normalised=True,
        label_smoothing=False,
        refuses=_PUBLISHED,
        # open-instruct's configuration of its best 8B model: beta 5 on per-token averages, 5e-7.
        recommended={"pref_beta": 5.0, "learning_rate": 5e-7},
        check=Check(
            "allenai/open-instruct@e6c3044:open_instruct/dpo_utils.py (`dpo_norm`: DPO on averages over tokens; "
            "configs/train_configs/dpo/final_best_8b_dpo_config.yaml has beta 5, learning rate 5e-7); TRL 1.9",
            (_DERIVED, _BY_HAND),
            "open-instruct has label smoothing in it, too.",
        ),
    ),
    Loss(
        name="r_dpo",
        where="._pairwise:r_dpo",
        formula="-LS(beta D + alpha (|w| - |l|))",
        source="R-DPO, arXiv:2403.19159",
        data="pairs",
        needs_reference=True,
        length_normalised=False,
        label_smoothing=False,
        refuses=_PUBLISHED,
        options={"alpha": "rdpo_alpha"},
        # alpha: the low end of SimPO's grid for R-DPO (0.05 to 1); beta and learning rate as for DPO.
        recommended={"pref_beta": 0.1, "rdpo_alpha": 0.05, "learning_rate": 5e-7},
        check=Check(
            "derived: the best policy for r - alpha |y| under a KL to the reference; "
            "ZHZisZZ/modpo@2e2df20:src/trainer/modpo_trainer.py with the margin reward -|y| of "
            "scripts/modpo/summarize_w_length_penalty/modpo.py",
            (
                "test_r_dpo.py::test_the_loss_has_no_gradient_at_the_best_policy",
                "test_r_dpo.py::test_length_that_explains_the_preference_teaches_less",
                "test_checked_against.py::test_r_dpo_is_modpo_with_a_reward_of_minus_the_length",
                _DERIVED,
                _BY_HAND,
            ),
            "Ports exist with a minus before alpha (as this one had up to November 2026), which rewards length. In "
            "MODPO the whole bracket is divided by the weight of the preferences.",
        ),
    ),
    Loss(
        name="dpop",
        where="._pairwise:dpop",
        formula="-LS(beta (D - lambda max(0, -a)))",
        source="DPO-Positive (Smaug), arXiv:2402.13228",
        data="pairs",
        needs_reference=True,
        length_normalised=False,
        label_smoothing=False,
        refuses=_PUBLISHED,
        options={"penalty": "dpop_lambda"},
        # beta 0.3 and lambda 50 are the paper's, as its public ports report them; learning rate as for DPO.
        recommended={"pref_beta": 0.3, "dpop_lambda": 50.0, "learning_rate": 5e-7},
        check=Check(
            "as restated in PaddlePaddle/PaddleFormers@e19a314:paddleformers/nn/criterion/dpo_loss.py; the authors' "
            "abacusai/smaug@20a7fd2 has no code",
            (_DERIVED, _BY_HAND),
            "PaddlePaddle/PaddleNLP@5a03c3b:paddlenlp/trl/dpo_criterion.py adds lambda max(0, -a) outside of the "
            "sigmoid, without beta: another loss.",
        ),
    ),
    Loss(
        name="orpo",
        where="._reference_free:orpo",
        sft_term=True,
        formula="-pw + beta (-LS(log odds(pw) - log odds(pl)))",
        source="ORPO, arXiv:2403.07691 eq. 6-7",
        data="pairs",
        needs_reference=False,
        length_normalised=True,
        label_smoothing=False,
        refuses=_not_learned(
            "orpo's beta weights a term that is positive for every pair: learning it always drives it to its "
            "lower bound."
        ),
        # ORPO's own scripts: lambda 0.1 (Mistral), 5e-6.
        recommended={"pref_beta": 0.1, "learning_rate": 5e-6},
        check=Check(
            "xfactlab/orpo@208d2d6:src/orpo_trainer.py; TRL 0.24 (ORPOTrainer), which names arXiv:2403.07691 eq. 4 "
            f"and 7 for the odds ratio; {HOST_CODE} (`odds_ratio_loss`)",
            (
                "test_losses.py::test_orpo_equals_llamafactory_and_trl",
                LIKE_HOST,
                "test_losses.py::test_orpo_near_certainty",
            ),
            "The SFT term is over the answer here and in LLaMA-Factory; over prompt and answer in TRL 0.24, and in the "
            "authors' code unless `disable_prompt_loss`. Both of these average it over all tokens of the batch, ours "
            "over each answer.",
        ),
    ),
    Loss(
        name="simpo",
        where="._reference_free:simpo",
        formula="-LS(beta (pw - pl - gamma/beta0))",
        source="SimPO, arXiv:2405.14734 eq. 6",
        data="pairs",
        needs_reference=False,
        length_normalised=True,
        label_smoothing=True,
        refuses=_PUBLISHED,
        options={"gamma_beta_ratio": "simpo_gamma"},
        per_beta=frozenset({"gamma_beta_ratio"}),
        # SimPO's README, Llama-3-Base: beta 2, gamma/beta 0.5, 6e-7.
        recommended={
            "pref_beta": 2.0,
            "simpo_gamma": 1.0,
            "dpo_label_smoothing": 0.0,
            "learning_rate": 6e-7,
        },
        check=Check(
            f"princeton-nlp/SimPO@1b3e8f3:scripts/simpo_trainer.py; TRL 0.24 (CPOTrainer); {HOST_CODE} (`simpo_loss`)",
            ("test_losses.py::test_simpo_equals_trl_and_llamafactory", LIKE_HOST, _BY_HAND),
            "The authors' setting is gamma / beta, TRL's and LLaMA-Factory's is gamma, which is divided by beta; at "
            "one fixed beta they are the same.",
        ),
    ),
    Loss(
        name="cpo",
        where="._reference_free:cpo",
        sft_term=True,
        formula="-LS(beta (lw - ll)) + alpha (-pw)",
        source="CPO, arXiv:2401.08417 eq. 3",
        data="pairs",
        needs_reference=False,
        length_normalised=False,
        label_smoothing=True,
        refuses=_PUBLISHED,
        options={"cpo_alpha": "cpo_alpha"},
        # The paper's 1e-4 is for translation; TRL's default for CPO instead.
        recommended={"pref_beta": 0.1, "cpo_alpha": 1.0, "dpo_label_smoothing": 0.0, "learning_rate": 1e-6},
        check=Check(
            "fe1ixxu/ALMA@28997eb:utils/cpo_trainer.py; TRL 0.24 (CPOTrainer), which names arXiv:2401.08417 eq. 3",
            (
                "test_losses.py::test_cpo_equals_trl_plus_nll_per_answer",
                "test_checked_against.py::test_cpo_is_alma_s_where_every_answer_is_of_one_length",
                _BY_HAND,
            ),
            "Both average the NLL over all answer tokens of the batch, prompts left out; ours over each answer, so "
            "that it is one value per pair. ALMA@10360c3 has become another loss: it multiplies ll by a factor of at "
            "most 1 that depends on how far the averages per token are apart.",
        ),
    ),
    Loss(
        name="alphapo",
        where="._reference_free:alphapo",
        formula="-LS(beta (R(pw) - R(pl) - gamma/beta0)), R(p) = (1 - exp(-alpha p)) / alpha",
        source="AlphaPO, arXiv:2501.03884",
        data="pairs",
        needs_reference=False,
        length_normalised=True,
        label_smoothing=True,
        refuses=_PUBLISHED,
        options={"alpha": "alphapo_alpha", "gamma_beta_ratio": "simpo_gamma"},
        per_beta=frozenset({"gamma_beta_ratio"}),
        # Mistral-Instruct, the paper's table 3 as TRL lists it.
        recommended={
            "pref_beta": 2.5,
            "simpo_gamma": 0.1,
            "alphapo_alpha": 0.25,
            "dpo_label_smoothing": 0.0,
            "learning_rate": 7e-7,
        },
        check=Check(
            "TRL 0.24 (CPOTrainer), which names arXiv:2501.03884; no code of the authors was found",
            (
                "test_losses.py::test_alphapo_equals_trl",
                "test_losses.py::test_alphapo_tends_to_simpo",
                "test_losses.py::test_alphapo_is_flat_beyond_its_cap",
            ),
            "Here the exponent is capped at 30; in TRL it may overflow.",
        ),
    ),
    Loss(
        name="kto",
        where="._unpaired:kto",
        formula="w_D (1 - s(beta (r - z0))) or w_U (1 - s(beta (z0 - r)))",
        source="KTO, arXiv:2402.01306 eq. 7",
        data="unpaired",
        needs_reference=True,
        length_normalised=False,
        label_smoothing=False,
        refuses=_PUBLISHED,
        options={"desirable_weight": "kto_chosen_weight", "undesirable_weight": "kto_rejected_weight"},
        # TRL's KTO guide: at most 1e-6 at beta 0.1, from 5e-7.
        recommended={
            "pref_beta": 0.1,
            "kto_chosen_weight": 1.0,
            "kto_rejected_weight": 1.0,
            "learning_rate": 5e-7,
        },
        check=Check(
            f"{HALOS}; TRL 0.24 (KTOTrainer), which names arXiv:2402.01306 eq. 7; {HOST_CODE}, which calls TRL's",
            (
                "test_losses.py::test_kto_equals_trl",
                "test_losses.py::test_kto_gives_no_gradient_to_its_reference_point",
                LIKE_HOST,
            ),
            "z0 is the mean over the rows of all ranks in HALOs, which leaves out rows whose log-ratio is exactly 0; "
            "here and in TRL it is the mean of the ranks' means. They are the same where ranks have equally many rows.",
        ),
    ),
)
LOSSES: Mapping[str, Loss] = MappingProxyType(ROWS)


@dataclass
class LossKeys:
    """The recipe keys that only some losses read: those that name them in `options`."""

    discopop_tau: float = key(0.05, "DiscoPOP: temperature of the modulation.", low=0.0, open_low=True)
    cpo_alpha: float = key(1.0, "CPO: weight of the chosen answer's NLL.", low=0.0)
    alphapo_alpha: float = key(0.25, "AlphaPO: shape of the reward; 0 is SimPO.", low=-5.0, high=5.0)
    rdpo_alpha: float = key(0.05, "R-DPO: penalty per token of extra length.", low=0.0)
    dpop_lambda: float = key(50.0, "DPOP: weight of the fall in the chosen answer's likelihood.", low=0.0)


def readers() -> dict[str, tuple[str, ...]]:
    """Return the recipe keys, the host's too, that only some losses read, each with the names of those losses."""
    found: dict[str, list[str]] = {item.name: [] for item in fields(LossKeys)}
    for name, loss in LOSSES.items():
        for option in loss.options.values():
            found.setdefault(option, []).append(name)
    return {option: tuple(names) for option, names in found.items()}
