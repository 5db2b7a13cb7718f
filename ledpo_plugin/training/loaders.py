"""Data loaders whose batches are planned by the plugin rather than drawn by a sampler."""

from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader

from ledpo_plugin.data.mixture import Mixed, MixtureBatches


def data_seed(training_args: Any) -> int:
    """Return the seed of the order of the data."""
    return training_args.seed if training_args.data_seed is None else training_args.data_seed


def loader_of(data: Any, batches: Any, collate: Callable, training_args: Any) -> DataLoader:
    """Return a loader of planned batches, by the host's settings of loaders."""
    return DataLoader(
        data,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=training_args.dataloader_num_workers,
        pin_memory=training_args.dataloader_pin_memory,
    )


def mixture_loader(data: Mixed, collate: Callable, training_args: Any, finetuning_args: Any) -> DataLoader:
    """Return a loader of preferences with instructions mixed in; the data is told its batches."""
    data.batches = MixtureBatches(
        data,
        ratio=finetuning_args.sft_ratio,
        batch_size=training_args.per_device_train_batch_size,
        batches_a_step=training_args.gradient_accumulation_steps * training_args.world_size,
        seed=data_seed(training_args),
        shuffled=not finetuning_args.disable_shuffling,
        tokens=data.lengths() if finetuning_args.sft_ratio_by == "tokens" else None,
    )
    return loader_of(data, data.batches, collate, training_args)
