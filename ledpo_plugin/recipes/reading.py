"""A recipe as the checks see it: what was written, and the stage, loss and beta mode that follow from it.

Reading never fails. A value of the wrong type counts as absent here, because the check of types reports it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ledpo_plugin.facts import BETAS, DEFAULT_REWARD, LOSSES, Loss
from ledpo_plugin.hparams import PPO
from ledpo_plugin.stages import STAGES, Stage

ADAPTER_TYPES = ("lora", "oft")
ADAPTER_RATE = 10  # an adapter's learning rate, as a multiple of the recommended rate of full fine-tuning
HOST_DEFAULTS = {"finetuning_type": "lora", "dataset_dir": "data", "per_device_train_batch_size": 8}
# For full fine-tuning; ten times that for adapters is what LLaMA-Factory's example of stage ppo has.
RECOMMENDED_PPO: Mapping[str, Any] = {"learning_rate": 1e-6}
# The policy's own distribution: what LLaMA-Factory cuts off of it by default (top_p 0.7) is never learned about.
RECOMMENDED_ROLLOUTS: Mapping[str, Any] = {
    "do_sample": True,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "max_new_tokens": 256,
    "reward_model_type": DEFAULT_REWARD,
}
_ON = ("true", "y", "1")  # what LLaMA-Factory takes for an environment variable that is switched on
_LARGEST = 1e300


@dataclass(frozen=True)
class Reading:
    """A recipe, the host's keys and environment, and what was understood of it (None: not understood)."""

    raw: Mapping[Any, Any]
    host_keys: Mapping[str, Any]
    environ: Mapping[str, str]
    stage: Stage | None
    loss: Loss | None
    mode: str | None

    def is_set(self, key: str) -> bool:
        """Whether the recipe gives the key a value that is not simply 'off'."""
        return self.raw.get(key) is not None and self.raw.get(key) is not False

    def flag(self, key: str) -> bool:
        return self.raw.get(key) is True

    def text(self, key: str) -> str | None:
        value = self.raw.get(key)
        value = HOST_DEFAULTS.get(key) if value is None else value
        return value if isinstance(value, str) else None

    def number(self, key: str) -> float | None:
        value = self.raw.get(key)
        return value if is_number(value) else None

    def names(self, key: str) -> list[str]:
        """Return a comma-separated text, or a list of texts, as LLaMA-Factory splits it."""
        return split_names(self.raw.get(key))

    def pref_beta(self) -> float | None:
        """Return the value that training would use: the given one, or the loss's recommended one."""
        if self.raw.get("pref_beta") is not None:
            return self.number("pref_beta")
        return None if self.loss is None else recommended(self.raw, self.loss, self.mode).get("pref_beta")


def read(raw: Mapping[Any, Any], host_keys: Mapping[str, Any], environ: Mapping[str, str]) -> Reading:
    """Return the recipe as it was understood."""
    stage = stage_of(raw)
    loss = loss_of(raw, stage)
    return Reading(raw, host_keys, environ, stage, loss, mode_of(raw, stage, loss))


def stage_of(raw: Mapping[Any, Any]) -> Stage | None:
    name = raw.get("stage")
    return STAGES.get(name) if isinstance(name, str) else None


def loss_of(raw: Mapping[Any, Any], stage: Stage | None) -> Loss | None:
    """Return the loss that the stage is, or that the recipe chooses; None where it chooses none that fits."""
    if stage is None:
        return None
    chosen = raw.get("pref_loss")
    name = stage.default_loss if chosen is None or not stage.any_loss else chosen
    loss = LOSSES.get(name) if isinstance(name, str) else None
    return loss if loss is not None and loss.data == stage.loss_data else None


def mode_of(raw: Mapping[Any, Any], stage: Stage | None, loss: Loss | None) -> str | None:
    """Return the beta mode: the given one, else the stage's default where the loss admits it, else fixed."""
    given = raw.get("beta_mode")
    if given is not None:
        return given if isinstance(given, str) and given in BETAS else None
    if stage is None or loss is None:
        return None
    return stage.default_beta_mode if stage.default_beta_mode in loss.beta_modes else "fixed"


def recommended(raw: Mapping[Any, Any], loss: Loss, mode: str | None) -> dict[str, Any]:
    """Return the recommended values of stage, loss and beta mode; the learning rate fits the kind of fine-tuning."""
    stage = stage_of(raw)
    values = {**loss.recommended, **(BETAS[mode].recommended if mode in BETAS else {})}
    if stage is not None and stage.name == PPO:
        values = dict(RECOMMENDED_PPO)
        if mode in BETAS and BETAS[mode].kind != "constant":
            values["pref_beta"] = loss.recommended["pref_beta"]
    if stage is not None and stage.rollouts:
        values |= RECOMMENDED_ROLLOUTS
    kind = raw.get("finetuning_type")
    if "learning_rate" in values and (kind is None or kind in ADAPTER_TYPES):
        values["learning_rate"] = rounded(values["learning_rate"] * ADAPTER_RATE)
    return values


def rounded(value: float) -> float:
    """Return the value without the bits that a product leaves: 5e-6, not 4.9999999999999996e-06."""
    return float(f"{value:.12g}")


def switched_on(environ: Mapping[str, str], name: str) -> bool:
    """Whether the environment variable is switched on, as LLaMA-Factory reads it."""
    return str(environ.get(name, "")).lower() in _ON


def is_number(value: object) -> bool:
    """Whether the value is a finite number; True and False are not."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= _LARGEST and not math.isnan(value)


def split_names(value: object) -> list[str]:
    if isinstance(value, str):
        return [name.strip() for name in value.split(",")]
    return [name for name in value if isinstance(name, str)] if isinstance(value, list | tuple) else []
