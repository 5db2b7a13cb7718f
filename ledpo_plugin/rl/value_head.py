"""The value head: how much reward is to be expected of an answer, at each of its tokens."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, autocast
from torch.nn import functional as F

from ledpo_plugin.betas._learned import Head
from ledpo_plugin.common.atomic import replace_file
from ledpo_plugin.modeling.head_file import HeadFileError

# Not `value_head.safetensors`: under that name LLaMA-Factory keeps the head of a reward model.
WEIGHTS = "ledpo_value_head.safetensors"


class ValueHead(Head):
    """A small network on the policy's last hidden state, in fp32; its last layer starts at 0, and so does every value.

    It shares the policy's layers, as LLaMA-Factory's PPO does, so that no second model is needed.
    """

    def forward(self, states: Tensor, through: float = 1.0) -> Tensor:
        """Return values `[...]` of hidden states `[..., d]`.

        Args:
            states: hidden states of the policy.
            through: weight of the gradient that goes on into the policy; the head's own is always whole.
        """
        with autocast(states.device.type, enabled=False):
            states = states.float()
            kept = states.detach()
            normed = F.layer_norm(kept + through * (states - kept), states.shape[-1:])
            return self.layers(normed).squeeze(-1)


def save_value_head(folder: str | Path, head: ValueHead) -> None:
    """Write the head into `folder`."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in head.state_dict().items()}
    replace_file(Path(folder) / WEIGHTS, lambda path: save_file(tensors, path, metadata={"format": "pt"}))


def load_value_head(folder: str | Path, head: ValueHead) -> None:
    """Load what `save_value_head` wrote into `folder`.

    Raises:
        HeadFileError: the file is missing or damaged, or was made for a model of another width.
    """
    path = Path(folder) / WEIGHTS
    try:
        head.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise HeadFileError(
            f"{path} is missing, damaged or made for another model ({error}). Resume from an earlier checkpoint."
        ) from None
