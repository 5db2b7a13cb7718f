"""Every recipe key that the plugin adds to LLaMA-Factory's own, in one dataclass.

Each field's metadata says what the key means (`help`), what it may be (`choices`, or `low`/`high`, inclusive unless
`open_low`), and where it acts (`modes`: beta modes; `losses`: losses; `data`: kind of data; `stages`: stages).
Validation and the documentation read this one description. Booleans default to False because LLaMA-Factory's web UI
drops False from the commands it writes.
"""

from dataclasses import Field, dataclass, field, fields
from typing import Any

BETA_MODES = ("fixed", "global", "head", "ppl", "beta_dpo", "epsilon_dpo", "mallows")
LEARNED_MODES = ("global", "head", "ppl")
HEAD_MODES = ("head", "ppl")
HEAD_SOURCES = ("reference", "policy")
HEAD_ACTIVATIONS = ("exp_tanh", "sigmoid", "softplus", "relu")
PPO, ALTERNATE = "ledpo_ppo", "ledpo_alternate"
ROLLOUT_STAGES = (PPO, ALTERNATE)  # train on answers that the policy has just given
ESTIMATORS = ("gae", "rloo", "grpo")
KL_CONTROLS = ("fixed", "adaptive", "beta")
KL_ESTIMATORS = ("k1", "k2", "k3")
ROLLOUT_BACKENDS = ("hf", "vllm")
BASE, FROZEN = "base", "frozen"  # what the reference has of the adapter that training goes on with
REWARD_TYPES = ("lora", "full", "api", "implicit", "function")


def _key(default: Any, help: str, **facts: Any) -> Any:
    return field(default=default, metadata={"help": help, **facts})


@dataclass
class LedpoArguments:
    """The plugin's own recipe keys; a value of None is replaced by the recommended one before training."""

    beta_mode: str | None = _key(
        None,
        "How beta is decided: fixed, global (one learned scalar), head (LEDPO: beta(x) from the hidden state of the "
        "last prompt token), ppl, beta_dpo, epsilon_dpo or mallows. Left out: head for stage ledpo where the loss "
        "admits it, else fixed.",
        choices=BETA_MODES,
    )
    beta_min: float | None = _key(
        None, "Lower bound of beta. Left out: pref_beta / 10.", low=0.0, open_low=True, modes=LEARNED_MODES
    )
    beta_max: float | None = _key(
        None, "Upper bound of beta. Left out: pref_beta * 10.", low=0.0, open_low=True, modes=LEARNED_MODES
    )
    beta_penalty: float = _key(
        0.05,
        "Weight of the penalty (ln beta - ln pref_beta)^2 that gives a learned beta its interior optimum.",
        low=0.0,
        modes=LEARNED_MODES,
    )
    beta_center: bool = _key(
        False,
        "Hold the running geometric mean of beta at pref_beta, so that the head only redistributes.",
        modes=HEAD_MODES,
    )
    beta_lr_ratio: float = _key(
        5.0,
        "Learning rate of beta's own parameters, as a multiple of the policy's.",
        low=0.0,
        open_low=True,
        modes=LEARNED_MODES,
    )
    beta_head_source: str | None = _key(
        None,
        "Whose hidden state the head reads: reference or policy. Left out: reference, or policy where the loss "
        "needs no reference model.",
        choices=HEAD_SOURCES,
        modes=HEAD_MODES,
    )
    beta_head_widths: str = _key("128", "Widths of the head's hidden layers, separated by commas.", modes=HEAD_MODES)
    beta_head_activation: str = _key(
        "exp_tanh",
        "Map from the head's output to beta / pref_beta: exp_tanh, sigmoid, softplus or relu.",
        choices=HEAD_ACTIVATIONS,
        modes=("head",),
    )
    beta_head_path: str | None = _key(
        None, "Folder of a finished run or checkpoint whose beta head training starts from.", modes=LEARNED_MODES
    )
    freeze_policy: bool = _key(
        False, "Train beta alone, on the margins of a policy that stays as it is.", modes=LEARNED_MODES
    )
    beta_ppl_power: int = _key(1, "Power of the prompt's perplexity in beta: 1 or -1.", choices=(1, -1), modes=("ppl",))
    beta_ppl_epsilon: float = _key(
        0.1, "Share of beta that the network may move in ppl mode.", low=0.0, high=0.99, modes=("ppl",)
    )
    beta_dpo_alpha: float = _key(0.6, "beta-DPO: gain of beta on the batch margin.", low=0.0, modes=("beta_dpo",))
    beta_dpo_filter: float = _key(
        0.2, "beta-DPO: share of each batch that is filtered out.", low=0.0, high=0.9, modes=("beta_dpo",)
    )
    beta_dpo_momentum: float = _key(
        0.9, "beta-DPO: momentum of the running mean and deviation.", low=0.0, high=0.999, modes=("beta_dpo",)
    )
    epsilon_dpo_epsilon: float = _key(
        0.01, "epsilon-DPO: size of the perturbation.", low=0.0, open_low=True, high=0.5, modes=("epsilon_dpo",)
    )
    mallows_phi: float = _key(
        0.29, "MallowsPO: scale phi* of the negative log dispersion.", low=0.0, open_low=True, modes=("mallows",)
    )
    disable_shared_prompt: bool = _key(
        False,
        "Give each answer a row of its own, its prompt computed twice, as LLaMA-Factory's own stages do.",
        data="pairs",
    )
    disable_response_logits: bool = _key(
        False,
        "Compute the logits of every position, as LLaMA-Factory's own stages do (rows of their own, too).",
        data="pairs",
    )
    disable_reference_cache: bool = _key(
        False, "Run the reference model anew in every epoch and every run, and keep nothing on disk.", data="pairs"
    )
    fill_reference_cache: bool = _key(
        False,
        "Run the reference over all pairs in fixed batches before the first step, so that a run's numbers do not "
        "depend on what was cached before.",
        data="pairs",
    )
    disable_fused_lora: bool = _key(
        False, "Run LoRA layers as PEFT writes them, one operation and one kept tensor at a time."
    )
    reference_adapter: str | None = _key(
        None,
        "What the reference has of the adapter that training goes on with (adapter_name_or_path): frozen (that adapter "
        "as it is when training starts, kept as a second copy) or base (nothing of it). Left out: base; where "
        "LLaMA-Factory cannot merge adapters (quantised models, ZeRO-3, unsloth, KTransformers) it must be said.",
        choices=(FROZEN, BASE),
    )
    sft_dataset: str | None = _key(
        None,
        "Instructions (data sets as for stage sft) that are trained on in the same run, with the NLL of their answers.",
    )
    sft_ratio: float = _key(
        0.0,
        "Share of instructions in every optimizer step, by examples; the rest are preferences. The loss is the mean "
        "over all of them; an instruction's is its mean NLL per token.",
        low=0.0,
        high=0.99,
    )
    sft_ratio_by: str = _key(
        "examples",
        "What sft_ratio is a share of: examples (exact in every step) or tokens (as near as whole examples allow).",
        choices=("examples", "tokens"),
    )
    budget_tokens: float | None = _key(
        None,
        "Stop after the step in which so many tokens went through policy and reference (cached or not).",
        low=1.0,
    )
    budget_flops: float | None = _key(
        None,
        "Stop after the step in which so many floating point operations were spent (estimated from the weights).",
        low=1.0,
    )
    discopop_tau: float = _key(
        0.05, "DiscoPOP: temperature of the modulation.", low=0.0, open_low=True, losses=("discopop",)
    )
    cpo_alpha: float = _key(1.0, "CPO: weight of the chosen answer's NLL.", low=0.0, losses=("cpo",))
    alphapo_alpha: float = _key(
        0.25, "AlphaPO: shape of the reward; 0 is SimPO.", low=-5.0, high=5.0, losses=("alphapo",)
    )
    rdpo_alpha: float = _key(0.05, "R-DPO: penalty per token of extra length.", low=0.0, losses=("r_dpo",))
    dpop_lambda: float = _key(
        50.0, "DPOP: weight of the fall in the chosen answer's likelihood.", low=0.0, losses=("dpop",)
    )
    advantage_estimator: str = _key(
        "gae",
        "How an answer's reward becomes an advantage: gae (PPO with a value head), rloo (against the mean of the "
        "prompt's other answers) or grpo (the same, divided by their standard deviation; KL is a term of the loss).",
        choices=ESTIMATORS,
        stages=ROLLOUT_STAGES,
    )
    num_generations: int | None = _key(
        None,
        "Answers per prompt of a rollout. Left out: 1 with gae, 4 with rloo and grpo or with rollout_pairs.",
        low=1,
        stages=ROLLOUT_STAGES,
    )
    kl_control: str | None = _key(
        None,
        "What the weight of the KL to the reference is: fixed, adaptive (held to ppo_target nats an answer), or beta "
        "(per prompt, by beta(x)). Left out: beta where beta_mode is head or ppl, else fixed.",
        choices=KL_CONTROLS,
        stages=ROLLOUT_STAGES,
    )
    kl_coef: float | None = _key(
        None,
        "Weight of the KL; with kl_control beta a prompt's is kl_coef * beta(x) / pref_beta. Left out: 0.05 (grpo "
        "0.04), with kl_control beta pref_beta, so that it is beta(x).",
        low=0.0,
        stages=ROLLOUT_STAGES,
    )
    kl_estimator: str | None = _key(
        None,
        "Estimator of the KL per token, of d = log pi - log ref: k1 (d), k2 (d^2 / 2) or k3 (exp(-d) - 1 + d). Left "
        "out: k1, with grpo k3.",
        choices=KL_ESTIMATORS,
        stages=ROLLOUT_STAGES,
    )
    kl_horizon: int = _key(
        10000, "Answers over which kl_control adaptive corrects a deviation.", low=1, stages=ROLLOUT_STAGES
    )
    gae_gamma: float = _key(1.0, "GAE: discount per token.", low=0.0, high=1.0, stages=ROLLOUT_STAGES)
    gae_lambda: float = _key(0.95, "GAE: trade-off of bias and variance.", low=0.0, high=1.0, stages=ROLLOUT_STAGES)
    ppo_clip: float = _key(
        0.2,
        "How far the policy's ratio may move before the surrogate is clipped.",
        low=0.0,
        open_low=True,
        stages=ROLLOUT_STAGES,
    )
    ppo_value_clip: float = _key(
        0.2,
        "How far a value may move from that of the rollout before its loss is clipped.",
        low=0.0,
        open_low=True,
        stages=ROLLOUT_STAGES,
    )
    ppo_value_coef: float = _key(
        0.1, "Weight of the value loss in what the policy's weights see.", low=0.0, stages=ROLLOUT_STAGES
    )
    value_lr_ratio: float = _key(
        5.0,
        "Learning rate of the value head, as a multiple of the policy's.",
        low=0.0,
        open_low=True,
        stages=ROLLOUT_STAGES,
    )
    missing_eos_penalty: float | None = _key(
        None, "Taken off the reward of an answer that max_new_tokens cut off.", low=0.0, stages=ROLLOUT_STAGES
    )
    rollout_batch_size: int | None = _key(
        None,
        "Answers that are generated and scored at a time. Left out: a whole rollout.",
        low=1,
        stages=ROLLOUT_STAGES,
    )
    rollout_backend: str = _key(
        "hf",
        "What generates the answers: hf (the model in training itself) or vllm (needs vLLM and finetuning_type lora).",
        choices=ROLLOUT_BACKENDS,
        stages=ROLLOUT_STAGES,
    )
    rollout_pairs: bool = _key(
        False,
        "Make a preference pair of each prompt's best and worst answer by reward: ledpo_alternate trains on them in "
        "its next LEDPO phase, ledpo_ppo trains the beta head alone on them.",
        stages=ROLLOUT_STAGES,
    )
    reward_weights: str | None = _key(
        None,
        "Weights of the rewards where reward_model names several, separated by commas. Left out: all 1.",
        stages=ROLLOUT_STAGES,
    )
    reward_clip: float | None = _key(
        None, "Cut the weighted reward to this size in either direction.", low=0.0, open_low=True, stages=ROLLOUT_STAGES
    )
    reward_timeout: float = _key(
        60.0, "Seconds to wait for an answer of a reward server.", low=0.0, open_low=True, stages=ROLLOUT_STAGES
    )
    reward_retries: int = _key(3, "How often a reward server is asked again.", low=0, stages=ROLLOUT_STAGES)
    reward_max_failures: float = _key(
        0.5,
        "Largest share of a rollout's answers that may stay without a reward (they are left out and counted); above "
        "it training stops with a checkpoint.",
        low=0.0,
        high=0.99,
        stages=ROLLOUT_STAGES,
    )
    prompt_dataset: str | None = _key(
        None,
        "Data sets whose prompts the PPO phases answer. Left out: those of dataset.",
        stages=(ALTERNATE,),
    )
    alternate_schedule: str = _key(
        "4:4",
        "Optimizer steps of a LEDPO phase and of the PPO phase after it, over and over.",
        stages=(ALTERNATE,),
    )


def argument_fields() -> dict[str, Field]:
    """Return the plugin's recipe keys, in order, with their dataclass fields."""
    return {item.name: item for item in fields(LedpoArguments)}
