"""What of the host's loading of data is replaced or put back while a LEDPO stage uses it."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .contract import LOADER, host_api


@contextmanager
def rows_through(
    look: Callable[[Any, Any, Any, Any], tuple[Any, Any]], split: Callable[..., tuple[dict, dict] | None]
) -> Iterator[None]:
    """Have every data set that the host loads pass through `look` before the host reads its rows.

    Args:
        look: takes the raw data set, its DatasetAttr, the host's data arguments and training arguments; returns the
            first two as the host shall have them.
        split: takes what the host's `split_dataset` takes, and returns the same, or None to leave it to the host.
    """
    loader: Any = importlib.import_module(LOADER)
    align, divide = loader.align_dataset, loader.split_dataset

    def align_dataset(dataset, dataset_attr, data_args, training_args):
        return align(*look(dataset, dataset_attr, data_args, training_args), data_args, training_args)

    def split_dataset(dataset, eval_dataset, data_args, seed):
        return split(dataset, eval_dataset, data_args, seed) or divide(dataset, eval_dataset, data_args, seed)

    loader.align_dataset, loader.split_dataset = align_dataset, split_dataset
    try:
        yield
    finally:
        loader.align_dataset, loader.split_dataset = align, divide


@contextmanager
def templates_kept() -> Iterator[None]:
    """Put back the system prompts of the host's templates, which it changes for the whole process with each recipe."""
    registered = host_api().TEMPLATES
    before = {name: template.default_system for name, template in registered.items()}
    try:
        yield
    finally:
        for name, system in before.items():
            registered[name].default_system = system
