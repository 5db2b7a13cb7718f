"""A study as it was written, for those who check it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ledpo_plugin.common.problem import unknown
from ledpo_plugin.experiments.definition.experiment import Variant
from ledpo_plugin.experiments.definition.problems import Found


@dataclass(frozen=True)
class Given:
    """A study as it was written, with what it must fit to."""

    study: Mapping[str, Any]
    where: str  # its key in experiment.yaml
    folder: Path  # of the experiment, which paths in it are relative to
    variants: Sequence[Variant]
    found: Found

    def variant(self, key: str, value: Any) -> None:
        """Say so where a value is no name of a variant."""
        names = [variant.name for variant in self.variants]
        if value not in names:
            self.found.problems.append(unknown(f"{self.where}.{key}", value, "variant", names))
