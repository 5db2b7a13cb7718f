"""Which data sets of a run have a reference cache, what its key is, and how it is filled and saved while training."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from ledpo_plugin.betas import BetaStrategy
from ledpo_plugin.data.token_rows import has_media, is_streamed
from ledpo_plugin.hparams import FROZEN
from ledpo_plugin.modeling.forward import RowOutput

from .cache import LOGPS, CacheError, ReferenceCache, default_folder, files_hash, fingerprint

ROW, SET = "ledpo_row", "ledpo_set"  # columns: which row of which cached data set
CACHED = "ledpo_cached_"

# What of the host's model arguments changes what a model says of a text, beside those that the key names on its own.
MODEL_SETTINGS = (
    *("adapter_folder", "quantization_method", "quantization_type", "double_quantization"),
    *("resize_vocab", "add_tokens", "add_special_tokens", "new_special_tokens_config", "init_special_tokens"),
    *("mixture_of_depths", "train_from_scratch", "upcast_layernorm", "upcast_lmhead_output"),
    *("enable_liger_kernel", "use_unsloth", "use_kt"),
)
RANDOM_WEIGHTS = ("resize_vocab", "mixture_of_depths", "train_from_scratch")  # drawn while loading, by the seed


def why_not(args: Any, loss: Any, strategy: BetaStrategy, datasets: Mapping[str, Any]) -> str | None:
    """Return why the reference cannot be cached, "" if there is none to cache, or None if it can."""
    if not (loss.needs_reference or strategy.mode.needs_reference):
        return ""
    if args.disable_reference_cache:
        return "disable_reference_cache is true"
    if loss.data != "pairs":
        return "it holds pairs, and this stage trains on single answers"
    if "epsilon_step" in strategy.needs:
        return f"beta_mode {strategy.mode.name} needs the reference's full logits at every step"
    for data in datasets.values():
        if is_streamed(data):
            return "streamed data has no fixed rows"
        if has_media(data):
            return "its key knows tokens only, and the data has images, videos or audio"
    return None


def reference_adapters(model_args: Any, training_args: Any, finetuning_args: Any) -> list[str]:
    """Return the adapters that are part of the reference where it is no model of its own, in their order.

    In training with LoRA the host merges all adapters but the one it goes on training, of which the reference may have
    a frozen copy. Other kinds of tuning are compared with a second copy of the model that training starts from. In
    evaluation the last adapter is what was trained, and the reference is what it was trained against.
    """
    adapters = list(model_args.adapter_name_or_path or [])
    if not training_args.do_train:
        return adapters[:-1]
    whole = finetuning_args.create_new_adapter or finetuning_args.finetuning_type != "lora"
    return adapters if whole or finetuning_args.reference_adapter == FROZEN else adapters[:-1]


def cache_key(model_args: Any, data_args: Any, training_args: Any, finetuning_args: Any, data: Any) -> dict[str, Any]:
    """Return everything that the reference's values of a data set depend on."""
    memory = default_folder()
    frozen = finetuning_args.reference_adapter == FROZEN
    own = finetuning_args.ref_model is not None
    settings = {name: getattr(model_args, name, None) for name in MODEL_SETTINGS}
    if any(settings[name] for name in RANDOM_WEIGHTS):
        settings["seed"] = training_args.seed
    key = {
        "reference": "ref_model" if own else "frozen adapter" if frozen else "without the trained adapter",
        "model": files_hash(finetuning_args.ref_model if own else model_args.model_name_or_path, memory),
        "revision": model_args.model_revision,
        "adapters": files_hash(finetuning_args.ref_model_adapters, memory)
        if own
        else [files_hash(one, memory) for one in reference_adapters(model_args, training_args, finetuning_args)],
        "quantization": finetuning_args.ref_model_quantization_bit if own else model_args.quantization_bit,
        "rope_scaling": str(model_args.rope_scaling),
        "attention": str(model_args.flash_attn),
        "dtype": f"{model_args.compute_dtype} fp16={training_args.fp16} bf16={training_args.bf16}",
        "tokenizer": files_hash(model_args.model_name_or_path, memory),
        "template": [data_args.template, data_args.default_system, data_args.tool_format, data_args.enable_thinking],
        "cutoff_len": data_args.cutoff_len,
        "settings": {name: value for name, value in settings.items() if value},
        "mode": "evaluation",  # nothing random acts in a pass of the reference
        "data": fingerprint(data),
    }
    if finetuning_args.fill_reference_cache:
        key["batches"] = _fixed_batches(training_args, finetuning_args)
    return key


def _fixed_batches(training_args: Any, finetuning_args: Any) -> dict[str, Any]:
    """Return what decides the last bits of values that come from fixed batches: they have a cache of their own."""
    return {
        "size": training_args.per_device_eval_batch_size,
        "layout": [not finetuning_args.disable_shared_prompt, not finetuning_args.disable_response_logits],
        "threads": None if torch.cuda.is_available() else torch.get_num_threads(),
        "torch": torch.__version__,
    }


def open_caches(
    datasets: Mapping[str, Any],
    strategy: BetaStrategy,
    head_source: str | None,
    hidden_size: int,
    key_of: Callable,
    folder: Path | None = None,
) -> tuple[dict[str, Any], list[ReferenceCache]]:
    """Return the data sets with columns that say where each row's values are, and the caches they are in.

    Args:
        datasets: name -> tokenized data set.
        strategy: whose needs decide what is kept besides log-probabilities.
        head_source: "reference" if the strategy reads the reference's states.
        hidden_size: width of the hidden state.
        key_of: data set -> key.
        folder: where caches are kept; None: where they always are.
    """
    fields: dict[str, tuple[int, ...]] = {LOGPS: (2,)}
    if head_source == "reference":
        fields |= {"hidden": (hidden_size,)} if "hidden" in strategy.needs else {}
        fields |= {"prompt_nll": ()} if "prompt_nll" in strategy.needs else {}
    if "reference_entropy" in strategy.needs:
        fields["entropy"] = (2,)
    marked, caches = {}, []
    for number, (name, data) in enumerate(datasets.items()):
        caches.append(ReferenceCache(folder or default_folder(), key_of(data), len(data), fields))
        marked[name] = data.add_column(ROW, list(range(len(data)))).add_column(SET, [number] * len(data))
    return marked, caches


def to_output(batch: Mapping[str, Any]) -> RowOutput | None:
    """Return the reference's results that the collator found in the cache, or None."""
    found = {key.removeprefix(CACHED): value for key, value in batch.items() if key.startswith(CACHED)}
    if not found:
        return None
    return RowOutput(
        logps=_rows(found[LOGPS]),
        lengths=None,
        hidden=found.get("hidden"),
        prompt_nll=found.get("prompt_nll"),
        entropy=_rows(found["entropy"]) if "entropy" in found else None,
    )


def to_values(output: RowOutput, size: int) -> dict[str, Tensor]:
    """Return what a cache keeps of a pass of the reference over `size` pairs."""
    values = {LOGPS: torch.stack(output.logps.chunk(2), dim=1)}
    if output.hidden is not None:
        values["hidden"] = output.hidden[:size]
    if output.prompt_nll is not None:
        values["prompt_nll"] = output.prompt_nll[:size]
    if output.entropy is not None:
        values["entropy"] = torch.stack(output.entropy.chunk(2), dim=1)
    return values


def _rows(columns: Tensor) -> Tensor:
    return torch.cat(columns.unbind(1))


class CacheKeeper(TrainerCallback):
    """Brings values from the device at each log, and writes them at each epoch, checkpoint, evaluation and the end."""

    def __init__(self, caches: list[ReferenceCache], log: Callable[[str], None]):
        self.caches = caches
        self.log = log

    def _save(self) -> None:
        for cache in self.caches:
            try:
                cache.save()
            except CacheError as error:  # what was computed is right all the same: training goes on
                self.log(f"{error} Training goes on without writing it.")

    def on_log(self, args, state, control, **kwargs):
        """Collect."""
        for cache in self.caches:
            cache.collect()

    def on_epoch_end(self, args, state, control, **kwargs):
        """Save."""
        self._save()

    def on_save(self, args, state, control, **kwargs):
        """Save."""
        self._save()

    def on_evaluate(self, args, state, control, **kwargs):
        """Save."""
        self._save()

    def on_train_end(self, args, state, control, **kwargs):
        """Save."""
        self._save()


def describe(caches: list[ReferenceCache]) -> list[str]:
    """Return sentences on what was found."""
    found = sum(int(cache.filled.sum()) for cache in caches)
    rows = sum(cache.rows for cache in caches)
    notes = [cache.note for cache in caches if cache.note]
    folder = Path(caches[0].folder).parent if caches else None
    return [*notes, f"Reference cache: {found} of {rows} pairs are in {folder}; the others are added as they come."]
