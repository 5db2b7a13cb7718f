"""Every recipe key that the plugin adds to LLaMA-Factory's own, in one dataclass.

Each field's metadata says what the key means (`help`), what it may be (`choices`, or `low`/`high`, inclusive unless
`open_low`), and where it acts (`modes`: beta modes; `data`: kind of data; `stages`: stages). Keys of beta and of single
losses stand beside the rows that read them, in `ledpo_plugin.facts`; which losses read a key follows from those rows.
Validation and the documentation read this one description. Booleans default to False because LLaMA-Factory's web UI
drops False from the commands it writes.
"""

from dataclasses import Field, dataclass, fields

from .facts import BetaKeys, LossKeys, key

PPO, ALTERNATE = "ledpo_ppo", "ledpo_alternate"
ROLLOUT_STAGES = (PPO, ALTERNATE)  # train on answers that the policy has just given
ESTIMATORS = ("gae", "rloo", "grpo")
KL_CONTROLS = ("fixed", "adaptive", "beta")
KL_ESTIMATORS = ("k1", "k2", "k3")
ROLLOUT_BACKENDS = ("hf", "vllm")
BASE, FROZEN = "base", "frozen"  # what the reference has of the adapter that training goes on with


@dataclass
class RunKeys:
    """The recipe keys of a run as a whole: speed, the reference, instructions mixed in, budgets."""

    disable_shared_prompt: bool = key(
        False,
        "Give each answer a row of its own, its prompt computed twice, as LLaMA-Factory's own stages do.",
        data="pairs",
    )
    disable_response_logits: bool = key(
        False,
        "Compute the logits of every position, as LLaMA-Factory's own stages do (rows of their own, too).",
        data="pairs",
    )
    disable_reference_cache: bool = key(
        False, "Run the reference model anew in every epoch and every run, and keep nothing on disk.", data="pairs"
    )
    fill_reference_cache: bool = key(
        False,
        "Run the reference over all pairs in fixed batches before the first step, so that a run's numbers do not "
        "depend on what was cached before.",
        data="pairs",
    )
    disable_fused_lora: bool = key(
        False, "Run LoRA layers as PEFT writes them, one operation and one kept tensor at a time."
    )
    reference_adapter: str | None = key(
        None,
        "What the reference has of the adapter that training goes on with (adapter_name_or_path): frozen (that adapter "
        "as it is when training starts, kept as a second copy) or base (nothing of it). Left out: base; where "
        "LLaMA-Factory cannot merge adapters (quantised models, ZeRO-3, unsloth, KTransformers) it must be said.",
        choices=(FROZEN, BASE),
    )
    sft_dataset: str | None = key(
        None,
        "Instructions (data sets as for stage sft) that are trained on in the same run, with the NLL of their answers.",
    )
    sft_ratio: float = key(
        0.0,
        "Share of instructions in every optimizer step, by examples; the rest are preferences. The loss is the mean "
        "over all of them; an instruction's is its mean NLL per token.",
        low=0.0,
        high=0.99,
    )
    sft_ratio_by: str = key(
        "examples",
        "What sft_ratio is a share of: examples (exact in every step) or tokens (as near as whole examples allow).",
        choices=("examples", "tokens"),
    )
    budget_tokens: float | None = key(
        None,
        "Stop after the step in which so many tokens went through policy and reference (cached or not).",
        low=1.0,
    )
    budget_flops: float | None = key(
        None,
        "Stop after the step in which so many floating point operations were spent (estimated from the weights).",
        low=1.0,
    )


@dataclass
class RolloutKeys:
    """The recipe keys of the stages that train on rollouts."""

    advantage_estimator: str = key(
        "gae",
        "How an answer's reward becomes an advantage: gae (PPO with a value head), rloo (against the mean of the "
        "prompt's other answers) or grpo (the same, divided by their standard deviation; KL is a term of the loss).",
        choices=ESTIMATORS,
        stages=ROLLOUT_STAGES,
    )
    num_generations: int | None = key(
        None,
        "Answers per prompt of a rollout. Left out: 1 with gae, 4 with rloo and grpo or with rollout_pairs.",
        low=1,
        stages=ROLLOUT_STAGES,
    )
    kl_control: str | None = key(
        None,
        "What the weight of the KL to the reference is: fixed, adaptive (held to ppo_target nats an answer), or beta "
        "(per prompt, by beta(x)). Left out: beta where beta_mode is head or ppl, else fixed.",
        choices=KL_CONTROLS,
        stages=ROLLOUT_STAGES,
    )
    kl_coef: float | None = key(
        None,
        "Weight of the KL; with kl_control beta a prompt's is kl_coef * beta(x) / pref_beta. Left out: 0.05 (grpo "
        "0.04), with kl_control beta pref_beta, so that it is beta(x).",
        low=0.0,
        stages=ROLLOUT_STAGES,
    )
    kl_estimator: str | None = key(
        None,
        "Estimator of the KL per token, of d = log pi - log ref: k1 (d), k2 (d^2 / 2) or k3 (exp(-d) - 1 + d). Left "
        "out: k1, with grpo k3.",
        choices=KL_ESTIMATORS,
        stages=ROLLOUT_STAGES,
    )
    kl_horizon: int = key(
        10000, "Answers over which kl_control adaptive corrects a deviation.", low=1, stages=ROLLOUT_STAGES
    )
    gae_gamma: float = key(1.0, "GAE: discount per token.", low=0.0, high=1.0, stages=ROLLOUT_STAGES)
    gae_lambda: float = key(0.95, "GAE: trade-off of bias and variance.", low=0.0, high=1.0, stages=ROLLOUT_STAGES)
    ppo_clip: float = key(
        0.2,
        "How far the policy's ratio may move before the surrogate is clipped.",
        low=0.0,
        open_low=True,
        stages=ROLLOUT_STAGES,
    )
    ppo_value_clip: float = key(
        0.2,
        "How far a value may move from that of the rollout before its loss is clipped.",
        low=0.0,
        open_low=True,
        stages=ROLLOUT_STAGES,
    )
    ppo_value_coef: float = key(
        0.1, "Weight of the value loss in what the policy's weights see.", low=0.0, stages=ROLLOUT_STAGES
    )
    value_lr_ratio: float = key(
        5.0,
        "Learning rate of the value head, as a multiple of the policy's.",
        low=0.0,
        open_low=True,
        stages=ROLLOUT_STAGES,
    )
    missing_eos_penalty: float | None = key(
        None, "Taken off the reward of an answer that max_new_tokens cut off.", low=0.0, stages=ROLLOUT_STAGES
    )
    rollout_batch_size: int | None = key(
        None,
        "Answers that are generated and scored at a time. Left out: a whole rollout.",
        low=1,
        stages=ROLLOUT_STAGES,
    )
    rollout_backend: str = key(
        "hf",
        "What generates the answers: hf (the model in training itself) or vllm (needs vLLM and finetuning_type lora).",
        choices=ROLLOUT_BACKENDS,
        stages=ROLLOUT_STAGES,
    )
    rollout_pairs: bool = key(
        False,
        "Make a preference pair of each prompt's best and worst answer by reward: ledpo_alternate trains on them in "
        "its next LEDPO phase, ledpo_ppo trains the beta head alone on them.",
        stages=ROLLOUT_STAGES,
    )
    reward_weights: str | None = key(
        None,
        "Weights of the rewards where reward_model names several, separated by commas. Left out: all 1.",
        stages=ROLLOUT_STAGES,
    )
    reward_clip: float | None = key(
        None, "Cut the weighted reward to this size in either direction.", low=0.0, open_low=True, stages=ROLLOUT_STAGES
    )
    reward_timeout: float = key(
        60.0, "Seconds to wait for an answer of a reward server.", low=0.0, open_low=True, stages=ROLLOUT_STAGES
    )
    reward_retries: int = key(3, "How often a reward server is asked again.", low=0, stages=ROLLOUT_STAGES)
    reward_max_failures: float = key(
        0.5,
        "Largest share of a rollout's answers that may stay without a reward (they are left out and counted); above "
        "it training stops with a checkpoint.",
        low=0.0,
        high=0.99,
        stages=ROLLOUT_STAGES,
    )
    prompt_dataset: str | None = key(
        None,
        "Data sets whose prompts the PPO phases answer. Left out: those of dataset.",
        stages=(ALTERNATE,),
    )
    alternate_schedule: str = key(
        "4:4",
        "Optimizer steps of a LEDPO phase and of the PPO phase after it, over and over.",
        stages=(ALTERNATE,),
    )


@dataclass
class LedpoArguments(RolloutKeys, LossKeys, RunKeys, BetaKeys):  # fields come in the order from last to first
    """The plugin's own recipe keys; a value of None is replaced by the recommended one before training."""


def argument_fields() -> dict[str, Field]:
    """Return the plugin's recipe keys, in order, with their dataclass fields."""
    return {item.name: item for item in fields(LedpoArguments)}
