"""The trainers: they wire passes, beta strategy and loss to the host's training loop, its logs and its checkpoints."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_utils import is_fsdp_enabled

from ledpo_plugin.betas import BetaStrategy, Progress
from ledpo_plugin.data.mixture import SFT, Mixed
from ledpo_plugin.data.token_rows import is_streamed
from ledpo_plugin.host.distributed import prepare_reference
from ledpo_plugin.modeling.evaluation_mode import keep_weights
from ledpo_plugin.modeling.fused_lora import fuse_if_same
from ledpo_plugin.modeling.head_file import load_head, save_head
from ledpo_plugin.reference.cache import ReferenceCache
from ledpo_plugin.reference.caching import CacheKeeper
from ledpo_plugin.reference.filling import fill_in_batches
from ledpo_plugin.reference.model import ReferenceModel

from .beta_training import BetaTraining
from .collator import enable_fast_paths
from .columns import ColumnLog, FiniteLosses, mixture_metrics, without_nan
from .host_trainer import HostTrainer, without_dropout
from .loaders import mixture_loader
from .objectives import Objective, PairObjective, UnpairedObjective
from .passes import Passes
from .usage import Cost, Usage


def weights_are_elsewhere() -> bool:
    """Return whether this process holds no whole model before training: ZeRO-3, or FSDP loading on rank 0 alone."""
    return is_deepspeed_zero3_enabled() or is_fsdp_enabled()


class PreferenceTrainer(HostTrainer):
    """What training on pairs and on single answers have in common; `objective_type` says what a batch's loss is."""

    objective_type: type[Objective] = Objective

    def __init__(
        self,
        *,
        model: nn.Module,
        ref_model: nn.Module | None,
        finetuning_args: Any,
        strategy: BetaStrategy,
        head_config: dict[str, Any],
        caches: Sequence[ReferenceCache] = (),
        tokenizer: Any,
        processor: Any = None,
        reference_type: Callable[..., ReferenceModel] = ReferenceModel,
        **kwargs: Any,
    ):
        without_dropout(model, ref_model)
        self.head_config = head_config
        self.caches = list(caches)
        self.columns = ColumnLog()
        self.finite_losses = FiniteLosses()
        self.evaluated: dict[str, dict[str, Tensor]] = {}  # prefix -> the last evaluation's columns, one row an example
        super().__init__(model=model, finetuning_args=finetuning_args, processing_class=tokenizer, **kwargs)
        self.model_accepts_loss_kwargs = False  # the loss is a mean over examples, as in the host's own stages
        self.args.logging_nan_inf_filter = False  # it would hide a NaN behind the average of earlier losses
        self.strategy = strategy.to(self.args.device)
        self.beta_training = BetaTraining(
            self.strategy,
            self.side_optimizer(self.strategy.parameters(), lr_ratio=finetuning_args.beta_lr_ratio),
            device=self.args.device,
        )
        self.add_callback(self.beta_training)
        self.usage = Usage(
            Cost.of(self.model, checkpointing=getattr(self.model, "is_gradient_checkpointing", False)),
            tokens=finetuning_args.budget_tokens,
            flops=finetuning_args.budget_flops,
        )
        self.add_callback(self.usage)
        self.reference = reference_type(
            None if ref_model is None else prepare_reference(self, ref_model),
            adapter=finetuning_args.reference_adapter,
            unwrap=self.accelerator.unwrap_model,
        )
        self.passes = Passes(
            args=finetuning_args,
            strategy=self.strategy,
            reference=self.reference,
            caches=self.caches,
            usage=self.usage,
        )
        self.preference_loss = self.objective_type(
            args=finetuning_args,
            strategy=self.strategy,
            passes=self.passes,
            reward_mean=self.beta_training.reward_mean,
            accelerator=self.accelerator,
            progress=self.progress,
        )
        self.add_host_callbacks(processor)
        if self.caches:
            self.add_callback(CacheKeeper(self.caches, self._log))
            whole_only = self.is_deepspeed_enabled or self.is_fsdp_enabled
            self.data_collator = replace(self.data_collator, whole_caches_only=whole_only)
        self._fuse_lora()
        self._choose_layout()

    def _fuse_lora(self) -> None:
        """Replace PEFT's LoRA layers by faster ones where the model is whole and in one place on each rank."""
        if self.finetuning_args.disable_fused_lora or self.finetuning_args.finetuning_type != "lora":
            return
        if weights_are_elsewhere() or self.is_fsdp_enabled or self.args.n_gpu > 1:
            self._log("Fused LoRA layers: not used where weights are split or the model is replicated by threads.")
            return
        note = fuse_if_same(self.model)
        if note:
            self._log(note)

    def _choose_layout(self) -> None:
        """Nothing to choose; pairs may be laid out faster."""

    # ---- data

    def get_train_dataloader(self):
        if not isinstance(self.train_dataset, Mixed):
            return super().get_train_dataloader()
        return self.accelerator.prepare(
            mixture_loader(self.train_dataset, self.data_collator, self.args, self.finetuning_args)
        )

    # ---- the reference's caches

    def fill_caches(self) -> list[str]:
        """Fill the caches with what the reference says of every row; return a sentence per data set.

        It runs over whole batches of per_device_eval_batch_size rows, see `fill_in_batches`.

        Raises:
            ValueError: something is missing and the model is not whole and in place before training.
            CacheError: a cache cannot be written.
        """
        in_place = next(self.model.parameters()).device.type == self.args.device.type
        if not in_place or self.is_fsdp_enabled or weights_are_elsewhere():
            if all(cache.complete for cache in self.caches):
                return [f"all of {cache.rows} pairs were in {cache.folder}" for cache in self.caches]
            raise ValueError(
                "The reference cache cannot be filled here, as DeepSpeed or FSDP puts the weights in place only when "
                "training starts. Run `ledpo cache RECIPE` in one process first, or remove fill_reference_cache."
            )
        train = self.train_dataset
        train = train.preferences if isinstance(train, Mixed) else train
        sets = [train] if train is not None else []
        evaluated = self.eval_dataset if self.eval_dataset is not None else {}
        sets += list(evaluated.values()) if isinstance(evaluated, dict) else [evaluated]
        return fill_in_batches(
            self.caches,
            sets,
            self._cache_reference,
            batch_size=self.args.per_device_eval_batch_size,
            accelerator=self.accelerator,
            quiet=not self.is_world_process_zero(),
        )

    def _cache_reference(self, rows: list[dict[str, Any]]) -> None:
        batch = self.on_device(self.data_collator(rows))
        with self.compute_loss_context_manager():
            self.passes.reference_rows(self.model, batch, counted=False)

    # ---- loss

    def progress(self) -> Progress:
        """Return how far the run has come."""
        return Progress(self.state.global_step, self.state.max_steps)

    def _loss_and_columns(self, model, inputs, training):
        batch = {key: value for key, value in inputs.items() if not key.startswith(SFT)}
        instructions = {key.removeprefix(SFT): value for key, value in inputs.items() if key.startswith(SFT)}
        loss, columns = self.preference_loss(model, batch, training)
        finite = torch.isfinite(columns["losses"]).all()
        if training:
            self.usage.counts.examples += columns["losses"].shape[0]
        if instructions:
            nll = self.passes.instruction_nll(model, instructions)
            preferences = columns["losses"].shape[0]
            loss = (preferences * loss + nll.sum()) / (preferences + nll.shape[0])
            finite = finite & torch.isfinite(nll).all()
            self.columns.add("sft", {"nll": nll.detach().float()})
        self.finite_losses.note(finite)
        return loss, {key: value.detach().float() for key, value in columns.items()}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, columns = self._loss_and_columns(model, inputs, training=True)
        if self.finetuning_args.freeze_policy and self.state.global_step == 0 and not columns["margin"].any():
            raise ValueError(
                "freeze_policy: true, but every margin of the first batch is exactly 0: the policy equals the "
                "reference, so beta has nothing to learn from. Start from a trained adapter (adapter_name_or_path) "
                "or name a different ref_model."
            )
        self.columns.add("train", columns)
        return (loss, None) if return_outputs else loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        keep_weights(model)  # transformers has put all of it into evaluation mode
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, columns = self._loss_and_columns(model, inputs, training=False)
        names = sorted(columns)
        matrix = torch.stack([columns[name] for name in names], dim=1)
        # Drops the rows that the loader repeats to give every rank the same number of batches.
        matrix = self.accelerator.gather_for_metrics(matrix)
        self.columns.add("eval", dict(zip(names, matrix.unbind(1), strict=True)))
        return loss.detach(), None, None

    # ---- reporting

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            self._require_finite()
            columns = self.columns.take_gathered("train", self.accelerator)
            if columns:
                logs |= without_nan(self.preference_loss.summarise(columns))
            if isinstance(self.train_dataset, Mixed):
                logs |= mixture_metrics(columns, self.columns.take_gathered("sft", self.accelerator))
            logs |= self.usage.logged()
            logs |= self.beta_training.take_metrics()
        super().log(logs, *args, **kwargs)

    def evaluation_loop(self, *args, **kwargs):
        self.columns.take("eval")  # of an evaluation that was broken off
        output = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        self._require_finite()
        columns = self.columns.take("eval")
        self.evaluated[prefix] = columns
        if columns:
            # The mean over examples; the host's own is over batches, of which the last is smaller than the others.
            output.metrics[f"{prefix}_loss"] = columns["losses"].mean().item()
            metrics = without_nan(self.preference_loss.summarise(columns))
            output.metrics.update({f"{prefix}_{key}": value for key, value in metrics.items()})
        return output

    def _require_finite(self) -> None:
        """Stop on a NaN or infinite loss; asked at each log, evaluation and save, not at each step (a device sync)."""
        args = self.finetuning_args
        self.finite_losses.require(
            step=self.state.global_step, settings=f"pref_loss {args.pref_loss}, beta_mode {args.beta_mode}"
        )

    # ---- state

    def save_model(self, output_dir=None, _internal_call=False):
        self._require_finite()
        super().save_model(output_dir, _internal_call=_internal_call)
        if self.args.should_save:  # here, not in _save, which sharded checkpoints never come by
            folder = output_dir or self.args.output_dir
            os.makedirs(folder, exist_ok=True)
            save_head(folder, self.strategy, self.head_config)

    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        self.usage.save(output_dir, self.args.process_index)
        if self.args.should_save:
            self.beta_training.save(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            load_head(checkpoint, self.strategy, self.head_config)
            self.beta_training.load(checkpoint)
            self.usage.load(checkpoint, self.args.process_index)

    def _load_best_model(self):
        super()._load_best_model()
        load_head(self.state.best_model_checkpoint, self.strategy, self.head_config)


class PairTrainer(PreferenceTrainer):
    """Trains on pairs."""

    objective_type = PairObjective

    def _choose_layout(self) -> None:
        args, log = self.finetuning_args, self._log
        data = self.train_dataset if self.train_dataset is not None else self.eval_dataset
        data = next(iter(data.values())) if isinstance(data, dict) else data
        if args.disable_response_logits or is_streamed(data):
            return
        if weights_are_elsewhere():
            log("Logits at response positions only, shared prompts: not used, as the weights are not whole to try it.")
            return
        separate = self.reference.separate
        models = [self.model] if separate is None else [self.model, separate]
        sample = [data[i] for i in range(min(2, len(data)))]
        self.data_collator, notes = enable_fast_paths(
            models, self.data_collator, sample, planned=True, shared=not args.disable_shared_prompt
        )
        for note in notes:
            log(note)


class UnpairedTrainer(PreferenceTrainer):
    """Trains on single answers marked good or bad (KTO)."""

    objective_type = UnpairedObjective
