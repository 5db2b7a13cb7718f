"""Prompts of rollouts, from the host's data sets: the questions of instructions, of pairs or of rated answers."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset, concatenate_datasets

from ledpo_plugin.data.loading import load_data
from ledpo_plugin.data.row_formats import PROMPTS
from ledpo_plugin.data.unusable import NoUsableData
from ledpo_plugin.host.contract import host_api
from ledpo_plugin.modeling.logps import IGNORE

UNCUT = 2**24  # tokens: the host cuts a long prompt at its end, where the answer would begin; here it is dropped


def load_prompts(
    names: Sequence[str],
    *,
    longest: int,
    model_args: Any,
    data_args: Any,
    training_args: Any,
    template: Any,
    tokenizer_module: dict[str, Any],
    log: Callable[[str], None],
    what: str = "training",
    share: float = 0.0,
) -> tuple[Dataset, Dataset | None]:
    """Return the different prompts of data sets, as rows with `input_ids`, and those held out of them.

    Args:
        names: data sets, of any kind that LLaMA-Factory knows.
        longest: tokens; longer prompts are dropped and counted.
        model_args: the host's.
        data_args: the host's.
        training_args: the host's.
        template: of the prompts.
        tokenizer_module: tokenizer and processor.
        log: takes a sentence.
        what: for the log line.
        share: `val_size`, the share or number of rows to hold out; 0 for none.

    Raises:
        NoUsableData: no prompt is left.
        ValueError: prompts have images, videos or audio.
    """
    found, held_out = [], []
    for name, ranking in zip(names, _rankings(names, data_args.dataset_dir), strict=True):
        own = copy.deepcopy(data_args)
        own.dataset, own.eval_dataset, own.val_size = [name], None, share
        own.mix_strategy, own.interleave_probs, own.tokenized_path = "concat", None, None
        own.cutoff_len = UNCUT
        module = load_data(
            PROMPTS,
            log,
            stage="rm" if ranking else "ppo",
            template=template,
            model_args=model_args,
            data_args=own,
            training_args=training_args,
            tokenizer_module=tokenizer_module,
        )
        found.append(_prompts(module["train_dataset"], name, ranking))
        if module.get("eval_dataset") is not None:
            held_out.append(_prompts(module["eval_dataset"], name, ranking))
    train = _usable(concatenate_datasets(found), longest, what, log)
    if not held_out:
        return train, None
    return train, _usable(concatenate_datasets(held_out), longest, "held-out", log)


def _rankings(names: Sequence[str], folder: Any) -> list[bool]:
    return [attributes.ranking for attributes in host_api().get_dataset_list(list(names), folder)]


def _prompts(data: Any, name: str, ranking: bool) -> Dataset:
    for kind in ("images", "videos", "audios"):
        if kind in data.column_names and any(data[kind]):
            raise ValueError(
                f"The prompts of {name} have {kind}, which rollouts do not support. Choose data sets of text alone."
            )
    if not ranking:
        return data.select_columns(["input_ids"])
    pairs = data.select_columns(["chosen_input_ids", "chosen_labels"])
    return pairs.map(_before_answer, remove_columns=pairs.column_names, desc=f"Prompts of {name}")


def _before_answer(row: dict[str, list[int]]) -> dict[str, list[int]]:
    labels = row["chosen_labels"]
    end = next((place for place, label in enumerate(labels) if label != IGNORE), len(labels))
    return {"input_ids": row["chosen_input_ids"][:end]}


def _usable(data: Dataset, longest: int, what: str, log: Callable[[str], None]) -> Dataset:
    seen: set[tuple[int, ...]] = set()
    keep, long, again, empty = [], 0, 0, 0
    for row, ids in enumerate(data["input_ids"]):
        prompt = tuple(ids)
        if not prompt:
            empty += 1
        elif len(prompt) > longest:
            long += 1
        elif prompt in seen:
            again += 1
        else:
            seen.add(prompt)
            keep.append(row)
    if not keep:
        raise NoUsableData(
            f"No {what} prompt is left: of {len(data)}, {long} are longer than cutoff_len: {longest} tokens, {empty} "
            "are empty. Raise cutoff_len (prompt and max_new_tokens together must fit the model's context)."
        )
    dropped = [(long, f"longer than cutoff_len ({longest} tokens)"), (again, "seen before"), (empty, "empty")]
    counted = ", ".join(f"{count} {why}" for count, why in dropped if count)
    log(f"{len(keep)} {what} prompts" + (f"; dropped: {counted}." if counted else "."))
    return data.select(keep)
