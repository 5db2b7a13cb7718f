"""Whether each number lies where it makes sense and each name is a known one."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ledpo_plugin.common.problem import Problem, problem, unknown
from ledpo_plugin.facts import is_learned
from ledpo_plugin.hparams import argument_fields

from .reading import Reading, is_number


@dataclass(frozen=True)
class Bounds:
    """Where the value of a key may lie, and a value that is usual."""

    key: str
    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    usual: float | None = None

    def admits(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        low = f"{'above' if self.open_low else 'at least'} {self.low:g}" if self.low > -math.inf else ""
        high = f"{'below' if self.open_high else 'at most'} {self.high:g}" if self.high < math.inf else ""
        return " and ".join(part for part in (low, high) if part)


_HOST_BOUNDS = (
    Bounds("pref_beta", 0, open_low=True, usual=0.1),
    Bounds("pref_ftx", 0, usual=0),
    Bounds("pref_bco_weight", 0, usual=0),
    Bounds("dpo_label_smoothing", 0, 0.5, open_high=True, usual=0.1),
    Bounds("simpo_gamma", 0, usual=1),
    Bounds("kto_chosen_weight", 0, open_low=True, usual=1),
    Bounds("kto_rejected_weight", 0, open_low=True, usual=1),
    Bounds("ld_alpha", 0, 1, usual=0.5),
    Bounds("learning_rate", 0, open_low=True, usual=5e-6),
    Bounds("cutoff_len", 8, usual=2048),
    Bounds("lora_rank", 1, usual=8),
    Bounds("lora_alpha", 1, usual=16),
    Bounds("lora_dropout", 0, 1, open_high=True, usual=0),
    Bounds("loraplus_lr_ratio", 0, open_low=True, usual=16),
    Bounds("per_device_train_batch_size", 1, usual=1),
    Bounds("per_device_eval_batch_size", 1, usual=1),
    Bounds("gradient_accumulation_steps", 1, usual=8),
    Bounds("num_train_epochs", 0, open_low=True, usual=1),
    Bounds("max_steps", -1, usual=-1),
    Bounds("max_samples", 1, usual=1000),
    Bounds("warmup_ratio", 0, 1, usual=0.1),
    Bounds("warmup_steps", 0, usual=0.1),
    Bounds("weight_decay", 0, usual=0),
    Bounds("max_grad_norm", 0, usual=1),
    Bounds("logging_steps", 0, open_low=True, usual=10),
    Bounds("save_steps", 0, open_low=True, usual=500),
    Bounds("eval_steps", 0, open_low=True, usual=500),
    Bounds("preprocessing_num_workers", 1, usual=4),
    Bounds("preprocessing_batch_size", 1, usual=1000),
    Bounds("dataloader_num_workers", 0, usual=0),
    Bounds("seed", 0, 2**32 - 1, usual=42),
    Bounds("ppo_epochs", 1, usual=4),
    Bounds("ppo_buffer_size", 1, usual=1),
    Bounds("ppo_target", 0, open_low=True, usual=6),
    Bounds("temperature", 0, open_low=True, usual=1),
    Bounds("top_p", 0, 1, open_low=True, usual=1),
    Bounds("top_k", 0, usual=0),
    Bounds("max_new_tokens", 1, usual=256),
    Bounds("repetition_penalty", 0, open_low=True, usual=1),
)

# What an unknown name of each key is an unknown one of.
_KINDS = {
    "beta_mode": "beta mode",
    "beta_head_source": "head source",
    "beta_head_activation": "head activation",
    "beta_ppl_power": "power",
    "reference_adapter": "adapter of the reference",
    "sft_ratio_by": "unit",
    "advantage_estimator": "advantage estimator",
    "kl_control": "KL control",
    "kl_estimator": "KL estimator",
    "rollout_backend": "rollout backend",
}


def _plugin_bounds() -> tuple[Bounds, ...]:
    limits = []
    for key, field in argument_fields().items():
        facts = field.metadata
        if "low" in facts or "high" in facts:
            low, high = facts.get("low", -math.inf), facts.get("high", math.inf)
            usual = field.default if is_number(field.default) else None
            limits.append(Bounds(key, low, high, facts.get("open_low", False), usual=usual))
    return tuple(limits)


BOUNDS = (*_HOST_BOUNDS, *_plugin_bounds())


def check_ranges(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem for every number outside its bounds."""
    for bounds in BOUNDS:
        value = recipe.number(bounds.key)
        if value is not None and not bounds.admits(value):
            usual = "" if bounds.usual is None else f" (usual: {bounds.usual:g})"
            yield problem(bounds.key, value, f"{bounds.key} must be {bounds}", f"choose a value {bounds}{usual}")


def check_choices(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem for every name or number that is none of the plugin's known ones."""
    for key, kind in _KINDS.items():
        value, choices = recipe.raw.get(key), argument_fields()[key].metadata["choices"]
        if _same_type(value, choices) and value not in choices:
            yield unknown(key, value, kind, map(str, choices))


def _same_type(value: Any, choices: Sequence[Any]) -> bool:
    return type(value) is type(choices[0])


def check_val_size(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem where `val_size` is neither a share of the data nor a number of examples."""
    value = recipe.number("val_size")
    if value is not None and (value < 0 or (value >= 1 and value != int(value))):
        why = "val_size is a share of the data (0 to below 1) or a whole number of examples"
        yield problem("val_size", value, why, "choose a share such as 0.1, or a number of examples such as 100")


def check_head_widths(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem where the widths of the head's layers are not positive whole numbers."""
    value = recipe.raw.get("beta_head_widths")
    if isinstance(value, bool) or not isinstance(value, str | int):
        return
    parts = [part.strip() for part in str(value).split(",")]
    if not all(part.isascii() and part.isdigit() and int(part[:9]) > 0 and len(part) <= 9 for part in parts):
        why = "the widths of the head's layers are whole numbers above 0, separated by commas"
        yield problem("beta_head_widths", value, why, "write for example '128' or '256,64'")


def check_beta_bounds(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem where pref_beta, as training would use it, is not between beta_min and beta_max."""
    beta = recipe.pref_beta()
    if not is_learned(recipe.mode) or not is_number(beta) or beta <= 0:
        return
    start = f"pref_beta, which is {beta:g}" + (
        "" if recipe.raw.get("pref_beta") is not None else " (recommended for this loss)"
    )
    low, high = recipe.number("beta_min"), recipe.number("beta_max")
    if low is not None and low >= beta:
        why = f"beta_min must be below {start}, where a learned beta starts"
        yield problem("beta_min", low, why, f"choose a value below {beta:g}, or raise pref_beta, or remove beta_min")
    if high is not None and high <= beta:
        why = f"beta_max must be above {start}, where a learned beta starts"
        yield problem("beta_max", high, why, f"choose a value above {beta:g}, or lower pref_beta, or remove beta_max")
