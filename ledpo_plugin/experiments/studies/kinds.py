"""What is asked of trained models once all runs of an experiment are finished: whole studies, part by part."""

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from ledpo_plugin.common.lookup import lookup

if TYPE_CHECKING:
    from ledpo_plugin.experiments.definition.experiment import Experiment
    from ledpo_plugin.experiments.definition.plan import Run
    from ledpo_plugin.experiments.report.blocks import Section
    from ledpo_plugin.experiments.results.collected import Collected

    from .given import Given
    from .parts import Part


class Study(Protocol):
    """A kind of study; a module with these functions."""

    KEYS: Sequence[str]  # of `study` in experiment.yaml, beside those that all kinds have
    NEEDED: Sequence[str]
    LAST: str  # the kind of the part that holds every figure of the study

    def check(self, given: "Given") -> None:
        """Say what is wrong with the study's own keys."""

    def stages(self, experiment: "Experiment", results: Path, runs: Sequence["Run"]) -> Iterator[list["Part"]]:
        """Yield the parts, stage by stage; a stage is asked for when the one before has ended."""

    def work(self, folder: Path, job: Mapping[str, Any], log: Any) -> dict[str, Any]:
        """Do one part in its folder and return its result."""

    def sections(self, found: "Collected") -> list["Section"]:
        """Return what the report shows of it, the answer first; nothing where it did not come so far."""


# kind -> the module that is it.
STUDIES: Mapping[str, str] = MappingProxyType(
    {
        "evaluation_methods": "ledpo_plugin.experiments.studies.methods",
        "decoding": "ledpo_plugin.experiments.studies.decoding",
    }
)


def study_of(kind: str) -> Study:
    """Return the study of a kind.

    Raises:
        KeyError: the kind is unknown.
    """
    return import_module(lookup(STUDIES, "kind of study", kind))
