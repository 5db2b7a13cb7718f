"""Tokenized rows as numpy arrays, read from a data set's own Arrow memory."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

READ_AT_A_TIME = 1000
MEDIA = ("images", "videos", "audios")


def is_streamed(data: Any) -> bool:
    """Whether rows come as they are read: such a data set has no length (some have `__getitem__`, for columns)."""
    return not hasattr(data, "__len__")


def has_media(data: Any) -> bool:
    """Whether any row of a tokenized `datasets.Dataset` has images, videos or sounds."""
    kinds = [kind for kind in MEDIA if kind in data.column_names]
    tables = data.select_columns(kinds).with_format("arrow").iter(batch_size=READ_AT_A_TIME) if kinds else ()
    return any(_holds(table.column(kind)) for table in tables for kind in kinds)


def _holds(column: Any) -> bool:
    lists = [chunk for chunk in column.chunks if chunk.null_count < len(chunk)]
    return any(len(chunk.flatten()) > 0 for chunk in lists)


def token_rows(data: Any, columns: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
    """Yield the rows of `data` with `columns` as int64 arrays.

    Args:
        data: a `datasets.Dataset`, or any mappings of lists. The Arrow format is used because the data set's own numpy
            format wants a torchvision of its liking, and Python lists take ten times as long.
        columns: names of columns that hold lists of token ids or labels.
    """
    if not hasattr(data, "with_format"):
        yield from _plain(data, columns)
        return
    for table in data.select_columns(list(columns)).with_format("arrow").iter(batch_size=READ_AT_A_TIME):
        lists = {name: table.column(name).combine_chunks() for name in columns}
        for i in range(len(table)):
            yield {
                name: column[i].values.to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
                for name, column in lists.items()
            }


def _plain(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
    for row in rows:
        yield {name: np.asarray(row[name], dtype=np.int64) for name in columns}
