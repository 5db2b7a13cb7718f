"""What every formula was compared with, which tests hold it there, and where others compute something else.

docs/checked_against.md is made from these tables (`make tables`). What a loss or beta mode was compared with stands in
its row of `ledpo_plugin.facts`. A key or estimator without a row, and a row whose tests are not there, make
tests/test_checked_against.py fail. A repository stands as owner/name@commit; what is said of it was read there. No
paper was read as a PDF: where a number of an equation is given, the code that is named gives it.
"""

from collections.abc import Mapping
from types import MappingProxyType

from .facts import BETAS, LOSSES, Check
from .facts._row import HOST_CODE, LIKE_HOST

LOSS_CHECKS: Mapping[str, Check] = MappingProxyType({name: loss.check for name, loss in LOSSES.items()})
BETA_CHECKS: Mapping[str, Check] = MappingProxyType({name: mode.check for name, mode in BETAS.items()})

# Keys of the host that change a loss.
KEY_CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        "ld_alpha": Check(
            f"{HOST_CODE}:train/trainer_utils.py (`get_batch_logps`); TRL 0.24, 0.28, 0.29 and 1.9",
            (
                "test_forward.py::test_log_probabilities_equal_the_host_s",
                "test_checked_against.py::test_ld_alpha_leaves_a_margin_where_policy_and_reference_are_one",
                LIKE_HOST,
            ),
            "On the policy alone here, in LLaMA-Factory and in TRL up to 0.28: log-ratios are then not 0 before the "
            "first step. TRL from 0.29 on shortens the reference, too. TRL 0.24 counts positions from the start of the "
            "sequence, prompt included.",
        ),
        "pref_ftx": Check(f"{HOST_CODE}:train/dpo/trainer.py", (LIKE_HOST,)),
        "pref_bco_weight": Check(
            f"{HOST_CODE}:train/dpo/trainer.py (`bco_loss`)", (LIKE_HOST,), "See `bco_pair` for evaluation."
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
