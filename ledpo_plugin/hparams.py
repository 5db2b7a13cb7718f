"""Every recipe key that the plugin adds to LLaMA-Factory's own, in one dataclass.

Each field's metadata says what the key means (`help`), what it may be (`choices`, or `low`/`high`, inclusive unless
`open_low`), and where it acts (`modes`: beta modes; `losses`: losses; `data`: kind of data). Validation and the
documentation read this one description. Booleans default to False because LLaMA-Factory's web UI drops False from the
commands it writes.
"""

from dataclasses import Field, dataclass, field, fields
from typing import Any

BETA_MODES = ("fixed", "global", "head", "ppl", "beta_dpo", "epsilon_dpo", "mallows")
LEARNED_MODES = ("global", "head", "ppl")
HEAD_MODES = ("head", "ppl")
HEAD_SOURCES = ("reference", "policy")
HEAD_ACTIVATIONS = ("exp_tanh", "sigmoid", "softplus", "relu")


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


def argument_fields() -> dict[str, Field]:
    """Return the plugin's recipe keys, in order, with their dataclass fields."""
    return {item.name: item for item in fields(LedpoArguments)}
