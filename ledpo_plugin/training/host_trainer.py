"""Training as LLaMA-Factory's own stages do it: its optimizers, schedules, order of the data and callbacks."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import Trainer

from ledpo_plugin.data.token_rows import is_streamed
from ledpo_plugin.host.contract import host_api

from .side_optimizer import SideOptimizer


def without_dropout(*models: nn.Module | None) -> None:
    """Switch dropout off for good, as the host does in its preference stages."""
    for module in (module for model in models if model is not None for module in model.modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def _read_streams_everywhere(options: Mapping[str, Any]) -> None:
    """Have every process read streamed data itself: batches sent from the first one are cut, and pixels with them."""
    sets = [options.get("train_dataset"), options.get("eval_dataset")]
    sets = [part for data in sets if data is not None for part in (data.values() if isinstance(data, dict) else [data])]
    config = options["args"].accelerator_config
    if any(map(is_streamed, sets)) and config.dispatch_batches is None:
        config.dispatch_batches = False


class HostTrainer(Trainer):
    """transformers' trainer with the host's own ways; knows nothing of preferences."""

    def __init__(self, *, model: nn.Module, finetuning_args: Any, **kwargs: Any):
        """Take the model, the host's finetuning arguments, and what else transformers' trainer takes."""
        self.finetuning_args = finetuning_args
        _read_streams_everywhere(kwargs)
        super().__init__(model=model, **kwargs)
        self._log = host_api().logging.get_logger("llamafactory.ledpo").info_rank0

    def add_host_callbacks(self, processor: Any) -> None:
        """Add the callbacks that the host adds: one that saves `processor`, unless it is None, and BAdam's."""
        if processor is not None:
            self.add_callback(host_api().SaveProcessorCallback(processor))
        if self.finetuning_args.use_badam:
            self._use_badam()

    def _use_badam(self) -> None:
        from types import MethodType

        from badam import BAdamCallback, clip_grad_norm_old_version

        self.accelerator.clip_grad_norm_ = MethodType(clip_grad_norm_old_version, self.accelerator)
        self.add_callback(BAdamCallback)

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

    def on_device(self, data: Any) -> Any:
        """Return a batch, or whatever tensors it is made of, where the model is."""
        return self._prepare_input(data)

    def side_optimizer(self, parameters: Iterable[nn.Parameter], *, lr_ratio: float) -> SideOptimizer | None:
        """Return an optimizer of small parameters beside the policy's, or None where none of them is trained."""
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        if not trained:
            return None
        return SideOptimizer(
            trained,
            lr_ratio=lr_ratio,
            max_grad_norm=self.args.max_grad_norm,
            accelerator=self.accelerator,
            learning_rate=self._get_learning_rate,
        )
