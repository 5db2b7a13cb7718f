"""The trainers of `ledpo_ppo` and `ledpo_alternate`: they wire the PPO phase to the host's training loop."""

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from ledpo_plugin.modeling.evaluation_mode import in_evaluation_mode
from ledpo_plugin.rewards import RewardError
from ledpo_plugin.training.columns import without_nan
from ledpo_plugin.training.loaders import data_seed, loader_of
from ledpo_plugin.training.metrics import beta_metrics
from ledpo_plugin.training.objectives import at_bounds
from ledpo_plugin.training.trainer import PairTrainer, PreferenceTrainer

from .experience import RolloutSetup
from .metrics import answer_metrics
from .ppo import PpoPhase
from .sampler import SLOT, SlotBatches, Slots


class _Phases(TrainerCallback):
    """Says before each step which phase it is of, and steps the value head with the policy in PPO's."""

    def __init__(self, trainer: "RolloutTrainer"):
        self.trainer = trainer

    def on_step_begin(self, args, state, control, **kwargs):
        """Let beta rest where the step is not about it."""
        trainer = self.trainer
        trainer.micro = 0
        trainer.in_ppo = trainer.phase.schedule.is_ppo(state.global_step)
        trainer.beta_training.resting = trainer.in_ppo and not trainer.phase.experience.trains_head

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        """Step the value head."""
        if self.trainer.in_ppo and self.trainer.phase.value_optimizer is not None:
            self.trainer.phase.value_optimizer.step()


class RolloutTrainer(PreferenceTrainer):
    """What both trainers have in common: steps on rollouts beside, or instead of, steps on preferences."""

    def __init__(self, *, rollouts: RolloutSetup, **kwargs: Any):
        self.micro, self.in_ppo = 0, True
        self._answers: dict[str, list[Tensor]] = defaultdict(list)
        self._updates: dict[str, list[Tensor]] = defaultdict(list)
        self._on_policy_batches: list[Tensor] = []
        self._pairs: list[tuple[Tensor, Tensor]] = []
        super().__init__(**kwargs)
        self.phase = PpoPhase(rollouts, self)
        self._operations = 0.0  # that the host was told of
        self.add_callback(_Phases(self))
        if isinstance(self.model, PeftModel):  # adapters of reward models are not the policy's
            name = self.model.active_adapter
            self.model.save_pretrained = partial(type(self.model).save_pretrained, self.model, selected_adapters=[name])

    # ---- the policy, whole and wrapped

    def policy(self) -> nn.Module:
        """Return the policy for a pass without gradient; not DDP's, whose forward waits for all processes."""
        wrapped = self.model_wrapped
        return self.unwrapped() if isinstance(wrapped, nn.parallel.DistributedDataParallel) else wrapped

    def unwrapped(self) -> nn.Module:
        """Return the policy without what distributes it."""
        return self.accelerator.unwrap_model(self.model_wrapped)

    @contextmanager
    def in_evaluation(self) -> Iterator[None]:
        """Put the policy in evaluation mode temporarily."""
        with in_evaluation_mode(self.model_wrapped):
            yield

    # ---- data

    def get_train_dataloader(self) -> DataLoader:
        args, data = self.args, self.train_dataset
        batches = SlotBatches(
            len(data),
            sizes=self.phase.sizes,
            processes=args.world_size,
            schedule=self.phase.schedule,
            seed=data_seed(args),
            shuffled=not self.finetuning_args.disable_shuffling,
        )
        return self.accelerator.prepare(loader_of(Slots(data, batches), batches, self._collate, args))

    def _collate(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        if SLOT in features[0]:
            return {SLOT: torch.ones(len(features))}
        return self.data_collator(features)

    # ---- steps

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if SLOT not in inputs:
            return super().compute_loss(model, self._on_policy(inputs), return_outputs, num_items_in_batch)
        step = self.phase.schedule.ppo_steps_before(self.state.global_step)
        try:
            update = self.phase.update(model, step, self.micro)
        except RewardError as error:
            raise self._saved(error) from None
        self.micro += 1
        self.finite_losses.note(update.finite)
        for name, value in update.report.items():
            self._updates[name].append(value.detach().float())
        return (update.loss, None) if return_outputs else update.loss

    def _on_policy(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return a batch of the rollouts' own pairs in place of `inputs` while there are enough for one."""
        size, pool = self.phase.sizes.batch, self.phase.pool
        enough = len(pool) >= size
        if self.finetuning_args.rollout_pairs:
            self._on_policy_batches.append(torch.tensor(float(enough)))
        if not enough:
            return inputs
        rows, self.phase.pool = pool[:size], pool[size:]
        return self.on_device(self.data_collator([dict(row) for row in rows]))

    def _saved(self, error: RewardError) -> RewardError:
        """Write a checkpoint of where training stands, and return the error with the way on."""
        if self.state.global_step == 0:
            return RewardError(f"{error} Nothing was trained yet.")
        self._save_checkpoint(self.model_wrapped, trial=None)
        folder = os.path.join(self.args.output_dir, f"checkpoint-{self.state.global_step}")
        return RewardError(
            f"{error} What was trained until step {self.state.global_step} is saved in {folder}: mend the cause and "
            "run the same command again."
        )

    def floating_point_ops(self, inputs: dict[str, Any]) -> float:
        """Return the operations since the last call, as `usage` counts them."""
        now = self.usage.cost.flops(self.usage.counts)
        before, self._operations = self._operations, now
        return now - before

    # ---- reporting

    def note_answers(self, columns: dict[str, Tensor]) -> None:
        """Take in the columns `[R]` of a rollout, for the log."""
        for name, values in columns.items():
            self._answers[name].append(values.float())
        if columns["ended"].sum() == 0:
            self._log(
                f"None of {len(columns['ended'])} answers ended within max_new_tokens: "
                f"{self.phase.setup.sampling.max_new_tokens}. Raise it, or set missing_eos_penalty, if they should."
            )

    def note_pairs(self, beta: Tensor, margin: Tensor) -> None:
        """Take in beta and margin `[N]` of the rollouts' own pairs, for the log."""
        self._pairs.append((beta.detach().float(), margin.float()))

    def _taken(self, columns: dict[str, list[Tensor]]) -> dict[str, Tensor]:
        """Return the columns of all processes since the last log; processes have equally many rows."""
        joined = {name: torch.cat([part.reshape(-1) for part in parts]) for name, parts in sorted(columns.items())}
        columns.clear()
        if joined and self.accelerator.num_processes > 1:
            matrix = torch.stack([values.to(self.args.device) for values in joined.values()], dim=1)
            joined = dict(zip(joined, self.accelerator.gather(matrix).cpu().unbind(1), strict=True))
        return joined

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            answers, updates = self._taken(self._answers), self._taken(self._updates)
            if answers:
                logs |= answer_metrics(answers)
            logs |= {name: values.mean().item() for name, values in updates.items()}
            if self.phase.schedule.ledpo:
                logs["phase"] = float(self.in_ppo)
            if self._on_policy_batches:
                logs["rollout_pairs/share"] = torch.stack(self._on_policy_batches).mean().item()
                self._on_policy_batches.clear()
            if self._pairs:
                beta, margin = (torch.cat(parts) for parts in zip(*self._pairs, strict=True))
                logs |= without_nan(beta_metrics(beta, margin, at_bounds(beta, self.finetuning_args)))
                self._pairs.clear()
        super().log(logs, *args, **kwargs)

    # ---- state

    def save_model(self, output_dir=None, _internal_call=False):
        super().save_model(output_dir, _internal_call=_internal_call)
        if self.args.should_save:
            self.phase.save(output_dir or self.args.output_dir)

    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        self.phase.save_state(output_dir, self.args.process_index, self.args.should_save)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.phase.load_state(checkpoint, self.args.process_index)
            self._operations = self.usage.cost.flops(self.usage.counts)


class PpoTrainer(RolloutTrainer):
    """Trains on rollouts alone."""

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """Answer the held-out prompts and return what the answers are worth and how far the policy has moved."""
        data = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(data, dict):
            metrics: dict[str, float] = {}
            for name, part in data.items():
                metrics |= self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}")
            return metrics
        parts = gather_object([self.phase.evaluate(data)])
        columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        self.evaluated[metric_key_prefix] = columns
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in answer_metrics(columns).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class AlternateTrainer(RolloutTrainer, PairTrainer):
    """Trains on preference pairs and on rollouts in turn, with one optimizer of the policy for both."""
