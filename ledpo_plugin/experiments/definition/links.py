"""Recipes that start from what other recipes leave: a value that is another's `output_dir` names where that one ran.

Written like this, every recipe of an experiment also runs by itself, one after the other, with the stock command.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ledpo_plugin.recipes.reading import split_names

# The keys by which a recipe names the output of another training.
LINKING = (
    *("adapter_name_or_path", "beta_head_path", "model_name_or_path", "ref_model", "ref_model_adapters"),
    *("reward_model", "reward_model_adapters"),
)


def place_of(recipe: Mapping[str, Any]) -> str:
    """Return a recipe's `output_dir` in the one spelling by which others are found to name it."""
    value = recipe.get("output_dir")
    return os.path.normpath(value) if isinstance(value, str) and value else ""


def named_in(recipe: Mapping[str, Any], place: str) -> list[str]:
    """Return the keys by which a recipe names a place (see `place_of`)."""
    return [
        key
        for key in LINKING
        if isinstance(recipe.get(key), str) and place in map(os.path.normpath, split_names(recipe[key]))
    ]


def linked(recipe: Mapping[str, Any], places: Mapping[str, Path]) -> dict[str, Any]:
    """Return the recipe with every place that it names (see `place_of`) replaced by the folder that it is."""
    found = dict(recipe)
    for key in LINKING:
        if isinstance(recipe.get(key), str):
            names = split_names(recipe[key])
            if any(os.path.normpath(name) in places for name in names):
                found[key] = ",".join(str(places.get(os.path.normpath(name), name)) for name in names)
    return found
