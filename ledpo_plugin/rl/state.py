"""What a PPO phase goes on from, in a checkpoint: controllers, moments and the value head's optimizer."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ledpo_plugin.common.atomic import replace_file
from ledpo_plugin.modeling.head_file import HeadFileError
from ledpo_plugin.training.side_optimizer import SideOptimizer

from .advantages import RunningMoments
from .kl import KlCoefficient

STATE = "ledpo_ppo_state.safetensors"
VALUE, KL, SCORES = "value.", "kl.", "scores."


def save_shared_state(
    folder: str, kl: KlCoefficient, moments: RunningMoments, value_optimizer: SideOptimizer | None
) -> None:
    """Write what is the same in all processes into a checkpoint."""
    parts: dict[str, Mapping[str, Tensor]] = {KL: kl.state_dict(), SCORES: moments.state_dict()}
    parts |= {} if value_optimizer is None else {VALUE: value_optimizer.tensors()}
    tensors = {prefix + name: value.cpu() for prefix, part in parts.items() for name, value in part.items()}
    replace_file(Path(folder) / STATE, lambda path: save_file(tensors, path))


def load_shared_state(
    folder: str, kl: KlCoefficient, moments: RunningMoments, value_optimizer: SideOptimizer | None
) -> None:
    """Restore what `save_shared_state` wrote.

    Raises:
        HeadFileError: something is missing or damaged; going on without it would not be the same training.
    """
    path = Path(folder) / STATE
    try:
        tensors = load_file(path)
        kl.load_state_dict(_under(tensors, KL))
        moments.load_state_dict(_under(tensors, SCORES))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise HeadFileError(
            f"{path} is missing or damaged ({error}), so training cannot be resumed exactly. "
            "Resume from an earlier checkpoint."
        ) from None
    if value_optimizer is not None:
        value_optimizer.load(_under(tensors, VALUE))


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
