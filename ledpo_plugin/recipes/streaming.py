"""Checks: what goes with streamed data, whose rows are read while training and whose number is not known before."""

import os
from collections.abc import Iterator

from ledpo_plugin.common.problem import Problem, problem

from .reading import Reading


def check_streaming(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem where a key needs what streamed data has not: a size, an order of its own, a place on disk."""
    if not recipe.flag("streaming"):
        return
    steps = recipe.number("max_steps")
    if recipe.raw.get("do_train") not in (None, False) and (steps is None or steps <= 0):
        why = "streamed data has no known size, so epochs cannot say when training ends"
        yield problem("max_steps", recipe.raw.get("max_steps"), why, "set max_steps, or remove streaming")
    held_out = recipe.number("val_size")
    if held_out is not None and 0 < held_out < 1:
        why = "a share of streamed data cannot be held out, as its size is not known"
        yield problem("val_size", held_out, why, "set val_size to a number of rows, or name an eval_dataset")
    for key, why, fix in (
        ("max_samples", "LLaMA-Factory cuts no streamed data", "say by max_steps how much is trained on"),
        ("disable_shuffling", "LLaMA-Factory shuffles streamed data within buffer_size rows", "set buffer_size: 1"),
        ("fill_reference_cache", "streamed data has no fixed rows to keep values of", "remove it, or streaming"),
    ):
        if recipe.is_set(key):
            yield problem(key, recipe.raw.get(key), why, fix)


def check_tokenized_stream(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem where streamed data would have to be written to disk."""
    path = recipe.text("tokenized_path")
    if recipe.flag("streaming") and path is not None and not (os.path.isdir(path) and os.listdir(path)):
        why = "tokenized data is written there, which streamed data cannot be"
        yield problem("tokenized_path", path, why, "remove streaming for the run that writes it")
