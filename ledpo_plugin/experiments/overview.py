"""How an experiment stands, as data: what `ledpo status` prints and the web UI shows; and which experiments there are."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .definition import FILE
from .plan import TRAIN, Run
from .progress import summary
from .store import read_results, runs_in, state_of, study_states

AT_WORK = ("training", "measuring")
DEPTH, AT_MOST = 3, 20_000  # levels below a folder, and folders in all, that are searched for experiments


@dataclass(frozen=True)
class Overview:
    """The runs of a results folder and the state of each."""

    results: Path
    definition: Mapping[str, Any]
    runs: tuple[Run, ...]
    states: tuple[Mapping[str, Any], ...]  # of the runs, in their order; see `store.state_of`
    study: Mapping[str, Mapping[str, Any]]  # part of the study -> its state

    @property
    def title(self) -> str:
        return str(self.definition.get("title"))

    @property
    def profile(self) -> str:
        return str(self.definition.get("profile_name"))

    def count(self, phase: str) -> int:
        """Return how many runs and parts of the study are in a phase."""
        return sum(state["phase"] == phase for state in (*self.states, *self.study.values()))

    @property
    def finished(self) -> bool:
        """Whether there are runs, and all of them and of the study's parts have their result."""
        return bool(self.runs) and self.count("finished") == len(self.states) + len(self.study)

    def summary(self) -> str:
        """Return one line on all runs."""
        at_work = sum(state["phase"] in AT_WORK for state in self.states)
        return summary(self.states, at_work or 1, self.definition["profile"].get("seconds_per_run"))

    def label_of(self, variant: str) -> str:
        """Return what a variant is called in reports."""
        entry = (self.definition.get("variants") or {}).get(variant)
        return str((entry or {}).get("label") or variant)

    def trained(self) -> list[Run]:
        """Return the finished runs whose training left a beta strategy, so that beta(x) can be asked of them."""
        from ledpo_plugin.head_file import CONFIG  # brings torch, which `ledpo status` does without

        pairs = zip(self.runs, self.states, strict=True)
        return [run for run, state in pairs if state["phase"] == "finished" and (run.folder / TRAIN / CONFIG).is_file()]


def overview(results: Path) -> Overview:
    """Read how the runs of a results folder are.

    Raises:
        ResultsError: it is no results folder, or of a later version of this package.
    """
    kept = read_results(results)
    runs = tuple(runs_in(results, kept["recipes"]))
    states = tuple(state_of(run.folder) for run in runs)
    return Overview(results, kept["definition"], runs, states, study_states(results))


def find_experiments(folder: Path) -> list[Path]:
    """Return the folders with an `experiment.yaml`: the folder itself, or those some levels below it.

    Links are not followed and hidden folders not entered, and the search is bounded: a folder that somebody typed may
    be a whole disk.

    Raises:
        ValueError: there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder. Name one that holds experiments, such as yaml_recipes.")
    found: list[Path] = []
    for number, (path, inside, files) in enumerate(os.walk(folder)):
        if FILE in files:
            found.append(Path(path))
            inside.clear()
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        if number >= AT_MOST:
            break
        if len(Path(path).relative_to(folder).parts) >= DEPTH:
            inside.clear()
    return found
