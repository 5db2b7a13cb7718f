"""From the host's arguments to a finished run: tokenizer, data, model, reference, strategy, trainer, results."""

import copy
import importlib
from typing import Any

from ledpo_plugin.common.run_record import write_record
from ledpo_plugin.data.cut_media import media_fault
from ledpo_plugin.data.loading import load_data
from ledpo_plugin.data.mixture import Mixed
from ledpo_plugin.data.row_formats import INSTRUCTIONS
from ledpo_plugin.data.token_rows import is_streamed
from ledpo_plugin.data.unusable import drop_unusable
from ledpo_plugin.host.contract import TUNER, host_api
from ledpo_plugin.host.data import templates_kept
from ledpo_plugin.modeling.head_file import build_strategy, head_config, load_head
from ledpo_plugin.modeling.shared_prompt import Costs
from ledpo_plugin.reference.adapter import add_frozen_copy, require_decided
from ledpo_plugin.reference.cache import ReferenceCache
from ledpo_plugin.reference.caching import cache_key, describe, open_caches, reference_adapters, why_not
from ledpo_plugin.training.collator import PreferenceCollator
from ledpo_plugin.training.trainer import PairTrainer, PreferenceTrainer, UnpairedTrainer
from ledpo_plugin.training.usage import write_usage

from .facts import BETAS, LOSSES
from .hparams import FROZEN
from .rewards._models import same_tokens
from .rl.build import Arguments, build_rollouts, prompt_data
from .rl.trainer import AlternateTrainer, PpoTrainer
from .stages import STAGES, Stage

PLOTTED = ("loss", "rewards/accuracies", "beta/mean")


def padded_collator(kind, data_args, model, template, tokenizer_module):
    """Return one of the host's collators."""
    host = host_api()
    pad = tokenizer_module["tokenizer"].pad_token_id
    return kind(
        template=template,
        model=model,
        pad_to_multiple_of=8,
        label_pad_token_id=host.IGNORE_INDEX if data_args.ignore_pad_token_for_loss else pad,
        **tokenizer_module,
    )


def _collator(run: Arguments, loss, strategy, model, caches, collate_sft) -> PreferenceCollator:
    host = host_api()
    kind = host.PairCollator if loss.data == "pairs" else host.UnpairedCollator
    return PreferenceCollator(
        collate=padded_collator(kind, run.data_args, model, run.template, run.tokenizer_module),
        data=loss.data,
        collate_sft=collate_sft,
        pad_id=run.tokenizer.pad_token_id or 0,
        costs=Costs.of(model.config),
        prompts="prompt_nll" in strategy.needs,
        caches=caches,
    )


def _instructions(model_args, data_args, training_args, template, tokenizer_module, names: str, log) -> Any:
    """Return the tokenized instructions of `sft_dataset`."""
    own = copy.deepcopy(data_args)
    own.dataset, own.eval_dataset, own.val_size = [name.strip() for name in names.split(",")], None, 0.0
    own.mix_strategy, own.interleave_probs = "concat", None
    own.tokenized_path = None  # it is the preferences'
    data = load_data(
        INSTRUCTIONS,
        log,
        stage="sft",
        template=template,
        model_args=model_args,
        data_args=own,
        training_args=training_args,
        tokenizer_module=tokenizer_module,
    )["train_dataset"]
    return drop_unusable(data, "instruction", "instructions", log)


def _caches(
    dataset_module, model_args, data_args, training_args, finetuning_args, loss, strategy, config, log
) -> list[ReferenceCache]:
    """Open a reference cache per data set and mark the data sets' rows; or say why there is none."""
    train, evaluated = dataset_module.get("train_dataset"), dataset_module.get("eval_dataset")
    several = isinstance(evaluated, dict)
    datasets = {} if train is None else {"train": train}
    datasets |= {f"eval {name}": data for name, data in (evaluated if several else {"": evaluated}).items() if data}
    reason = why_not(finetuning_args, loss, strategy, datasets)
    if reason is not None:
        if reason:
            log(f"Reference cache: not used, as {reason}.")
        return []
    marked, caches = open_caches(
        datasets,
        strategy,
        finetuning_args.beta_head_source,
        config["hidden_size"],
        lambda data: cache_key(model_args, data_args, training_args, finetuning_args, data),
    )
    if "train" in marked:
        dataset_module["train_dataset"] = marked.pop("train")
    if evaluated is not None:
        parts = {name.removeprefix("eval "): data for name, data in marked.items()}
        dataset_module["eval_dataset"] = parts if several else parts[""]
    for note in describe(caches):
        log(note)
    return caches


def _require_same_tokens(run: Arguments) -> None:
    """Do nothing if a reference model of its own reads the tokens that the policy reads; no weights are loaded.

    Raises:
        ValueError: its tokenizer differs.
    """
    where = run.finetuning_args.ref_model
    args = host_api().ModelArguments.copyfrom(run.model_args, model_name_or_path=where, adapter_name_or_path=None)
    tokenizer = host_api().load_tokenizer(args)["tokenizer"]
    with templates_kept():
        host_api().get_template(tokenizer, copy.deepcopy(run.data_args))  # adds the template's own tokens
    different = same_tokens(run.tokenizer, tokenizer)
    if different:
        raise ValueError(
            f"ref_model: {where} has another tokenizer than {run.model_args.model_name_or_path}: {different}. It would "
            "read other text than the policy. Name a model with the same tokenizer, such as one that was trained from "
            "the same base."
        )


def _require_same_vocabulary(model, reference, beta_mode: str) -> None:
    """Do nothing if the logits of policy and reference can be mixed.

    Raises:
        ValueError: they differ in number.
    """
    rows, reference_rows = (layer.get_output_embeddings().weight.shape[0] for layer in (model, reference))
    if rows != reference_rows:
        raise ValueError(
            f"beta_mode {beta_mode} mixes the logits of policy and reference, and they have {rows} and "
            f"{reference_rows}. Name a ref_model with the same vocabulary, or choose another beta_mode."
        )


def _reference(model_args, training_args, finetuning_args, size: int, needed: bool) -> Any | None:
    """Return a separate reference model, or None where there is none or the adapter switched off is the reference.

    Args:
        model_args: of the host, as the next two.
        training_args: .
        finetuning_args: .
        size: of the tokenizer.
        needed: whether any is.

    Raises:
        ValueError: evaluation alone, of a model without an adapter, with no `ref_model`: margins would all be 0; or
            the vocabulary of `ref_model` is too small.
    """
    if not needed:
        return None
    host = host_api()
    if training_args.do_train or finetuning_args.ref_model is not None:
        reference = host.create_ref_model(model_args, finetuning_args)
        if finetuning_args.ref_model is not None:
            rows = reference.get_input_embeddings().weight.shape[0]
            if 0 < rows < size:  # 0: on this rank DeepSpeed ZeRO-3 holds no part of it
                raise ValueError(
                    f"ref_model: {finetuning_args.ref_model} has a vocabulary of {rows}, and the tokenizer has {size} "
                    "tokens. Name a model with the same tokenizer and vocabulary."
                )
        return reference
    if not model_args.adapter_name_or_path:
        raise ValueError(
            "do_train: false without ref_model or adapter_name_or_path: the model would be compared with itself and "
            "every margin would be 0. Set ref_model to the model that training started from."
        )
    # For evaluation the host merges the adapter, so that it cannot be switched off: the start is loaded anew.
    merged = ",".join(reference_adapters(model_args, training_args, finetuning_args)) or None
    base_args = host.ModelArguments.copyfrom(model_args, adapter_name_or_path=merged)
    tokenizer = host.load_tokenizer(base_args)["tokenizer"]
    return host.load_model(tokenizer, base_args, host.FinetuningArguments(), is_trainable=False)


def _plot_keys(dataset_module: dict[str, Any]) -> list[str]:
    evaluated = dataset_module.get("eval_dataset")
    prefixes = [f"eval_{name}_" for name in evaluated] if isinstance(evaluated, dict) else ["eval_"]
    keys = list(PLOTTED)
    if evaluated is not None:
        keys += [prefix + key for prefix in prefixes for key in PLOTTED]
    return keys


def build_trainer(
    model_args, data_args, training_args, finetuning_args, callbacks=None
) -> tuple[PreferenceTrainer, dict[str, Any]]:
    """Load tokenizer, data, model, reference and strategy as the recipe says; return the trainer and its data."""
    host = host_api()
    log = host.logging.get_logger("llamafactory.ledpo").info_rank0
    loss, stage = LOSSES[finetuning_args.pref_loss], STAGES[finetuning_args.ledpo_stage]
    log(
        f"LEDPO stage {finetuning_args.ledpo_stage}: pref_loss {loss.name}, beta_mode {finetuning_args.beta_mode}; "
        f"values left out of the recipe and resolved to: {finetuning_args.ledpo_added}."
    )

    tokenizer_module = host.load_tokenizer(model_args)
    template = host.get_template(tokenizer_module["tokenizer"], data_args)
    run = Arguments(model_args, data_args, training_args, finetuning_args, tokenizer_module, template, log)
    dataset_module = prompt_data(run) if stage.data == "prompts" else _preferences(run, loss)
    mode = BETAS[finetuning_args.beta_mode]
    needs_reference = loss.needs_reference or mode.needs_reference or stage.rollouts
    if needs_reference and finetuning_args.ref_model is not None:
        _require_same_tokens(run)
    model = host.load_model(run.tokenizer, model_args, finetuning_args, training_args.do_train)
    reference = _reference(model_args, training_args, finetuning_args, len(run.tokenizer), needs_reference)

    reads_reference = reference is not None and finetuning_args.beta_head_source == "reference"
    read = reference if reads_reference else model
    config = head_config(
        finetuning_args,
        beta0=finetuning_args.pref_beta,
        loss=loss.name,
        hidden_size=read.config.get_text_config().hidden_size,
        model=model_args.model_name_or_path,
        seed=training_args.seed,
    )
    strategy = build_strategy(config)
    if finetuning_args.beta_head_path:
        load_head(finetuning_args.beta_head_path, strategy, config)
        log(f"Beta starts from {finetuning_args.beta_head_path}.")
    if "epsilon_step" in strategy.needs and reference is not None:
        _require_same_vocabulary(model, reference, finetuning_args.beta_mode)
    if needs_reference:
        require_decided(model, model_args, training_args, finetuning_args)
    if finetuning_args.reference_adapter == FROZEN:
        add_frozen_copy(model, model_args)
        log(f"The reference is the model with the adapter {model_args.adapter_name_or_path[-1]} as it is now.")
    extra: dict[str, Any] = {}
    if stage.rollouts:
        prompts = dataset_module["train_dataset"] if stage.data == "prompts" else None
        extra["rollouts"] = build_rollouts(run, model, prompts)

    caches = []
    if stage.data != "prompts":
        caches = _caches(
            dataset_module, model_args, data_args, training_args, finetuning_args, loss, strategy, config, log
        )
    collate_sft = None
    if training_args.do_train and finetuning_args.sft_dataset and finetuning_args.sft_ratio > 0:
        instructions = _instructions(
            model_args, data_args, training_args, template, tokenizer_module, finetuning_args.sft_dataset, log
        )
        dataset_module["train_dataset"] = Mixed(dataset_module["train_dataset"], instructions)
        collate_sft = padded_collator(host.InstructionCollator, data_args, model, template, tokenizer_module)
    trainer = _trainer_class(stage)(
        model=model,
        ref_model=reference,
        args=training_args,
        finetuning_args=finetuning_args,
        strategy=strategy,
        head_config=config,
        caches=caches,
        data_collator=_collator(run, loss, strategy, model, caches, collate_sft),
        callbacks=callbacks,
        **extra,
        **dataset_module,
        **tokenizer_module,
    )
    return trainer, dataset_module


def _trainer_class(stage: Stage) -> type[PreferenceTrainer]:
    if stage.rollouts:
        return PpoTrainer if stage.data == "prompts" else AlternateTrainer
    return PairTrainer if stage.data == "pairs" else UnpairedTrainer


def _preferences(run: Arguments, loss) -> dict[str, Any]:
    """Return the tokenized preferences, without rows that cannot train."""
    host_stage = "rm" if loss.data == "pairs" else "kto"  # what the host's data loading calls such data
    found = load_data(
        loss.data,
        run.log,
        stage=host_stage,
        template=run.template,
        model_args=run.model_args,
        data_args=run.data_args,
        training_args=run.training_args,
        tokenizer_module=run.tokenizer_module,
    )
    host = host_api()
    marks = {"images": host.IMAGE_PLACEHOLDER, "videos": host.VIDEO_PLACEHOLDER, "audios": host.AUDIO_PLACEHOLDER}
    processor = run.tokenizer_module.get("processor")
    media = media_fault(run.template, run.tokenizer_module["tokenizer"], processor, run.data_args.cutoff_len, marks)
    for split in ("train_dataset", "eval_dataset"):
        if found.get(split) is not None:
            name = split.removesuffix("_dataset")
            found[split] = drop_unusable(found[split], name, loss.data, run.log, media if processor else None)
    return found


def fill_caches(recipe: dict[str, Any]) -> list[str]:
    """Compute the reference's values of a recipe's data sets, with a progress bar; return a sentence per data set.

    Raises:
        ValueError: the recipe's reference cannot be cached; the message says why.
    """
    tuner = importlib.import_module(TUNER)
    model_args, data_args, training_args, finetuning_args, _ = tuner.get_train_args(recipe)
    trainer, _ = build_trainer(model_args, data_args, training_args, finetuning_args)
    if not trainer.caches:
        raise ValueError("This recipe has no reference to cache, or one that cannot be cached (see the log above).")
    return trainer.fill_caches()


def _fill_first(trainer: PreferenceTrainer) -> None:
    """Fill the caches before training, or say that there are none."""
    log = host_api().logging.get_logger("llamafactory.ledpo").info_rank0
    if not trainer.caches:
        log("fill_reference_cache: nothing is filled, as this run keeps no reference cache.")
        return
    for note in trainer.fill_caches():
        log(f"Reference cache filled before the first step: {note}.")


def run_ledpo(model_args, data_args, training_args, finetuning_args, callbacks=None) -> None:
    """Train and evaluate as the recipe says; called by LLaMA-Factory in place of its own DPO workflow."""
    host = host_api()
    loss = LOSSES[finetuning_args.pref_loss]
    trainer, dataset_module = build_trainer(model_args, data_args, training_args, finetuning_args, callbacks)
    if trainer.is_world_process_zero():
        write_record(
            training_args.output_dir,
            recipe=finetuning_args.ledpo_recipe,
            added=finetuning_args.ledpo_added,
            stage=finetuning_args.ledpo_stage,
            pref_loss=loss.name,
            beta_mode=finetuning_args.beta_mode,
            model_name_or_path=model_args.model_name_or_path,
            adapter_name_or_path=model_args.adapter_name_or_path,
            ref_model=finetuning_args.ref_model,
            reference_adapter=finetuning_args.reference_adapter,
            template=data_args.template,
            finetuning_type=finetuning_args.finetuning_type,
            seed=training_args.seed,
            world_size=training_args.world_size,
            train_examples=_size(dataset_module.get("train_dataset")),
        )

    if training_args.do_train:
        if finetuning_args.fill_reference_cache:
            _fill_first(trainer)
        result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
        trainer.save_model()
        if finetuning_args.include_effective_tokens_per_second and not STAGES[finetuning_args.ledpo_stage].rollouts:
            data = dataset_module["train_dataset"]
            result.metrics["effective_tokens_per_sec"] = host.calculate_tps(
                data.preferences if isinstance(data, Mixed) else data,
                result.metrics,
                stage="rm" if loss.data == "pairs" else "sft",
            )
        trainer.log_metrics("train", result.metrics)
        trainer.save_metrics("train", result.metrics)
        trainer.save_state()
        usage = trainer.usage.summary(trainer.state.global_step)
        if trainer.is_world_process_zero():
            write_usage(training_args.output_dir, usage)
        if trainer.is_world_process_zero() and finetuning_args.plot_loss:
            host.plot_loss(training_args.output_dir, keys=_plot_keys(dataset_module))

    if training_args.do_eval:
        metrics = trainer.evaluate(metric_key_prefix="eval")
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)

    host.create_modelcard_and_push(trainer, model_args, data_args, training_args, finetuning_args)


def _size(dataset: Any) -> int | None:
    return None if dataset is None or is_streamed(dataset) else len(dataset)
