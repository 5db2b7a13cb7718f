"""What the reference model says of a data set, computed once and kept on disk.

The reference never changes, so its log-probabilities of a pair are the same in every epoch, after every resumption and
in every run of a sweep over anything else. One folder holds one data set under one reference: `key.json`, everything
the numbers depend on, and `values.safetensors`. A changed key is another folder; a folder whose key file differs from
what was asked for, or whose values are damaged, is not used and is made anew.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ledpo_plugin.common.atomic import replace_file
from ledpo_plugin.data.token_rows import token_rows

# Raise it when the way the values are computed changes: older ones are then not found. 2: in evaluation mode always;
# 1 took in what the reference said under the noise and dropout of training.
FORMULA = 2
KEY, VALUES, LOCK = "key.json", "values.safetensors", "lock"
LOGPS = "logps"  # [rows, 2]: chosen, rejected
FILLED = "filled"


class CacheError(OSError):
    """The cache cannot be written; the message says what to do."""


def default_folder() -> Path:
    """Return where caches are kept: $LEDPO_CACHE, else ~/.cache/ledpo."""
    return Path(os.environ.get("LEDPO_CACHE") or Path.home() / ".cache" / "ledpo") / "reference"


def key_hash(key: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a key, whatever the order of its fields."""
    return hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()


def fingerprint(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the SHA-256 of tokenized pairs: of their token ids and of where their responses begin."""
    digest = hashlib.sha256()
    for row in token_rows(rows, ("chosen_input_ids", "chosen_labels", "rejected_input_ids", "rejected_labels")):
        for values in row.values():
            digest.update(values.tobytes())
            digest.update(b"|")
    return digest.hexdigest()


def files_hash(path: str | None, memory: Path | None = None) -> str | None:
    """Return the SHA-256 of all files of a model folder, or the path itself where it is no folder (a hub name).

    Hashes of files are remembered by path, size and time of change in the folder `memory`, as weights are large.
    """
    if path is None:
        return None
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return path
    known_at = None if memory is None else memory / "file_hashes.json"
    known = _read_json(known_at) if known_at else {}
    digest, fresh = hashlib.sha256(), {}
    for file in sorted(
        p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".json", ".model", ".jinja")
    ):
        stat = file.stat()
        place = f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
        if place not in known:
            with file.open("rb") as stream:
                fresh[place] = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{file.name}:{known.get(place) or fresh[place]}\n".encode())
    if known_at and fresh:
        known_at.parent.mkdir(parents=True, exist_ok=True)
        replace_file(known_at, lambda part: part.write_text(json.dumps(known | fresh)))
    return digest.hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


class ReferenceCache:
    """The reference's values for the rows of one data set: in memory while training, on disk between runs."""

    def __init__(self, folder: Path, key: Mapping[str, Any], rows: int, fields: Mapping[str, tuple[int, ...]]):
        """Open the cache for `key` under `folder`, with what is there already.

        Args:
            folder: where all caches are.
            key: everything the values depend on; JSON.
            rows: rows of the data set.
            fields: name of a value -> its shape per row, e.g. {"logps": (2,), "hidden": (576,)}.
        """
        self.key = {**key, "formula": FORMULA, "fields": {name: list(shape) for name, shape in fields.items()}}
        self.folder = folder / key_hash(self.key)[:32]
        self.fields = dict(fields)
        self.rows = rows
        self.note = ""  # what was wrong with what was found on disk, if anything
        self.values = {name: torch.zeros((rows, *shape)) for name, shape in fields.items()}
        self.filled = torch.zeros(rows, dtype=torch.bool)
        # Loader workers look up rows that the training process fills.
        for tensor in (*self.values.values(), self.filled):
            tensor.share_memory_()
        self._unsaved = False
        self._pending: list[tuple[Tensor, dict[str, Tensor]]] = []
        self._take(self._read())

    @property
    def complete(self) -> bool:
        """Whether every row is filled."""
        return bool(self.filled.all())

    def lookup(self, rows: Sequence[int]) -> dict[str, Tensor] | None:
        """Return the values of `rows`, or None if one of them is not filled."""
        index = torch.as_tensor(rows)
        if not bool(self.filled[index].all()):
            return None
        return {name: values[index] for name, values in self.values.items()}

    def put(self, rows: Tensor, values: Mapping[str, Tensor]) -> None:
        """Take in values of `rows` `[B]`; they stay on their device until `collect`, so that no step waits."""
        self._pending.append((rows, {name: values[name].detach() for name in self.fields}))

    def collect(self) -> None:
        """Bring what was put in from the device."""
        for rows, values in self._pending:
            index = rows.cpu()
            good = torch.stack(
                [v.flatten(1).isfinite().all(1) if v.dim() > 1 else v.isfinite() for v in values.values()]
            )
            index = index[good.all(0).cpu()]
            for name, value in values.items():
                self.values[name][index] = value.cpu().float()[good.all(0).cpu()]
            self.filled[index] = True
            self._unsaved = True
        self._pending.clear()

    def save(self) -> None:
        """Write what is new to disk, together with what other processes have written meanwhile.

        Raises:
            CacheError: the disk is full or the folder cannot be written.
        """
        self.collect()
        if not self._unsaved:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / LOCK):
                self._take(self._read())
                tensors = {**self.values, FILLED: self.filled.to(torch.uint8)}
                replace_file(self.folder / VALUES, lambda part: save_file(tensors, part))
                replace_file(
                    self.folder / KEY, lambda part: part.write_text(json.dumps(self.key, indent=2, default=str))
                )
        except (OSError, SafetensorError) as error:
            raise CacheError(
                f"The reference cache {self.folder} cannot be written ({error}). Free space, set LEDPO_CACHE to "
                "another folder, or set disable_reference_cache: true."
            ) from error
        self._unsaved = False

    def refresh(self) -> None:
        """Take in what other processes have written meanwhile."""
        self._take(self._read())

    def _read(self) -> dict[str, Tensor] | None:
        """Return what is on disk, or None; says in `note` why something that is there is not used."""
        if not (self.folder / VALUES).exists():
            return None
        if _read_json(self.folder / KEY) != json.loads(json.dumps(self.key, default=str)):
            self.note = f"{self.folder}: its key file is missing or another one; computed anew."
            return None
        try:
            found = load_file(self.folder / VALUES)
        except (OSError, SafetensorError) as error:
            self.note = f"{self.folder / VALUES} is damaged ({error}); computed anew."
            return None
        shapes = {name: tensor.shape for name, tensor in self.values.items()} | {FILLED: self.filled.shape}
        if {name: tensor.shape for name, tensor in found.items()} != shapes:
            self.note = f"{self.folder / VALUES} does not hold what its key says; computed anew."
            return None
        return found

    def _take(self, found: dict[str, Tensor] | None) -> None:
        if found is None:
            return
        new = found.pop(FILLED).bool() & ~self.filled
        for name, values in found.items():
            self.values[name][new] = values[new]
        self.filled |= new
