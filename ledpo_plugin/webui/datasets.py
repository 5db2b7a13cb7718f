"""Which data sets of a registry are of the kind that a stage trains on."""

from collections.abc import Mapping
from typing import Any

from ledpo_plugin.host import contract
from ledpo_plugin.stages import Stage


def _rated(entry: Mapping[str, Any]) -> bool:
    columns = entry.get("columns")
    return bool(columns.get("kto_tag")) if isinstance(columns, Mapping) else False


def is_kind(entry: Any, kind: str) -> bool:
    """Return whether a registry's entry is of a kind: pairs, unpaired (rated answers), instructions or prompts."""
    if not isinstance(entry, Mapping):
        return False
    ranking = entry.get("ranking") is True
    if kind == "pairs":
        return ranking
    if kind == "prompts":
        return True  # every data set has prompts
    rated = _rated(entry)
    return not ranking and (rated if kind == "unpaired" else not rated)


def choices_of(folder: str, kind: str) -> list[str]:
    """Return the names of a folder's data sets of a kind; none where the folder has no readable registry."""
    known = contract.webui_api().load_dataset_info(folder or "")
    return [name for name, entry in known.items() if is_kind(entry, kind)] if isinstance(known, Mapping) else []


def choices_for(folder: str, stage: Stage) -> list[str]:
    """Return the names of a folder's data sets that a stage can train on."""
    return choices_of(folder, stage.data)
