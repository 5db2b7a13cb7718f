"""Reference caches filled before training, in fixed batches, so that no value depends on what was there."""

from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm

from .cache import ReferenceCache

SAVE_EVERY = 100  # batches


def missing_batches(cache: ReferenceCache, size: int) -> list[range]:
    """Return the batches, among the fixed ones of `size` that all rows are cut into, of which a row is missing."""
    batches = (range(start, min(start + size, cache.rows)) for start in range(0, cache.rows, size))
    return [rows for rows in batches if not bool(cache.filled[rows.start : rows.stop].all())]


def fill_in_batches(
    caches: Sequence[ReferenceCache],
    datasets: Sequence[Any],
    compute: Callable[[list[Any]], None],
    *,
    batch_size: int,
    accelerator: Any,
    quiet: bool,
) -> list[str]:
    """Fill caches with what the reference says of every row; return a sentence per data set.

    Whole batches are computed in the order of the rows, also where only some rows of one are missing. Processes share
    the batches.

    Args:
        caches: one per data set.
        datasets: the tokenized rows.
        compute: has the reference say what it says of rows, and puts that into their cache.
        batch_size: rows at a time.
        accelerator: of the run, for its processes.
        quiet: whether to show no progress bar.

    Raises:
        CacheError: a cache cannot be written.
    """
    rank, processes = accelerator.process_index, accelerator.num_processes
    notes = []
    for cache, data in zip(caches, datasets, strict=True):
        before = int(cache.filled.sum())
        _fill(cache, data, missing_batches(cache, batch_size)[rank::processes], compute, quiet)
        if processes > 1:
            accelerator.wait_for_everyone()
            cache.refresh()
            # What others wrote to a disk of their own.
            _fill(cache, data, missing_batches(cache, batch_size), compute, quiet)
        filled = int(cache.filled.sum())
        notes.append(f"{filled - before} of {cache.rows} pairs added, {filled} in {cache.folder}")
    return notes


def _fill(
    cache: ReferenceCache, data: Any, batches: list[range], compute: Callable[[list[Any]], None], quiet: bool
) -> None:
    title = f"reference of {cache.rows} pairs"
    for number, rows in enumerate(tqdm(batches, desc=title, unit="batch", disable=quiet or not batches)):
        compute([data[row] for row in rows])
        cache.collect()
        if number % SAVE_EVERY == SAVE_EVERY - 1:
            cache.save()
    cache.save()
