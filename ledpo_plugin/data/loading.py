"""Data sets through LLaMA-Factory's own loading, with every raw row looked at before it gets there."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ledpo_plugin.host.contract import host_api
from ledpo_plugin.host.data import rows_through

from .row_formats import PAIRS, Entry, converted, described, judge, needed_columns, read
from .token_rows import is_streamed
from .unusable import NoUsableData

# Part of the key under which datasets keeps results on disk: another number for every change of what rows are read as.
RULES = 1
_FAULT, _VALUE, _BY_HOST = "ledpo_fault", "ledpo_value", "ledpo_by_host"


@dataclass(frozen=True)
class _Judge:
    """`judge` as a function of rows, which datasets can pickle and hash."""

    entry: Entry
    kind: str
    rules: int = RULES

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        verdict = judge(row, self.entry, self.kind)
        return {_FAULT: verdict.reason, _VALUE: verdict.value, _BY_HOST: verdict.by_host}

    def usable(self, row: Mapping[str, Any]) -> bool:
        return not judge(row, self.entry, self.kind).reason


@dataclass(frozen=True)
class _Read:
    """`read` as a function of rows, which datasets can pickle and hash."""

    entry: Entry
    kind: str
    rules: int = RULES

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return read(row, self.entry, self.kind)


def load_data(
    kind: str,
    log: Callable[[str], None],
    *,
    stage: str,
    template: Any,
    model_args: Any,
    data_args: Any,
    training_args: Any,
    tokenizer_module: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the host's tokenized data sets; formats that it does not know are read for it (see `row_formats`).

    Args:
        kind: "pairs", "unpaired", "instructions" or "prompts"; a data set of pairs is read as such in any case.
        log: takes a sentence on rows that were dropped.
        stage: what the host's loading calls such data.
        template: of the prompts.
        model_args: the host's.
        data_args: the host's.
        training_args: the host's.
        tokenizer_module: tokenizer and processor.

    Raises:
        NoUsableData: no row of a data set can be read, or a column is not there; the message says why.
    """

    def through(dataset: Any, attributes: Any, own_data_args: Any, own_training_args: Any) -> tuple[Any, Any]:
        return _look(dataset, attributes, PAIRS if attributes.ranking else kind, own_data_args, own_training_args, log)

    if data_args.streaming and training_args.dataloader_num_workers < 1:
        # The host cuts a streamed file into one part for each worker: none at all without workers.
        training_args = copy.copy(training_args)
        training_args.dataloader_num_workers = 1
    with rows_through(through, _held_out_first):
        return host_api().get_dataset(template, model_args, data_args, training_args, stage=stage, **tokenizer_module)


def _held_out_first(dataset: Any, eval_dataset: Any, data_args: Any, seed: int) -> tuple[dict, dict] | None:
    """Return a stream's first `val_size` rows and the others, which are then shuffled; None where the host may split.

    The host shuffles before it holds rows out, and each epoch has an order of its own: from the second one on, rows
    that are held out would be trained on.
    """
    if dataset is None or eval_dataset is not None or not data_args.streaming or data_args.val_size < 1:
        return None
    held_out = int(data_args.val_size)
    rest = dataset.skip(held_out).shuffle(buffer_size=data_args.buffer_size, seed=seed)
    return {"train": rest}, {"validation": dataset.take(held_out)}


def _look(
    dataset: Any, attributes: Any, kind: str, data_args: Any, training_args: Any, log: Callable[[str], None]
) -> tuple[Any, Any]:
    """Return the data set without rows that cannot be read, in a format that the host reads, and what describes it."""
    entry, name = Entry.of_attributes(attributes), str(attributes)
    first = next(iter(dataset), None)
    if first is None:
        raise NoUsableData(f"Data set {name} has no rows. Check its file, split and subset in dataset_info.json.")
    absent = [column for column in needed_columns(entry, kind) if column not in first]
    if absent:
        raise NoUsableData(missing_columns(name, absent, first))
    if is_streamed(dataset):
        readable = next((row for row in dataset.take(1000) if _Judge(entry, kind).usable(row)), None)
        if readable is None:
            verdict = judge(first, entry, kind)
            raise NoUsableData(_nothing_left(described(name, [(verdict.reason, verdict.value)], all_rows=False)))
        dataset, options = dataset.filter(_Judge(entry, kind).usable), {}
        by_host = judge(readable, entry, kind).by_host
    else:
        options = {
            "num_proc": data_args.preprocessing_num_workers,
            "load_from_cache_file": not data_args.overwrite_cache or training_args.local_process_index != 0,
        }
        columns = [column for column in dataset.column_names if column in _read_columns(entry)]
        looked = dataset.select_columns(columns)
        looked = looked.map(_Judge(entry, kind), remove_columns=columns, desc=f"Checking rows of {name}", **options)
        dataset, by_host = _without_faults(dataset, looked, name, log)
        options["desc"] = f"Reading rows of {name}"
    if by_host:
        return dataset, attributes
    attributes = copy.copy(attributes)
    for key, value in converted(entry, kind).items():
        setattr(attributes, key, value)
    return dataset.map(_Read(entry, kind), remove_columns=list(first), **options), attributes


def _without_faults(dataset: Any, looked: Any, name: str, log: Callable[[str], None]) -> tuple[Any, bool]:
    faults, values = list(looked[_FAULT]), list(looked[_VALUE])
    keep = [place for place, fault in enumerate(faults) if not fault]
    if len(keep) < len(faults):
        sentence = described(name, list(zip(faults, values, strict=True)))
        if not keep:
            raise NoUsableData(_nothing_left(sentence))
        log(f"{sentence}. They are dropped.")
        dataset, looked = dataset.select(keep), looked.select(keep)
    return dataset, all(looked[_BY_HOST])


def _read_columns(entry: Entry) -> set[str]:
    names = (entry.system, entry.chosen, entry.rejected, entry.kto_tag, entry.prompt, entry.query, entry.response)
    return {name for name in (*names, entry.history, entry.messages) if name}


def missing_columns(name: str, absent: list[str], row: Mapping[str, Any]) -> str:
    """Return that a data set has not the columns that its entry names, and which it has."""
    return (
        f"Data set {name} has no column {' and no '.join(map(repr, absent))}; it has {', '.join(map(repr, row))}. "
        "Correct 'columns' of its entry in dataset_info.json."
    )


def _nothing_left(sentence: str) -> str:
    return f"{sentence}. No row is left: correct the rows, or 'columns' and 'tags' of the entry in dataset_info.json."
