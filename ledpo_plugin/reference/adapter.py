"""The adapter that a run starts from, as part of its reference: kept beside the trained one as a frozen second copy.

LLaMA-Factory merges an adapter into the base where it can, and goes on training the last one unless create_new_adapter
is set. On quantised models, with ZeRO-3, unsloth and KTransformers it can never merge: it keeps the adapter, trains it,
and ignores create_new_adapter. With the adapter switched off the reference is then the base WITHOUT supervised
fine-tuning, which is seldom meant.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled

from ledpo_plugin.hparams import FROZEN
from ledpo_plugin.modeling.adapters import OF_REFERENCE as NAME
from ledpo_plugin.modeling.adapters import at_work, is_peft, kept


def why_kept(model: nn.Module, model_args: Any) -> str | None:
    """Return why the host cannot merge the adapter of this loaded model into its base, or None if it can."""
    if getattr(model, "quantization_method", None):
        return "the model is quantised"
    if is_deepspeed_zero3_enabled():
        return "DeepSpeed ZeRO-3 splits the weights"
    if model_args.use_unsloth:
        return "unsloth has its own adapters"
    if getattr(model_args, "use_kt", False):
        return "KTransformers has its own adapters"
    return None


def require_decided(model: nn.Module, model_args: Any, training_args: Any, finetuning_args: Any) -> None:
    """Do nothing if it is clear whether the adapter that is trained on is part of the reference.

    What can be told from the recipe is refused there (`recipes.reference`); a checkpoint that was saved quantised, or
    ZeRO-3 set up by accelerate, shows only once the model is loaded.

    Raises:
        ValueError: the host kept the adapter, and the recipe does not say what the reference is.
    """
    own = finetuning_args
    if not (training_args.do_train and model_args.adapter_name_or_path and is_peft(model)) or own.ref_model is not None:
        return
    why = why_kept(model, model_args)
    if why is None or (own.reference_adapter is not None and not own.create_new_adapter):
        return
    raise ValueError(undecided(why, own.create_new_adapter))


def add_frozen_copy(model: nn.Module, model_args: Any) -> None:
    """Load the adapter that is trained on a second time, frozen and not at work; it is never saved with the policy.

    Raises:
        ValueError: the model has no adapter of its own, or the copy lacks weights.
    """
    if not is_peft(model):
        raise ValueError(
            "reference_adapter: frozen needs a model whose adapter is trained on. Set finetuning_type: lora."
        )
    trained = model.active_adapter
    with kept(model):
        result = model.load_adapter(
            model_args.adapter_name_or_path[-1],
            NAME,
            is_trainable=False,
            subfolder=model_args.adapter_folder,
            cache_dir=model_args.cache_dir,
            revision=model_args.model_revision,
            token=model_args.hf_hub_token,
        )
        model.set_adapter(trained)
        if result.missing_keys:
            raise ValueError(
                f"{Path(model_args.adapter_name_or_path[-1]).name} lacks {result.missing_keys[0]}, so that no frozen "
                "copy of it can be made. Save the adapter again."
            )
        twins = dict(model.named_parameters())
        for name, copy in twins.items():
            if f".{NAME}." in f"{name}.":
                copy.requires_grad_(False)
                twin = twins.get(name.replace(NAME, trained))
                if twin is not None and copy.dtype != twin.dtype:
                    copy.data = copy.data.to(twin.dtype)  # the host may have changed that of what it trains
    model.save_pretrained = partial(model.save_pretrained, selected_adapters=[trained])


@contextmanager
def reference_at_work(model: nn.Module, reference_adapter: str | None) -> Iterator[None]:
    """Turn a policy with an adapter into its reference: the frozen copy at work, or no adapter; then back again."""
    with at_work(model, NAME) if reference_adapter == FROZEN else model.disable_adapter():
        yield


def undecided(why: str, create_new_adapter: bool) -> str:
    """Return what is wrong with a recipe whose adapter the host keeps, and what to do."""
    ignored = "create_new_adapter is ignored, and " if create_new_adapter else ""
    first = "remove create_new_adapter and " if create_new_adapter else ""
    return (
        f"LLaMA-Factory cannot merge the adapter here ({why}): {ignored}the reference would be the base without it. "
        f"Fix: {first}set reference_adapter: frozen (the reference is the model with this adapter as it is now), or "
        "base if the base without it is meant"
    )
