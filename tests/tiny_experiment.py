"""An experiment of three variants on the tiny model, in the layout of `yaml_recipes/`."""

from pathlib import Path
from typing import Any

import yaml
from conftest import Tiny

VARIANTS: dict[str, dict[str, Any]] = {
    "dpo": {"beta_mode": "fixed"},
    "ledpo": {"beta_mode": "head"},
    "orpo": {"stage": "ledpo_orpo", "beta_mode": None, "fill_reference_cache": None},
}
EVALUATION = {
    "pairs": ["heldout"],
    "instructions": ["instructions"],
    "generations": {"prompts": "heldout", "count": 2, "max_new_tokens": 6},
    "primary": "heldout/accuracy",
    "secondary": ["heldout/margin", "instructions/nll"],
    "target": {"metric": "heldout/accuracy", "at_least": 0.5},
}


def write_experiment(
    folder: Path,
    tiny: Tiny,
    *,
    variants: dict[str, dict[str, Any]] | None = None,
    recipes: dict[str, dict[str, Any]] | None = None,
    common: dict[str, Any] | None = None,
    top: dict[str, Any] | None = None,
    **profile: Any,
) -> Path:
    """Write an experiment that is good as it is.

    Args:
        folder: its folder.
        tiny: model and data.
        variants: entries of experiment.yaml that replace the good ones.
        recipes: changes of recipes, by variant.
        common: changes of all recipes.
        top: changes of experiment.yaml.
        profile: changes of the profile; None takes a key out.
    """
    entries = {
        "dpo": {"label": "DPO"},
        "ledpo": {"label": "LEDPO", "changes": ["beta_mode"], "note": "the head"},
        "orpo": {"label": "ORPO", "changes": ["stage", "beta_mode", "fill_reference_cache"]},
    } | (variants or {})
    own = {
        "seeds": [1, 2],
        "budget": {"steps": 4},
        "checkpoints": 2,
        "resources": {"cpus": 1, "memory_gb": 1, "disk_gb": 0.1},
        "evaluation": EVALUATION,
    } | profile
    definition = {
        "name": folder.name,
        "title": "A tiny experiment",
        "question": "Does it run?",
        "status": "planned",
        "baseline": "dpo",
        "variants": {name: entry for name, entry in entries.items() if entry is not None},
        "profiles": {"cpu": {key: value for key, value in own.items() if value is not None}},
    } | (top or {})
    (folder / "cpu").mkdir(parents=True, exist_ok=True)
    (folder / "experiment.yaml").write_text(yaml.safe_dump(definition, sort_keys=False))
    for name, changes in VARIANTS.items():
        recipe = tiny.recipe(
            Path("runs") / folder.name / name,
            **{"fill_reference_cache": True, **changes, **(common or {}), **(recipes or {}).get(name, {})},
        )
        (folder / "cpu" / f"{name}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return folder
