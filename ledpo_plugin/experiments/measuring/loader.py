"""What is measured, loaded: tokenizer, data sets and a trainer of pairs, by the recipe of a run.

Every run is measured by the same yardstick, whatever its loss: the policy against the model that it started from.
"""

import copy
import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from transformers import set_seed

from ledpo_plugin.data.loading import load_data
from ledpo_plugin.data.unusable import drop_unusable
from ledpo_plugin.host.arguments import DRAWN
from ledpo_plugin.host.contract import TUNER, host_api
from ledpo_plugin.hparams import FROZEN
from ledpo_plugin.modeling.evaluation_mode import in_evaluation_mode
from ledpo_plugin.modeling.head_file import build_strategy, head_config
from ledpo_plugin.modeling.logps import IGNORE
from ledpo_plugin.modeling.shared_prompt import Costs
from ledpo_plugin.reference.adapter import add_frozen_copy
from ledpo_plugin.reference.caching import cache_key, open_caches
from ledpo_plugin.reference.model import ReferenceModel
from ledpo_plugin.training.collator import PreferenceCollator
from ledpo_plugin.training.trainer import PairTrainer
from ledpo_plugin.workflow import padded_collator

BATCH = 8  # examples at a time; fixed, as the last bits depend on it

# The recipe keys that decide how a model is built and how data is read; those of ModelArguments all count.
DATA_KEYS = (
    *("template", "default_system", "tool_format", "enable_thinking", "preserve_thinking", "cutoff_len"),
    *("dataset_dir", "media_dir", "overwrite_cache", "preprocessing_batch_size", "preprocessing_num_workers"),
    *("ignore_pad_token_for_loss", "data_shared_file_system"),
)
TUNING_KEYS = (
    *("finetuning_type", "create_new_adapter", "additional_target", "use_llama_pro", "pure_bf16"),
    *("lora_rank", "lora_alpha", "lora_target", "use_rslora", "use_dora"),
    *("oft_rank", "oft_block_size", "oft_target", "module_dropout"),
    *("freeze_trainable_layers", "freeze_trainable_modules", "freeze_extra_modules"),
    *("freeze_vision_tower", "freeze_multi_modal_projector", "freeze_language_model"),
)
PRECISION_KEYS = ("bf16", "fp16", "tf32", "use_cpu")
LAYOUT_KEYS = ("disable_shared_prompt", "disable_response_logits", "disable_fused_lora", "disable_reference_cache")
REFERENCE_KEYS = ("ref_model", "ref_model_adapters", "ref_model_quantization_bit", "reference_adapter")


def building_keys() -> tuple[str, ...]:
    """Return the recipe keys that decide what the model says of a text before training."""
    return (*_model_keys(), *DATA_KEYS, *TUNING_KEYS, *PRECISION_KEYS)


def _model_keys() -> tuple[str, ...]:
    return tuple(item.name for item in fields(host_api().ModelArguments) if item.init)


def measuring_recipe(recipe: Mapping[str, Any], folder: Path, reference_model: bool) -> dict[str, Any]:
    """Return a recipe that builds the run's model, and compares pairs by their log-ratios alone.

    Args:
        recipe: of the run, whatever its stage.
        folder: an output folder that nothing is kept in.
        reference_model: whether a reference model that the recipe names is needed (by a learned beta).

    Raises:
        ValueError: the start cannot be told from the trained model.
    """
    if recipe.get("pissa_init"):
        raise ValueError(
            "pissa_init: true rewrites the base weights at random, so a checkpoint's adapter does not fit a model "
            "that is loaded anew, and the run cannot be measured. Remove pissa_init."
        )
    drawn = [key for key in DRAWN if recipe.get(key)]
    if drawn:
        raise ValueError(
            f"{drawn[0]} has weights drawn at random while a model loads, so that the start of a run cannot be loaded "
            f"anew, and the run cannot be measured. Save the model with its new weights first, and remove {drawn[0]}."
        )
    kept = {*building_keys(), *LAYOUT_KEYS, *(REFERENCE_KEYS if reference_model else ())}
    return {key: value for key, value in recipe.items() if key in kept and value is not None} | {
        "stage": "ledpo",
        "pref_loss": "sigmoid",
        "beta_mode": "fixed",
        "pref_beta": 0.1,
        "output_dir": str(folder),
        "per_device_eval_batch_size": BATCH,
        "disable_gradient_checkpointing": True,
        "report_to": "none",
        "seed": 0,
    }


class StartOfTraining(ReferenceModel):
    """The model that training started from as the reference, whatever reference the run itself was trained against."""

    def __init__(self, *args: Any, adapter_is_new: bool, **kwargs: Any) -> None:
        """Take what `ReferenceModel` takes, and whether the run's adapter began as nothing."""
        super().__init__(*args, **kwargs)
        self.adapter_is_new = adapter_is_new

    @contextmanager
    def at_work(self, policy: nn.Module) -> Iterator[nn.Module]:
        """Give the start: the policy, whose adapter is switched off where it is new."""
        inner = self.unwrap(policy)
        with inner.disable_adapter() if self.adapter_is_new else nullcontext(), in_evaluation_mode(policy):
            yield policy

    @contextmanager
    def trained_against(self, policy: nn.Module) -> Iterator[nn.Module]:
        """Give the reference that training had, which a beta head may read."""
        if self.separate is None and not hasattr(policy, "disable_adapter"):
            yield policy
            return
        with super().at_work(policy) as reference:
            yield reference


@dataclass(frozen=True)
class HostArguments:
    """The host's arguments of a measurement."""

    model: Any
    data: Any
    training: Any
    finetuning: Any


@dataclass(frozen=True)
class Loaded:
    """What is measured: a model within its trainer, its tokenizer, and data sets by name."""

    arguments: HostArguments
    tokenizer_module: dict[str, Any]
    template: Any
    data: dict[str, Any]
    dropped: dict[str, int]  # rows of each data set that cannot be used
    trainer: PairTrainer
    log: Callable[[str], None]

    @property
    def tokenizer(self) -> Any:
        """The run's tokenizer."""
        return self.tokenizer_module["tokenizer"]

    @property
    def model(self) -> nn.Module:
        """The model, with the weights that were put in last."""
        return self.trainer.model

    @property
    def base_model(self) -> nn.Module:
        """The model without PEFT's wrapper, which can generate."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def pad_id(self) -> int:
        """The id that padding has."""
        return self.tokenizer.pad_token_id or 0

    def prompt_ids(self, name: str) -> list[list[int]]:
        """Return the tokens of each prompt of a data set of pairs."""
        rows = self.data[name]
        return [
            ids[: next(place for place, label in enumerate(labels) if label != IGNORE)]
            for ids, labels in zip(rows["chosen_input_ids"], rows["chosen_labels"], strict=True)
        ]


def load(
    recipe: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    folder: Path,
    log: Callable[[str], None],
    *,
    reference_model: bool,
) -> Loaded:
    """Load tokenizer, data and model of a run, as training builds them.

    Args:
        recipe: of the run.
        evaluation: pairs, instructions, generations.
        folder: for temporary files.
        log: called with sentences.
        reference_model: see `measuring_recipe`.

    Raises:
        ValueError: a data set is unknown, of the wrong kind, or has no row that can be used.
    """
    host = host_api()
    parse = importlib.import_module(TUNER).get_train_args
    arguments = HostArguments(*parse(measuring_recipe(recipe, folder, reference_model))[:4])
    set_seed(0)
    tokenizer_module = host.load_tokenizer(arguments.model)
    template = host.get_template(tokenizer_module["tokenizer"], arguments.data)
    generations = evaluation.get("generations")
    measured = list(dict.fromkeys(evaluation.get("pairs") or ()))
    also = [generations["prompts"]] if generations else []
    wanted = [(name, "pairs") for name in dict.fromkeys([*measured, *also])]
    wanted += [(name, "instructions") for name in evaluation.get("instructions") or ()]
    data, dropped = {}, {}
    for name, kind in wanted:
        data[name], dropped[name] = _load_data(name, kind, arguments, template, tokenizer_module, log)
    model = host.load_model(tokenizer_module["tokenizer"], arguments.model, arguments.finetuning, is_trainable=True)
    pairs = {name: data[name] for name in measured}
    trainer = _build_trainer(model, pairs, arguments, template, tokenizer_module, folder)
    trainer.model.eval()
    return Loaded(arguments, tokenizer_module, template, data, dropped, trainer, log)


def _load_data(
    name: str,
    kind: str,
    arguments: HostArguments,
    template: Any,
    tokenizer_module: dict[str, Any],
    log: Callable[[str], None],
) -> tuple[Any, int]:
    """Return the usable rows of a data set, and how many others it has."""
    data_args = copy.deepcopy(arguments.data)
    data_args.dataset, data_args.eval_dataset, data_args.eval_on_each_dataset = None, [name], True
    stage = "rm" if kind == "pairs" else "sft"
    try:
        rows = load_data(
            kind,
            log,
            stage=stage,
            template=template,
            model_args=arguments.model,
            data_args=data_args,
            training_args=arguments.training,
            tokenizer_module=tokenizer_module,
        )["eval_dataset"][name]
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        raise ValueError(
            f"The evaluation's {kind} {name!r} cannot be loaded from {data_args.dataset_dir} ({error}). Name a data "
            f"set of {kind} that dataset_info.json there defines, and see that its file is there."
        ) from error
    usable = drop_unusable(rows, name, kind, log)
    return usable, len(rows) - len(usable)


def _build_trainer(
    model: nn.Module,
    pairs: dict[str, Any],
    arguments: HostArguments,
    template: Any,
    tokenizer_module: dict[str, Any],
    folder: Path,
) -> PairTrainer:
    finetuning_args, model_args = arguments.finetuning, arguments.model
    config = head_config(
        finetuning_args,
        beta0=finetuning_args.pref_beta,
        loss="sigmoid",
        hidden_size=model.config.get_text_config().hidden_size,
        model=model_args.model_name_or_path,
        seed=0,
    )
    strategy = build_strategy(config)
    # What is not to be kept, or has a key that does not tell all, is kept for this measurement only.
    private = finetuning_args.disable_reference_cache or any(_has_media(data) for data in pairs.values())
    key_of = partial(_start_key, arguments)
    marked, caches = open_caches(pairs, strategy, None, 0, key_of, folder / "cache" if private else None)
    collator = PreferenceCollator(
        padded_collator(host_api().PairCollator, arguments.data, model, template, tokenizer_module),
        data="pairs",
        pad_id=tokenizer_module["tokenizer"].pad_token_id or 0,
        costs=Costs.of(model.config),
        caches=caches,
    )
    ref_model = None
    if finetuning_args.reference_adapter == FROZEN:
        add_frozen_copy(model, model_args)
    if finetuning_args.ref_model is not None:
        ref_model = host_api().create_ref_model(model_args, finetuning_args)
    goes_on = model_args.adapter_name_or_path and not finetuning_args.create_new_adapter
    adapter_is_new = hasattr(model, "disable_adapter") and not goes_on
    return PairTrainer(
        model=model,
        ref_model=ref_model,
        args=arguments.training,
        finetuning_args=finetuning_args,
        strategy=strategy,
        head_config=config,
        caches=caches,
        reference_type=partial(StartOfTraining, adapter_is_new=adapter_is_new),
        data_collator=collator,
        eval_dataset=marked or None,
        **tokenizer_module,
    )


def _start_key(arguments: HostArguments, data: Any) -> dict[str, Any]:
    """Return the key of what the start says: all adapters of the recipe are part of it."""
    tuning, training = copy.copy(arguments.finetuning), copy.copy(arguments.training)
    tuning.ref_model, tuning.create_new_adapter, tuning.fill_reference_cache = None, True, True
    tuning.reference_adapter = None
    training.do_train = True  # it is built as for training
    key = cache_key(arguments.model, arguments.data, training, tuning, data)
    return key | {"measured": arguments.finetuning.finetuning_type}


def _has_media(data: Any) -> bool:
    return any(data[0].get(kind) for kind in ("images", "videos", "audios"))
