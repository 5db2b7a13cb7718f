"""The trainers: they run the passes, ask the strategy for beta, the loss for its values, and wire both to the host."""

import math
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import Trainer
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_utils import is_fsdp_enabled

from ledpo_plugin.betas import BetaFeatures, BetaOutput, BetaStrategy, Progress, epsilon_steps
from ledpo_plugin.data.mixture import SFT, Mixed, MixtureBatches
from ledpo_plugin.data.token_rows import is_streamed
from ledpo_plugin.host.contract import host_api
from ledpo_plugin.host.distributed import prepare_reference
from ledpo_plugin.losses import LOSSES, PairLogps, UnpairedLogps, function_of
from ledpo_plugin.modeling.evaluation_mode import in_evaluation_mode, keep_weights
from ledpo_plugin.modeling.forward import Mixture, RowOutput, forward_rows, kinds_of_tokens, predictions
from ledpo_plugin.modeling.fused_lora import fuse_if_same
from ledpo_plugin.modeling.head_file import load_head, save_head
from ledpo_plugin.modeling.logit_positions import PREFIX
from ledpo_plugin.reference.adapter import reference_at_work
from ledpo_plugin.reference.cache import ReferenceCache
from ledpo_plugin.reference.caching import ROW, SET, CacheKeeper, to_output, to_values

from .beta_training import BetaTraining
from .collator import enable_fast_paths
from .metrics import pair_metrics, unpaired_metrics
from .side_optimizer import mean_over_ranks
from .usage import Cost, Usage


class NonFiniteLoss(FloatingPointError):
    """The loss of some example became NaN or infinite."""


def _split(rows: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Return the chosen and the rejected half of a `[2B]` tensor."""
    return (None, None) if rows is None else tuple(rows.chunk(2))


def _without_dropout(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def weights_are_elsewhere() -> bool:
    """Return whether this process holds no whole model before training: ZeRO-3, or FSDP loading on rank 0 alone."""
    return is_deepspeed_zero3_enabled() or is_fsdp_enabled()


def _read_streams_everywhere(options: Mapping[str, Any]) -> None:
    """Have every process read streamed data itself: batches sent from the first one are cut, and pixels with them."""
    sets = [options.get("train_dataset"), options.get("eval_dataset")]
    sets = [part for data in sets if data is not None for part in (data.values() if isinstance(data, dict) else [data])]
    config = options["args"].accelerator_config
    if any(map(is_streamed, sets)) and config.dispatch_batches is None:
        config.dispatch_batches = False


class PreferenceTrainer(Trainer):
    """What training on pairs and on single answers have in common; subclasses say what a batch's loss is."""

    summarise = staticmethod(pair_metrics)

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
        **kwargs: Any,
    ):
        _without_dropout(model)
        if ref_model is not None:
            _without_dropout(ref_model)
        self.finetuning_args = finetuning_args
        self.loss = LOSSES[finetuning_args.pref_loss]
        self.loss_function = function_of(self.loss.name)
        self.head_config = head_config
        self.caches = list(caches)
        self._columns: dict[str, list[dict[str, Tensor]]] = defaultdict(list)
        self.evaluated: dict[str, dict[str, Tensor]] = {}  # prefix -> the last evaluation's columns, one row an example
        self._nonfinite: Tensor | None = None
        self._counting = False
        _read_streams_everywhere(kwargs)
        super().__init__(model=model, processing_class=tokenizer, **kwargs)
        self.model_accepts_loss_kwargs = False  # the loss is a mean over examples, as in the host's own stages
        self.args.logging_nan_inf_filter = False  # it would hide a NaN behind the average of earlier losses
        self.strategy = strategy.to(self.args.device)
        self.beta_training = BetaTraining(
            self.strategy,
            lr_ratio=finetuning_args.beta_lr_ratio,
            max_grad_norm=self.args.max_grad_norm,
            trainer=self,
        )
        self.add_callback(self.beta_training)
        self.usage = Usage(
            Cost.of(self.model, checkpointing=getattr(self.model, "is_gradient_checkpointing", False)),
            tokens=finetuning_args.budget_tokens,
            flops=finetuning_args.budget_flops,
        )
        self.add_callback(self.usage)
        self.ref_model = None if ref_model is None else prepare_reference(self, ref_model)
        if processor is not None:
            self.add_callback(host_api().SaveProcessorCallback(processor))
        if finetuning_args.use_badam:
            self._use_badam()
        self._log = host_api().logging.get_logger("llamafactory.ledpo").info_rank0
        if self.caches:
            self.add_callback(CacheKeeper(self.caches, self._log))
            self.data_collator.whole_caches_only = self.is_deepspeed_enabled or self.is_fsdp_enabled
        self._fuse_lora()
        self._decide_layout()

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

    def _decide_layout(self) -> None:
        """Nothing to decide; pairs may be laid out faster."""

    def _use_badam(self) -> None:
        from types import MethodType

        from badam import BAdamCallback, clip_grad_norm_old_version

        self.accelerator.clip_grad_norm_ = MethodType(clip_grad_norm_old_version, self.accelerator)
        self.add_callback(BAdamCallback)

    # ---- the host's own ways with optimizers, schedules and order of the data

    def create_optimizer(self, *args, **kwargs):
        if self.optimizer is None:
            self.optimizer = host_api().create_custom_optimizer(self.model, self.args, self.finetuning_args)
        return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, num_training_steps, optimizer=None):
        host_api().create_custom_scheduler(self.args, num_training_steps, optimizer)
        return super().create_scheduler(num_training_steps, optimizer)

    def _get_train_sampler(self, *args, **kwargs):
        if self.finetuning_args.disable_shuffling:
            return torch.utils.data.SequentialSampler(self.train_dataset)
        return super()._get_train_sampler(*args, **kwargs)

    def get_train_dataloader(self):
        if not isinstance(self.train_dataset, Mixed):
            return super().get_train_dataloader()
        args, own = self.args, self.finetuning_args
        data = self.train_dataset
        batches = MixtureBatches(
            data,
            ratio=own.sft_ratio,
            batch_size=args.per_device_train_batch_size,
            batches_a_step=args.gradient_accumulation_steps * args.world_size,
            seed=args.seed if args.data_seed is None else args.data_seed,
            shuffled=not own.disable_shuffling,
            tokens=data.lengths() if own.sft_ratio_by == "tokens" else None,
        )
        data.batches = batches
        loader = torch.utils.data.DataLoader(
            data,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
        )
        return self.accelerator.prepare(loader)

    # ---- passes

    def _needs_reference(self) -> bool:
        return self.loss.needs_reference or self.strategy.mode.needs_reference

    def _policy_rows(
        self, model: nn.Module, batch: Mapping[str, Any], wants: frozenset[str], mixture: Mixture | None = None
    ) -> RowOutput:
        if self._counting:
            self.usage.policy(batch, predictions(batch))
        with torch.no_grad() if self.finetuning_args.freeze_policy else nullcontext():
            return forward_rows(model, batch, wants=wants, ld_alpha=self.finetuning_args.ld_alpha, mixture=mixture)

    def _reference_rows(self, model: nn.Module, batch: Mapping[str, Any], wants: frozenset[str]) -> RowOutput:
        """Return what the reference says: from the cache, or by a pass that is then put into it.

        The reference is a model of its own, or the policy with its adapter switched off or its frozen copy at work.
        What it says depends on the cache's key alone, so nothing random acts in it, whatever acts in the policy.
        `ld_alpha` weighs the policy's side alone, as in LLaMA-Factory and in TRL up to 0.28: margins are then not 0
        where policy and reference are one.
        """
        cached = to_output(batch)
        if self._counting:
            self.usage.forward_only(batch, predictions(batch), ran=cached is None)
        if cached is not None:
            return cached
        with torch.no_grad(), self._reference(model) as reference:
            output = forward_rows(reference, batch, wants=wants)
        if ROW in batch:
            cache = self.caches[batch[SET]]
            cache.put(batch[ROW], to_values(output, batch[ROW].shape[0]))
        return output

    @contextmanager
    def _reference(self, model: nn.Module) -> Iterator[nn.Module]:
        """Give the reference, in evaluation mode; afterwards the policy is as it was."""
        if self.ref_model is not None:
            with in_evaluation_mode(self.ref_model):
                yield self.ref_model
            return
        inner = self.accelerator.unwrap_model(model)
        # DDP's forward waits for all ranks, and not all need a pass where a cache is partly filled.
        through = inner if isinstance(model, nn.parallel.DistributedDataParallel) else model
        at_work = reference_at_work(inner, self.finetuning_args.reference_adapter)
        with at_work, in_evaluation_mode(through):
            yield through

    def _wants(self, source: str) -> frozenset[str]:
        """Return what a pass of `source` ("policy" or "reference") must give besides log-probabilities."""
        needs = self.strategy.needs
        wants = needs & {"hidden", "prompt_nll"} if source == self.finetuning_args.beta_head_source else set()
        if source == "reference" and "reference_entropy" in needs:
            wants = wants | {"entropy"}
        if source == "reference" and "epsilon_step" in needs:
            wants = wants | {"logits"}
        return frozenset(wants)

    def fill_caches(self) -> list[str]:
        """Fill the caches with what the reference says of every row; return a sentence per data set.

        It runs over whole batches of per_device_eval_batch_size rows in their order, also where only some of a batch
        are missing, so that a row's value does not depend on what was there. Processes share the batches.

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
        notes = []
        for cache, data in zip(self.caches, sets, strict=True):
            before = int(cache.filled.sum())
            rank, processes = self.accelerator.process_index, self.accelerator.num_processes
            self._fill(cache, data, self._missing_batches(cache)[rank::processes])
            if processes > 1:
                self.accelerator.wait_for_everyone()
                cache.refresh()
                self._fill(cache, data, self._missing_batches(cache))  # what others wrote to a disk of their own
            added = int(cache.filled.sum()) - before
            notes.append(f"{added} of {cache.rows} pairs added, {int(cache.filled.sum())} in {cache.folder}")
        return notes

    def _missing_batches(self, cache: ReferenceCache) -> list[range]:
        """Return the batches, among the fixed ones that all rows are cut into, of which a row is missing."""
        size = self.args.per_device_eval_batch_size
        batches = (range(start, min(start + size, cache.rows)) for start in range(0, cache.rows, size))
        return [rows for rows in batches if not bool(cache.filled[rows.start : rows.stop].all())]

    def _fill(self, cache: ReferenceCache, data: Any, batches: list[range]) -> None:
        title = f"reference of {cache.rows} pairs"
        quiet = not batches or not self.is_world_process_zero()
        for number, rows in enumerate(tqdm(batches, desc=title, unit="batch", disable=quiet)):
            batch = self._prepare_inputs(self.data_collator([data[row] for row in rows]))
            with self.compute_loss_context_manager():
                self._reference_rows(self.model, batch, self._wants("reference"))
            cache.collect()
            if number % 100 == 99:
                cache.save()
        cache.save()

    # ---- loss

    def progress(self) -> Progress:
        """Return how far the run has come."""
        return Progress(self.state.global_step, self.state.max_steps)

    def _at_bounds(self, beta: Tensor) -> Tensor:
        """Return 1.0 where a learned beta is within 1 % of the width (in ln beta) of one of its bounds."""
        args = self.finetuning_args
        if self.strategy.mode.kind != "learned":
            return torch.zeros_like(beta)
        low, high = math.log(args.beta_min), math.log(args.beta_max)
        place = (beta.log() - low) / (high - low)
        return ((place < 0.01) | (place > 0.99)).float()

    def _mean_loss(self, losses: Tensor, beta: BetaOutput) -> Tensor:
        if beta.weights is not None:
            losses = losses * beta.weights
        loss = losses.mean()
        if beta.log_ratio is not None and self.finetuning_args.beta_penalty > 0:
            loss = loss + self.finetuning_args.beta_penalty * beta.log_ratio.square().mean()
        return loss

    def batch_loss(self, model: nn.Module, batch: dict[str, Any], training: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the batch's mean loss and one column of numbers per quantity to report."""
        raise NotImplementedError

    def _loss_and_columns(self, model, inputs, training):
        batch = {key: value for key, value in inputs.items() if not key.startswith(SFT)}
        instructions = {key.removeprefix(SFT): value for key, value in inputs.items() if key.startswith(SFT)}
        self._counting = training
        loss, columns = self.batch_loss(model, batch, training)
        bad = ~torch.isfinite(columns["losses"]).all()
        if training:
            self.usage.counts.examples += columns["losses"].shape[0]
        if instructions:
            nll = self._instruction_nll(model, instructions)
            preferences = columns["losses"].shape[0]
            loss = (preferences * loss + nll.sum()) / (preferences + nll.shape[0])
            bad = bad | ~torch.isfinite(nll).all()
            self._columns["sft"].append({"nll": nll.detach().float()})
        self._nonfinite = bad if self._nonfinite is None else self._nonfinite | bad
        return loss, {key: value.detach().float() for key, value in columns.items()}

    def _instruction_nll(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """Return the mean NLL per token `[n]` of each instruction's answer."""
        self.usage.policy(batch, predictions(batch))
        self.usage.counts.sft_tokens += batch["input_ids"].numel()
        self.usage.counts.sft_examples += batch["input_ids"].shape[0]
        output = forward_rows(model, batch)
        return -output.logps / output.lengths

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, columns = self._loss_and_columns(model, inputs, training=True)
        if self.finetuning_args.freeze_policy and self.state.global_step == 0 and not columns["margin"].any():
            raise ValueError(
                "freeze_policy: true, but every margin of the first batch is exactly 0: the policy equals the "
                "reference, so beta has nothing to learn from. Start from a trained adapter (adapter_name_or_path) "
                "or name a different ref_model."
            )
        self._columns["train"].append(columns)
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
        self._columns["eval"].append(dict(zip(names, matrix.unbind(1), strict=True)))
        return loss.detach(), None, None

    # ---- reporting

    def _take(self, split: str) -> dict[str, Tensor]:
        parts = self._columns.pop(split, [])
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]} if parts else {}

    def _gathered(self, split: str) -> dict[str, Tensor]:
        columns = self._take(split)
        if not columns or self.accelerator.num_processes == 1:
            return columns
        names = sorted(columns)
        matrix = torch.stack([torch.ones_like(columns[names[0]]), *(columns[name] for name in names)], dim=1)
        matrix = self.accelerator.gather(self.accelerator.pad_across_processes(matrix, dim=0))
        matrix = matrix[matrix[:, 0] == 1]  # ranks may have seen different numbers of examples
        return dict(zip(names, matrix[:, 1:].unbind(1), strict=True))

    def _summary(self, columns: dict[str, Tensor]) -> dict[str, float]:
        return self._known(self.summarise(columns))

    @staticmethod
    def _known(metrics: dict[str, float]) -> dict[str, float]:
        return {key: value for key, value in metrics.items() if value == value}  # nan: nothing to say

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            self._require_finite()
            columns = self._gathered("train")
            if columns:
                logs |= self._summary(columns)
            if isinstance(self.train_dataset, Mixed):
                logs |= self._of_mixture(columns, self._gathered("sft"))
            logs |= self.usage.logged()
            if self.beta_training.grad_norms:
                logs["beta/head_grad_norm"] = torch.stack(self.beta_training.grad_norms).mean().item()
                self.beta_training.grad_norms.clear()
        super().log(logs, *args, **kwargs)

    @staticmethod
    def _of_mixture(preferences: dict[str, Tensor], instructions: dict[str, Tensor]) -> dict[str, float]:
        """Return both losses apart, and the share of instructions among the examples since the last log."""
        count = instructions["nll"].shape[0] if instructions else 0
        logs = {"sft_share": count / (count + preferences["losses"].shape[0])} if preferences else {}
        if preferences:
            logs["preference_loss"] = preferences["losses"].mean().item()
        if count:
            logs["sft_nll"] = instructions["nll"].mean().item()
        return logs

    def evaluation_loop(self, *args, **kwargs):
        self._columns.pop("eval", None)
        output = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        self._require_finite()
        columns = self._take("eval")
        self.evaluated[prefix] = columns
        if columns:
            # The mean over examples; the host's own is over batches, of which the last is smaller than the others.
            output.metrics[f"{prefix}_loss"] = columns["losses"].mean().item()
            output.metrics.update({f"{prefix}_{key}": value for key, value in self._summary(columns).items()})
        return output

    def _require_finite(self) -> None:
        """Stop on a NaN or infinite loss; asked at each log, evaluation and save, not at each step (a device sync)."""
        if self._nonfinite is not None and bool(self._nonfinite):
            raise NonFiniteLoss(
                f"The loss of some example became NaN or infinite at or before step {self.state.global_step} "
                f"(pref_loss {self.loss.name}, beta_mode {self.finetuning_args.beta_mode}). Checkpoints saved before "
                "that are good. Lower learning_rate or beta_lr_ratio, check that the model's own weights are finite, "
                "and set logging_steps: 1 to find the step."
            )
        self._nonfinite = None

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
    """Trains on pairs: results come as `[chosen; rejected]`."""

    def _decide_layout(self) -> None:
        args, log = self.finetuning_args, self._log
        data = self.train_dataset if self.train_dataset is not None else self.eval_dataset
        data = next(iter(data.values())) if isinstance(data, dict) else data
        if args.disable_response_logits or is_streamed(data):
            return
        if weights_are_elsewhere():
            log("Logits at response positions only, shared prompts: not used, as the weights are not whole to try it.")
            return
        models = [self.model] if self.ref_model is None else [self.model, self.ref_model]
        sample = [data[i] for i in range(min(2, len(data)))]
        for note in enable_fast_paths(
            models, self.data_collator, sample, planned=True, shared=not args.disable_shared_prompt
        ):
            log(note)

    def batch_loss(self, model, batch, training):
        reference, mixture = None, None
        if self._needs_reference():
            reference = self._reference_rows(model, batch, self._wants("reference"))
        if "epsilon_step" in self.strategy.needs:
            mixture = Mixture(reference.logits, self.strategy.epsilon)
        policy = self._policy_rows(model, batch, self._wants("policy"), mixture)
        logps = self._pair_logps(policy, reference)
        with torch.no_grad():
            features = self._features(logps, policy, reference, training)
        beta = self.strategy(features)
        options = self.loss.options_of(self.finetuning_args) | self._delta(logps, beta, training)
        output = self.loss_function(logps, beta.beta, **options)
        losses = self._with_bco(output.losses, logps, beta, training)
        nll = -logps.policy_chosen / logps.chosen_length
        if self.finetuning_args.pref_ftx > 0:
            losses = losses + self.finetuning_args.pref_ftx * nll
        columns = {
            "losses": losses,
            "margin": self._beta_free_margin(logps),
            "beta": beta.beta,
            "at_bounds": self._at_bounds(beta.beta),
            "chosen_rewards": output.chosen_rewards,
            "rejected_rewards": output.rejected_rewards,
            "chosen_logps": logps.policy_chosen,
            "rejected_logps": logps.policy_rejected,
            "chosen_length": logps.chosen_length,
            "rejected_length": logps.rejected_length,
        }
        if self.finetuning_args.pref_ftx > 0 or self.loss.sft_term:
            columns["nll"] = nll
        return self._mean_loss(losses, beta), columns

    def _pair_logps(self, policy: RowOutput, reference: RowOutput | None) -> PairLogps:
        keep = reference is not None and self.loss.needs_reference
        return PairLogps(
            *_split(policy.logps), *_split(reference.logps if keep else None), *_split(policy.lengths.float())
        )

    def _beta_free_margin(self, logps: PairLogps) -> Tensor:
        """Return the margin `[B]` in the units of the loss: per token where the loss is length-normalised."""
        chosen, rejected = logps.policy_chosen.detach(), logps.policy_rejected.detach()
        if logps.reference_chosen is not None:
            chosen, rejected = chosen - logps.reference_chosen, rejected - logps.reference_rejected
        if self.loss.length_normalised:
            chosen, rejected = chosen / logps.chosen_length, rejected / logps.rejected_length
        return chosen - rejected

    def _features(
        self, logps: PairLogps, policy: RowOutput, reference: RowOutput | None, training: bool
    ) -> BetaFeatures:
        needs = self.strategy.needs
        source = reference if self.finetuning_args.beta_head_source == "reference" else policy
        size = logps.policy_chosen.shape[0]
        entropy = None
        if "reference_entropy" in needs:
            entropy = torch.stack(_split(reference.entropy)).mean(0)
        return BetaFeatures(
            size=size,
            # The prompt is the same in both halves and the model is causal: the chosen half's rows serve.
            hidden=source.hidden[:size] if "hidden" in needs else None,
            prompt_nll=source.prompt_nll[:size] if "prompt_nll" in needs else None,
            margin=self._beta_free_margin(logps) if "margin" in needs else None,
            reference_entropy=entropy,
            epsilon_step=self._epsilon_step(policy) if "epsilon_step" in needs else None,
            gather=self.accelerator.gather,
            rank=self.accelerator.process_index,
            training=training,
            progress=self.progress(),
        )

    @staticmethod
    def _epsilon_step(policy: RowOutput) -> Tensor:
        """Return epsilon-DPO's step `[B]` in {-1, 0, 1}."""
        up, now, down = (
            chosen - rejected
            for chosen, rejected in map(_split, (policy.mixtures[0], policy.logps, policy.mixtures[1]))
        )
        return epsilon_steps(up, now.detach(), down)

    def _delta(self, logps: PairLogps, beta: BetaOutput, training: bool) -> dict[str, Tensor]:
        return {"delta": self._reward_mean(logps, beta, training)} if self.loss.running_reward_mean else {}

    def _reward_mean(self, logps: PairLogps, beta: BetaOutput, training: bool) -> Tensor:
        running = self.beta_training.reward_mean
        if not training:
            return running.mean
        ratios = torch.cat(
            [logps.policy_chosen - logps.reference_chosen, logps.policy_rejected - logps.reference_rejected]
        )
        return running.update((beta.beta.repeat(2) * ratios).mean())

    def _with_bco(self, losses: Tensor, logps: PairLogps, beta: BetaOutput, training: bool) -> Tensor:
        """Mix in BCO's loss as LLaMA-Factory's `pref_bco_weight` does: (L + w * L_bco) / (1 + w)."""
        weight = self.finetuning_args.pref_bco_weight
        if weight == 0:
            return losses
        delta = self._reward_mean(logps, beta, training)
        bco = function_of("bco_pair")(logps, beta.beta, delta=delta).losses
        return (losses + weight * bco) / (1.0 + weight)


class UnpairedTrainer(PreferenceTrainer):
    """Trains on single answers marked good or bad (KTO), with the KL term of mismatched answers."""

    summarise = staticmethod(unpaired_metrics)

    def batch_loss(self, model, batch, training):
        desirable = batch.pop("kto_tags")
        mismatched = self._mismatched(batch)
        own = {key: value for key, value in batch.items() if not key.startswith("kl_")}
        policy = self._policy_rows(model, own, self._wants("policy"))
        reference = self._reference_rows(model, own, self._wants("reference"))
        with torch.no_grad():
            if self._counting:
                self.usage.forward_only(mismatched, predictions(mismatched), ran=True)
            policy_kl = forward_rows(model, mismatched).logps
            kl = (policy_kl - self._reference_rows(model, mismatched, frozenset()).logps).mean()
            kl = mean_over_ranks(kl)
        logps = UnpairedLogps(policy.logps, reference.logps, desirable, kl)
        source = reference if self.finetuning_args.beta_head_source == "reference" else policy
        beta = self.strategy(
            BetaFeatures(
                size=desirable.shape[0],
                hidden=source.hidden,
                prompt_nll=source.prompt_nll,
                gather=self.accelerator.gather,
                rank=self.accelerator.process_index,
                training=training,
                progress=self.progress(),
            )
        )
        output = self.loss_function(logps, beta.beta, **self.loss.options_of(self.finetuning_args))
        losses, extra = output.losses, {}
        if self.finetuning_args.pref_ftx > 0:
            nll = -policy.logps / policy.lengths
            losses = losses + self.finetuning_args.pref_ftx * nll * desirable
            extra["nll"] = nll
        sign = torch.where(desirable, 1.0, -1.0)
        zero_point = kl.clamp(min=0)
        columns = {
            "losses": losses,
            "margin": sign * ((policy.logps - reference.logps).detach() - zero_point),
            "beta": beta.beta,
            "at_bounds": self._at_bounds(beta.beta),
            "rewards": output.chosen_rewards,
            "logps": policy.logps,
            "desirable": desirable.float(),
            "kl": zero_point.expand(desirable.shape[0]),
            **extra,
        }
        return self._mean_loss(losses, beta), columns

    def _mismatched(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the batch of the same prompts with their neighbours' answers; images and the like are shared."""
        rows = {"input_ids", "attention_mask", "labels", "token_type_ids", "cross_attention_mask"}
        rows |= {"position_ids", "rope_deltas"}  # of the answers' own lengths; the model makes them anew
        shared = {k: v for k, v in batch.items() if not k.startswith(("kl_", PREFIX)) and k not in rows}
        found = shared | {key.removeprefix("kl_"): value for key, value in batch.items() if key.startswith("kl_")}
        if "position_ids" in batch:
            found |= kinds_of_tokens(self.accelerator.unwrap_model(self.model), found["input_ids"])
        return found
