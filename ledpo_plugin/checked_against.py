"""What every formula was compared with, which tests hold it there, and where others compute something else.

docs/checked_against.md is made from these tables (`make tables`). A loss, beta mode, key or estimator without a row,
and a row whose tests are not there, make tests/test_checked_against.py fail. A repository stands as owner/name@commit;
what is said of it was read there. No paper was read as a PDF: where a number of an equation is given, the code that is
named gives it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

# Repositories that several rows name, at the commit that was read.
_DPO = "eric-mitchell/direct-preference-optimization@f8b8c0f"
_HALOS = "ContextualAI/HALOs@4831988:train/trainers.py"
_LEDPO = "1587causalai/llama_factory"
_HOST = "LLaMA-Factory 0.9.5"

_LIKE_TRL = "test_losses.py::test_losses_equal_trl_dpo"
_BY_HAND = "test_losses.py::test_losses_equal_numbers_worked_by_hand"
_DERIVED = "test_losses.py::test_losses_equal_hand_derivations"
_LIKE_AUTHORS = "test_checked_against.py::test_nca_pair_and_discopop_are_the_authors"
_LIKE_HOST = "test_stock_parity.py::test_losses_equal_the_stock_stage_step_by_step"


@dataclass(frozen=True)
class Check:
    """A row of the table.

    Attributes:
        read: What ours was compared with, line by line: code at a commit or release, or a derivation.
        tests: Tests that would fail if ours changed, each as file::function in tests/.
        differs: Where implementations that were read compute something else; empty where none was seen to.
    """

    read: str
    tests: tuple[str, ...]
    differs: str = ""


LOSS_CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        "sigmoid": Check(
            f"{_DPO}:trainers.py, which names arXiv:2305.18290 eq. 7 and eq. 3 of the note on cDPO; {_HALOS}; TRL 0.24",
            (_LIKE_TRL, _BY_HAND, _LIKE_HOST, "test_losses.py::test_smoothing_gives_beta_its_optimum"),
            "TRL from 0.29 on ignores label smoothing here. The recommended beta is 0.1, as in that repository's "
            "examples; in all six settings that princeton-nlp/SimPO@1b3e8f3:README.md reports for DPO, 0.01 was best.",
        ),
        "robust": Check(
            "TRL 0.24 and 1.9, which name arXiv:2403.00409; no code of the authors was found",
            (_LIKE_TRL, _BY_HAND, "test_losses.py::test_a_learned_beta_would_send_robust_to_minus_infinity"),
        ),
        "hinge": Check(
            "TRL 0.24 and 1.9",
            (_LIKE_TRL, _BY_HAND, "test_stock_parity.py::test_losses_at_zero_margin_through_the_real_cli"),
            f"SLiC in {_HALOS} has no reference model, its margin is beta itself, and it adds an SFT term: "
            "max(0, beta - lw + ll) + lambda NLL.",
        ),
        "ipo": Check(
            f"TRL 0.24 and 1.9, which name arXiv:2310.12036 eq. 17; {_HALOS}; {_DPO}:trainers.py",
            (_LIKE_TRL, _BY_HAND, "test_stock_parity.py::test_losses_at_zero_margin_through_the_real_cli"),
            f"Log-ratios are averages over tokens here, in TRL (1.9: confirmed by IPO's authors) and in HALOs; {_DPO} "
            "and uclaml/SPPO@5e61c4e sum them.",
        ),
        "exo_pair": Check(
            "haozheji/exact-optimization@a8ab360:src/align_stage/loss.py (`exact_loss`, exo-pref); TRL 0.24 and 1.9, "
            "which name arXiv:2402.00856 eq. 16",
            (_LIKE_TRL, "test_checked_against.py::test_exo_pair_is_the_authors_at_their_smoothing"),
            "The authors' code has ln(1-e) = 0 and ln e = -10 fixed, a smoothing of 4.5e-5, where TRL's default and "
            "ours is 1e-3. At e = 0 TRL 0.24 takes 1e-3; TRL 1.9 refuses it, as here.",
        ),
        "nca_pair": Check(
            "thu-ml/Noise-Contrastive-Alignment@cbb9248:preference_trainer.py (`NCA`); TRL 0.24 and 1.9",
            (_LIKE_TRL, _LIKE_AUTHORS),
        ),
        "apo_zero": Check(
            "TRL 0.24 and 1.9, which name arXiv:2408.06266 eq. 7; the authors' ContextualAI/CLAIR_and_APO@c91193b "
            "runs TRL's",
            (_LIKE_TRL, _BY_HAND),
        ),
        "apo_down": Check(
            "TRL 0.24 and 1.9, which name arXiv:2408.06266 eq. 8; the authors' ContextualAI/CLAIR_and_APO@c91193b "
            "runs TRL's",
            (_LIKE_TRL, _BY_HAND),
        ),
        "sppo_hard": Check(
            "uclaml/SPPO@5e61c4e:sppo/trainer.py (`sppo` with win probabilities 1 and 0); TRL 0.24 and 1.9, which name "
            "arXiv:2405.00675 eq. 4.7",
            (_LIKE_TRL, _BY_HAND, "test_checked_against.py::test_sppo_hard_is_twice_the_authors"),
            "The authors' code takes half of the sum of the two squares, and win probabilities from a model that ranks "
            "pairs. So its gradients are half of ours.",
        ),
        "discopop": Check(
            "SakanaAI/DiscoPOP@3307865:src/alignment/gpo.py (`log_ratio_modulated_loss`, tau 0.05); TRL 0.24 and 1.9, "
            "which name arXiv:2406.08414 eq. 5",
            (_LIKE_TRL, _LIKE_AUTHORS),
            "An older form in the same file (`log_ratio_modulated_loss_old`) modulates by s(D), without beta and tau.",
        ),
        "bco_pair": Check(
            f"TRL 0.24 and 0.28; {_HOST} (`bco_loss`); haoxian-chen/MallowsPO@c188a2e",
            (_LIKE_TRL, _LIKE_HOST, "test_losses.py::test_bco_gives_no_gradient_to_its_running_mean"),
            "TRL from 0.29 on has no delta. With delta, the running mean takes in a batch before it is used on it, as "
            "here; in TRL 0.24 and LLaMA-Factory batches of evaluation move it, too, and here they do not.",
        ),
        "kto_pair": Check(
            "TRL 0.8.6:trl/trainer/dpo_trainer.py; the same in uclaml/SPPO@5e61c4e:sppo/trainer.py",
            (_DERIVED, _BY_HAND, "test_losses.py::test_kto_pair_seeds_reach_both_sides_of_the_clamp"),
            "They return two terms for each pair; ours is half of the sum, which has the same mean. TRL 0.24 has it no "
            f"more, and {_HOST}'s own `pref_loss: kto_pair` trains sigmoid.",
        ),
        "sigmoid_norm": Check(
            "allenai/open-instruct@e6c3044:open_instruct/dpo_utils.py (`dpo_norm`: DPO on averages over tokens; "
            "configs/train_configs/dpo/final_best_8b_dpo_config.yaml has beta 5, learning rate 5e-7); TRL 1.9",
            (_DERIVED, _BY_HAND),
            "open-instruct has label smoothing in it, too.",
        ),
        "r_dpo": Check(
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
        "dpop": Check(
            "as restated in PaddlePaddle/PaddleFormers@e19a314:paddleformers/nn/criterion/dpo_loss.py; the authors' "
            "abacusai/smaug@20a7fd2 has no code",
            (_DERIVED, _BY_HAND),
            "PaddlePaddle/PaddleNLP@5a03c3b:paddlenlp/trl/dpo_criterion.py adds lambda max(0, -a) outside of the "
            "sigmoid, without beta: another loss.",
        ),
        "orpo": Check(
            "xfactlab/orpo@208d2d6:src/orpo_trainer.py; TRL 0.24 (ORPOTrainer), which names arXiv:2403.07691 eq. 4 "
            f"and 7 for the odds ratio; {_HOST} (`odds_ratio_loss`)",
            (
                "test_losses.py::test_orpo_equals_llamafactory_and_trl",
                _LIKE_HOST,
                "test_losses.py::test_orpo_near_certainty",
            ),
            "The SFT term is over the answer here and in LLaMA-Factory; over prompt and answer in TRL 0.24, and in the "
            "authors' code unless `disable_prompt_loss`. Both of these average it over all tokens of the batch, ours "
            "over each answer.",
        ),
        "simpo": Check(
            f"princeton-nlp/SimPO@1b3e8f3:scripts/simpo_trainer.py; TRL 0.24 (CPOTrainer); {_HOST} (`simpo_loss`)",
            ("test_losses.py::test_simpo_equals_trl_and_llamafactory", _LIKE_HOST, _BY_HAND),
            "The authors' setting is gamma / beta, TRL's and LLaMA-Factory's is gamma, which is divided by beta; at "
            "one fixed beta they are the same.",
        ),
        "cpo": Check(
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
        "alphapo": Check(
            "TRL 0.24 (CPOTrainer), which names arXiv:2501.03884; no code of the authors was found",
            (
                "test_losses.py::test_alphapo_equals_trl",
                "test_losses.py::test_alphapo_tends_to_simpo",
                "test_losses.py::test_alphapo_is_flat_beyond_its_cap",
            ),
            "Here the exponent is capped at 30; in TRL it may overflow.",
        ),
        "kto": Check(
            f"{_HALOS}; TRL 0.24 (KTOTrainer), which names arXiv:2402.01306 eq. 7; {_HOST}, which calls TRL's",
            (
                "test_losses.py::test_kto_equals_trl",
                "test_losses.py::test_kto_gives_no_gradient_to_its_reference_point",
                _LIKE_HOST,
            ),
            "z0 is the mean over the rows of all ranks in HALOs, which leaves out rows whose log-ratio is exactly 0; "
            "here and in TRL it is the mean of the ranks' means. They are the same where ranks have equally many rows.",
        ),
    }
)

BETA_CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        "fixed": Check(
            "see `sigmoid`: a constant",
            ("test_betas.py::test_exactly_beta0_at_the_start", _LIKE_HOST),
        ),
        "global": Check(
            "LEDPO's own; its formula",
            ("test_betas.py::test_global_equals_its_formula", "test_betas.py::test_exactly_beta0_at_the_start"),
        ),
        "head": Check(
            f"LEDPO's own; its formula, written again in numpy. Ancestor: {_LEDPO}@286e8ca:"
            "src/llamafactory/train/dpo/beta_head.py",
            (
                "test_betas.py::test_head_equals_its_formula",
                "test_betas.py::test_exactly_beta0_at_the_start",
                "test_forward.py::test_the_hidden_state_is_that_of_the_last_prompt_token_and_knows_nothing_of_the_answer",
            ),
            "The ancestor is clamp(softplus(MLP(h)), 0.01, 100), without penalty, and starts near beta0, not at it.",
        ),
        "ppl": Check(
            f"{_LEDPO}@a310333:xdpo/ledpo-core-theory.md, section 3.1",
            ("test_betas.py::test_ppl_equals_its_formula", "test_betas.py::test_ppl_network_moves_beta_by_its_share"),
            "There it is the perplexity under the policy (section 5 prefers the reference), without a running mean to "
            "compare with; here `beta_head_source` decides, the reference by default. Text and formula differ in "
            "direction there: section 6 wants a high beta on what is familiar, the formula gives it to what is not. "
            "`beta_ppl_power: -1` is the text.",
        ),
        "beta_dpo": Check(
            "junkangwu/beta-DPO@1629047:trainers.py",
            ("test_betas.py::test_beta_dpo_worked_by_hand", "test_betas.py::test_beta_dpo_filter_worked_by_hand"),
            "There as here a batch is the rows of one forward pass over all ranks, whatever the gradient accumulation, "
            "and beta is at least 0.001. There evaluation filters and moves the statistics like training, each rank "
            "averages over the pairs it kept, and rewards carry beta0, not the batch's beta.",
        ),
        "epsilon_dpo": Check(
            "oddqueue/e-dpo@268c7ad:trainer.py",
            (
                "test_betas.py::test_epsilon_dpo_worked_by_hand",
                "test_betas.py::test_epsilon_steps_worked_by_hand",
                "test_betas.py::test_mixture_equals_softmax_of_the_mixed_logits",
            ),
            "There label smoothing has no effect (both terms have the same sign); here it is cDPO's.",
        ),
        "mallows": Check(
            "haoxian-chen/MallowsPO@c188a2e:mallowsPO_trainer.py (`mallows_dpo`) and mallowsPO_config.py",
            ("test_betas.py::test_mallows_worked_by_hand", "test_forward.py::test_response_entropy_by_hand"),
            "Its defaults are another loss: beta 10, log-probabilities per token, no reference in the margin. Here it "
            "is plain DPO with that factor on beta. Its IPO form, `mallows_ipo`, is not offered here. Rewards there "
            "leave the factor out.",
        ),
    }
)

# Keys of the host that change a loss.
KEY_CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        "ld_alpha": Check(
            f"{_HOST}:train/trainer_utils.py (`get_batch_logps`); TRL 0.24, 0.28, 0.29 and 1.9",
            (
                "test_forward.py::test_log_probabilities_equal_the_host_s",
                "test_checked_against.py::test_ld_alpha_leaves_a_margin_where_policy_and_reference_are_one",
                _LIKE_HOST,
            ),
            "On the policy alone here, in LLaMA-Factory and in TRL up to 0.28: log-ratios are then not 0 before the "
            "first step. TRL from 0.29 on shortens the reference, too. TRL 0.24 counts positions from the start of the "
            "sequence, prompt included.",
        ),
        "pref_ftx": Check(f"{_HOST}:train/dpo/trainer.py", (_LIKE_HOST,)),
        "pref_bco_weight": Check(
            f"{_HOST}:train/dpo/trainer.py (`bco_loss`)", (_LIKE_HOST,), "See `bco_pair` for evaluation."
        ),
    }
)

ROLLOUT_CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        "advantage_estimator: gae": Check(
            "TRL 0.24 (PPOTrainer), whose lines the test runs",
            (
                "test_rl_math.py::test_rewards_advantages_and_returns_are_those_of_trls_ppo",
                "test_rl_math.py::test_gae_is_the_sum_that_defines_it",
            ),
            "TRL pays the score one column after the last token where there is one; ours on the last token.",
        ),
        "advantage_estimator: rloo": Check(
            "TRL 0.24 (RLOOTrainer)",
            (
                "test_rl_math.py::test_group_advantages_are_trls",
                "test_rl_math.py::test_rloo_with_its_kl_in_the_reward_is_trls",
            ),
        ),
        "advantage_estimator: grpo": Check(
            "TRL 0.24 (GRPOTrainer)",
            ("test_rl_math.py::test_group_advantages_are_trls", "test_rl_math.py::test_losses_are_those_of_trls_grpo"),
        ),
        "kl_estimator: k1": Check(
            "TRL 0.24 (PPOTrainer)",
            (
                "test_rl_math.py::test_kl_estimators_by_hand",
                "test_rl_math.py::test_rewards_advantages_and_returns_are_those_of_trls_ppo",
            ),
        ),
        "kl_estimator: k2": Check(
            "derived: its gradient averages to that of the KL",
            (
                "test_rl_math.py::test_kl_estimators_by_hand",
                "test_rl_math.py::test_the_gradient_of_k2_averages_to_that_of_the_kl",
            ),
        ),
        "kl_estimator: k3": Check(
            "TRL 0.24 (PPOTrainer, GRPOTrainer)",
            (
                "test_rl_math.py::test_kl_estimators_by_hand",
                "test_rl_math.py::test_kl_estimators_average_to_the_kl",
                "test_rl_math.py::test_losses_are_those_of_trls_grpo",
            ),
            "Here its exponential goes on along the tangent above 20.",
        ),
        "kl_control: fixed": Check("a constant", ("test_rl_math.py::test_a_fixed_coefficient_stays",)),
        "kl_control: adaptive": Check(
            "TRL 0.9.6:trl/trainer/utils.py (`AdaptiveKLController`), which names arXiv:1909.08593",
            (
                "test_rl_math.py::test_the_adaptive_coefficient_by_hand",
                "test_rl_math.py::test_the_adaptive_coefficient_finds_its_target",
            ),
        ),
        "kl_control: beta": Check(
            "LEDPO's own; a task whose optimum is known",
            ("test_rl_optimum.py::test_beta_weighs_the_kl_prompt_by_prompt",),
        ),
    }
)
