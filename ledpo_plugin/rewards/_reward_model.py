"""Reward models of LLaMA-Factory's `stage: rm`: a value head on the hidden state of an answer's last token."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ledpo_plugin.modeling.adapters import CONFIG, WEIGHTS, is_peft, kept
from ledpo_plugin.modeling.forward import last_hidden

from ._adapters import Speaker, add_adapter, as_loaded
from ._models import folder_of, in_parts, load_other, passes
from ._types import NONE, RewardBatch, RewardError

HEAD, PICKLED_HEAD = "value_head.safetensors", "value_head.bin"
WEIGHT, BIAS = "v_head.summary.weight", "v_head.summary.bias"


def load_value_head(folder: Path, where: str, width: int) -> tuple[Tensor, Tensor]:
    """Return weight `[1, d]` and bias `[1]` of the value head in `folder`, fp32.

    Args:
        folder: of a reward model.
        where: its name in messages.
        width: of the model's hidden state, d.

    Raises:
        RewardError: there is none, it is pickled, damaged or of another width.
    """
    _require_head(folder, where)
    path = folder / HEAD
    try:
        tensors = load_file(path)
        weight, bias = tensors[WEIGHT].float(), tensors[BIAS].float()
    except (OSError, SafetensorError, KeyError) as error:
        raise RewardError(f"{path} is damaged or no value head ({error}). Restore it or train it again.") from None
    if tuple(weight.shape) != (1, width) or tuple(bias.shape) != (1,):
        raise RewardError(
            f"{path} is for a hidden state of {weight.shape[-1]} numbers, and the model's has {width}. Name the reward "
            "model of this base model."
        )
    return weight, bias


def without_head(folder: Path) -> tuple[str, str]:
    """Return what is wrong with a folder without value_head.safetensors, and what to do."""
    if (folder / PICKLED_HEAD).is_file():
        rewrite = f"safetensors.torch.save_file(torch.load('{PICKLED_HEAD}', weights_only=True), '{HEAD}')"
        return f"holds {PICKLED_HEAD}, which is pickled and is not opened", f"write it as {HEAD}, by {rewrite}"
    return f"holds no {HEAD}: it is not the output of stage rm", "name the folder of a model trained with stage: rm"


def _require_head(folder: Path, where: str) -> None:
    if not (folder / HEAD).is_file():
        why, fix = without_head(folder)
        raise RewardError(f"{where} {why}. Fix: {fix}.")


class HeadReward:
    """Scores answers by a value head on a model of its own, or on the policy's base with another adapter."""

    def __init__(self, head: tuple[Tensor, Tensor], speaker: Speaker, *, rows: int, passes: float):
        """Take what scores.

        Args:
            head: weight `[1, d]` and bias `[1]`.
            speaker: whose hidden state the head reads.
            rows: answers a pass.
            passes: see `Source`.
        """
        self.head, self.speaker, self.rows, self.passes = head, speaker, rows, passes

    @torch.no_grad()
    def score(self, batch: RewardBatch, model: nn.Module) -> Tensor:
        """Return the value at each answer's last token `[R]`, as LLaMA-Factory's PPO takes it."""
        with self.speaker.speaking(model) as speaking:
            return self._score(batch, speaking)

    def _score(self, batch: RewardBatch, model: nn.Module) -> Tensor:
        device = model.get_input_embeddings().weight.device
        weight, bias = self.head = tuple(tensor.to(device) for tensor in self.head)
        scores = torch.full((batch.size,), NONE, device=device)
        for rows, inputs in in_parts(batch, self.rows, device):
            hidden = last_hidden(model, inputs)
            last = inputs["attention_mask"].sum(1) - 1
            hidden = hidden[torch.arange(len(rows), device=hidden.device), last].to(weight)
            scores[rows] = F.linear(hidden, weight, bias).squeeze(1)
        return scores


@torch.no_grad()
def require_same_hidden(model: nn.Module, where: str) -> None:
    """Do nothing if what the output layer reads is the last hidden state, which the value head was trained on.

    Raises:
        RewardError: it is not, as in models that scale it first.
    """
    device = model.get_input_embeddings().weight.device
    ids = torch.arange(1, 17, device=device).view(2, 8)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with kept(model):
        model.eval()
        ours = last_hidden(model, inputs)
        theirs = model(**inputs, output_hidden_states=True, return_dict=True, use_cache=False).hidden_states[-1]
    if not torch.allclose(ours.float(), theirs.float(), rtol=1e-3, atol=1e-4):
        raise RewardError(
            f"{where}: the output layer of {type(model).__name__} reads something else than the last hidden state, on "
            "which LLaMA-Factory's reward models are trained. Serve it with llamafactory-cli api (stage: rm) and set "
            "reward_model_type: api."
        )


def build_lora(one: Any, context: Any) -> HeadReward:
    """Return a reward model that is an adapter on the policy's own base.

    Raises:
        RewardError: the policy is no PEFT model, or the adapter does not fit it.
    """
    model = context.model
    if not is_peft(model):
        raise RewardError(
            f"{one.where}: a reward model of reward_model_type lora is an adapter beside the policy's own, and the "
            "policy has none. Set finetuning_type: lora, or reward_model_type: full with reward_model set to the base "
            "model and reward_model_adapters to this folder."
        )
    folder = folder_of(one.where, context.model_args, (CONFIG, WEIGHTS, HEAD))
    head = load_value_head(folder, one.where, model.config.get_text_config().hidden_size)
    adapter = add_adapter(model, folder, one.where)
    require_same_hidden(model, one.where)
    context.log(f"Reward {one.name}: the adapter {one.where} on the policy's own base model.")
    return HeadReward(head, Speaker(None, adapter), rows=context.rows, passes=1.0)


def build_full(one: Any, context: Any) -> HeadReward:
    """Return a reward model of its own, from the host's loader.

    Raises:
        RewardError: it has no value head, or its tokens are not the policy's.
    """
    own = context.finetuning_args
    adapters = own.reward_model_adapters
    last = adapters.split(",")[-1].strip() if adapters else one.where
    folder = folder_of(last, context.model_args, (HEAD,))
    _require_head(folder, last)
    model = load_other(context, one.where, "the reward model", adapters, own.reward_model_quantization_bit)
    head = load_value_head(folder, last, model.config.get_text_config().hidden_size)
    require_same_hidden(model, one.where)
    context.log(f"Reward {one.name}: a model of its own, {one.where}.")
    return HeadReward(head, as_loaded(model), rows=context.rows, passes=passes([model], context.model))
