"""`ledpo_run.json`: what was run, with which values and versions; written when training starts."""

import hashlib
import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RECORD = "ledpo_run.json"
PACKAGES = ("ledpo-plugin", "llamafactory", "torch", "transformers", "trl", "peft", "accelerate", "datasets")
SECRET = ("token", "key", "secret", "password")


def package_versions() -> dict[str, str | None]:
    """Return the installed version of every package a result depends on; None where it is absent."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def recipe_hash(recipe: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the recipe's keys and values, whatever their order; secrets do not count."""
    text = json.dumps(without_secrets(recipe), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def without_secrets(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe with the values of keys, tokens and passwords blanked."""
    return {
        key: "***" if value and any(word in key.lower().split("_") for word in SECRET) else value
        for key, value in recipe.items()
    }


def write_record(folder: str | Path, *, recipe: Mapping[str, Any], added: Mapping[str, Any], **facts: Any) -> None:
    """Write the record of a run into `folder`: the recipe as given, the values added to it, versions and facts."""
    record = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "recipe": without_secrets(recipe),
        "recipe_sha256": recipe_hash(recipe),
        "resolved": dict(added),
        "versions": package_versions(),
        **facts,
    }
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=2, ensure_ascii=False, default=str) + "\n"
    (path / RECORD).write_text(text, encoding="utf-8")


def read_record(folder: str | Path) -> dict[str, Any]:
    """Return the record in `folder`, or, where that is a checkpoint, of the run it belongs to.

    Raises:
        FileNotFoundError: there is none; the message says what to point to.
    """
    candidates = [Path(folder) / RECORD, Path(folder).absolute().parent / RECORD]
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{candidates[0]} does not exist. Point to the output_dir of a run of a LEDPO stage.")
    return json.loads(path.read_text(encoding="utf-8"))
