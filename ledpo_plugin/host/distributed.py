"""Models as the host's launchers wrap them: a reference put in place, a policy made whole."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def prepare_reference(trainer: Any, model: Any) -> Any:
    """Put a separate reference model where the trainer's accelerator wants it, in evaluation mode, never trained."""
    accelerator = trainer.accelerator
    if trainer.is_deepspeed_enabled:
        if getattr(model, "is_loaded_in_8bit", False) or getattr(model, "is_loaded_in_4bit", False):
            return model  # quantized models are on their device already
        prepare = importlib.import_module("trl.models.utils").prepare_deepspeed
        return prepare(model, accelerator)
    if trainer.is_fsdp_enabled:
        if getattr(accelerator, "is_fsdp2", False):
            prepare = importlib.import_module("accelerate.utils.fsdp_utils").fsdp2_prepare_model
            return prepare(accelerator, model)
        return importlib.import_module("trl.models.utils").prepare_fsdp(model, accelerator)
    prepared = accelerator.prepare_model(model, evaluation_mode=True)
    prepared.eval()
    return prepared


@contextmanager
def whole_for_generation(trainer: Any) -> Iterator[Any]:
    """Give the trainer's policy unwrapped and with all its weights in place, so that it can generate."""
    wrapped = trainer.model_wrapped
    if trainer.is_deepspeed_enabled:
        gathered = importlib.import_module("trl.models.utils").unwrap_model_for_generation
        with gathered(wrapped, trainer.accelerator) as model:
            yield model
    elif trainer.is_fsdp_enabled and not getattr(trainer.accelerator, "is_fsdp2", False):
        fsdp = importlib.import_module("torch.distributed.fsdp").FullyShardedDataParallel
        with fsdp.summon_full_params(wrapped, recurse=False):
            yield trainer.accelerator.unwrap_model(wrapped)
    else:
        yield trainer.accelerator.unwrap_model(wrapped)
