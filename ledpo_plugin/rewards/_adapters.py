"""Further adapters on the policy's own base weights: added frozen, at work only while a reward is computed."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ledpo_plugin.modeling.adapters import OF_REWARDS as PREFIX
from ledpo_plugin.modeling.adapters import WEIGHTS, at_work, is_peft, kept

from ._types import RewardError


@dataclass(frozen=True)
class Speaker:
    """A model that is asked, or the policy's with another adapter."""

    model: nn.Module | None  # None: the policy's
    adapter: str | None  # that is at work in a PEFT model meanwhile; None: none, the base model speaks

    @contextmanager
    def speaking(self, policy: nn.Module) -> Iterator[nn.Module]:
        """Give the model to ask; afterwards the policy is as it was."""
        model = policy if self.model is None else self.model
        with at_work(model, self.adapter) if is_peft(model) else nullcontext(model) as speaking:
            yield speaking


def as_loaded(model: nn.Module) -> Speaker:
    """Return the speaker of a model from the host's loader, with its adapters: merged, or at work where it cannot."""
    return Speaker(model, model.active_adapter if is_peft(model) else None)


def add_adapter(model: nn.Module, folder: Path, where: str) -> str:
    """Add the adapter in `folder` to a PEFT model, frozen and not active; return its name in the model.

    What the policy saves, trains and computes stays as it was.

    Raises:
        RewardError: its weights are not there as safetensors, or do not fit the model.
    """
    name = f"{PREFIX}{sum(other.startswith(PREFIX) for other in model.peft_config)}"
    if not (folder / WEIGHTS).is_file():
        raise RewardError(f"{where} holds no {WEIGHTS}: adapters are read from safetensors only. Save it as such.")
    with kept(model):
        try:
            result = model.load_adapter(str(folder), name, is_trainable=False, torch_device="cpu")
        except (ValueError, RuntimeError, KeyError) as error:
            reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
            raise RewardError(
                f"The adapter {where} does not fit the policy's model: {reason}. Name the adapter of a reward model "
                "that was trained on the policy's own base model, or use reward_model_type: full."
            ) from error
        own = [parameter for key, parameter in model.named_parameters() if f".{name}." in f".{key}."]
        for parameter in own:
            parameter.requires_grad_(False)
    odd = [*result.missing_keys, *result.unexpected_keys]
    if odd or not own:
        raise RewardError(
            f"The adapter {where} does not fit the policy's model: {odd[0] if odd else 'no layer has a part of it'} "
            "is without its place. Name the adapter of a reward model that was trained on the policy's base model."
        )
    return name
