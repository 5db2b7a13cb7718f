"""What reward models of every kind have in common: where they are, whether their tokens are the policy's, batches."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ledpo_plugin.host.contract import host_api
from ledpo_plugin.host.data import templates_kept

from ._types import RewardBatch, RewardError

# Text with spaces, digits, code, umlauts and Chinese: two tokenizers of one vocabulary may still cut it differently.
PROBE = "The 2 rivers  meet at 10:35.\n\tfor i in range(3): print(f'{i}')\nÜber 北京 3.14"
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def folder_of(where: str, model_args: Any, patterns: Sequence[str]) -> Path:
    """Return a local folder as it is, or the files of a hub repository that match `patterns`, fetched.

    Raises:
        RewardError: it is neither.
    """
    if Path(where).is_dir():
        return Path(where)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                where,
                allow_patterns=list(patterns),
                cache_dir=model_args.cache_dir,
                token=model_args.hf_hub_token,
            )
        )
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise RewardError(
            f"{where} is no folder, and it cannot be fetched from the hub ({type(error).__name__}). Write the path "
            "of a folder, or the name of a repository that is reachable from here."
        ) from None


def same_tokens(own: Any, other: Any) -> str | None:
    """Return how another tokenizer differs from the policy's; None where every token is the same."""
    ours, theirs = own.get_vocab(), other.get_vocab()
    if ours != theirs:
        odd = sorted(
            (token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)),
            key=lambda token: (ours.get(token, len(ours)), token),
        )
        first = odd[0]
        return (
            f"{len(odd)} tokens differ, such as {first!r:.60}: {ours.get(first)} in the policy's vocabulary of "
            f"{len(ours)}, {theirs.get(first)} in the other of {len(theirs)}"
        )
    for name in SPECIAL:
        if getattr(own, name, None) != getattr(other, name, None):
            return f"{name} is {getattr(own, name, None)} in the policy's and {getattr(other, name, None)} in the other"
    if own.encode(PROBE, add_special_tokens=False) != other.encode(PROBE, add_special_tokens=False):
        return "they have the same tokens, but cut text into them differently"
    return None


def load_other(context: Any, where: str, what: str, adapters: Any = None, bits: Any = None) -> nn.Module:
    """Load a model beside the policy by the host's loader, frozen, adapters merged; its tokens must be the policy's.

    Args:
        context: of the rewards that are built.
        where: folder or hub name of the model.
        what: it is for, in messages.
        adapters: folders or hub names, separated by commas, or None.
        bits: to quantize it to, or None.

    Raises:
        RewardError: its tokenizer differs from the policy's.
    """
    host = host_api()
    if context.model_args.add_tokens or context.model_args.add_special_tokens:
        raise RewardError(
            f"{where} ({what}) is loaded beside a policy with new tokens, whose weights it does not have. Save the "
            "policy's model with the new tokens first, train a reward model on that, and remove add_tokens and "
            "add_special_tokens."
        )
    args = host.ModelArguments.copyfrom(
        context.model_args, model_name_or_path=where, adapter_name_or_path=adapters, quantization_bit=bits
    )
    tokenizer = host.load_tokenizer(args)["tokenizer"]
    with templates_kept():
        host.get_template(tokenizer, context.data_args)  # adds the template's own tokens, as it did to the policy's
    different = same_tokens(context.tokenizer, tokenizer)
    if different:
        raise RewardError(
            f"{where} ({what}) has another tokenizer than the policy: {different}. It would read other text than the "
            "policy wrote. Serve it (for a reward model: llamafactory-cli api with stage: rm) and set "
            "reward_model_type: api, or train one on the policy's own base model."
        )
    model = host.load_model(tokenizer, args, host.FinetuningArguments(), is_trainable=False)
    if bits is None:
        model = model.to(context.training_args.device)
    return model.requires_grad_(False).eval()


def in_parts(batch: RewardBatch, size: int, device: torch.device) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Yield the rows of a batch, longest first, and a model's inputs for them, `size` rows at a time, less padding.

    Args:
        batch: R answers.
        size: rows at a time.
        device: where the inputs go.
    """
    lengths = [prompt + response for prompt, response in zip(batch.prompt_lengths, batch.response_lengths, strict=True)]
    order = sorted(range(batch.size), key=lambda row: -lengths[row])
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        width = max(lengths[rows[0]], 1)
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        yield rows, {key: value[rows, :width].to(device) for key, value in inputs.items()}


def layers(model: nn.Module) -> int:
    """Return the weights of a model's layers, without embeddings and output layer: what a pass over a token costs."""
    apart = {
        id(parameter)
        for layer in (model.get_input_embeddings(), model.get_output_embeddings())
        if layer is not None
        for parameter in layer.parameters()
    }
    return sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in apart)


def passes(models: Sequence[nn.Module | None], policy: nn.Module) -> float:
    """Return how many passes of the policy one pass of each of `models` (None: the policy's own) costs."""
    own = layers(policy)
    return sum(1.0 if model is None else layers(model) / own for model in models)
