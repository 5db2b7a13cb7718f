"""Which experiments there are and how each stands, as data: `ledpo status` prints it, the web UI shows it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ledpo_plugin.common.files import read_yaml
from ledpo_plugin.experiments.definition.experiment import FILE
from ledpo_plugin.experiments.definition.plan import TRAIN, Run, results_folder
from ledpo_plugin.experiments.results.store import (
    BACKGROUND,
    EXPERIMENT,
    ResultsError,
    further_states,
    read_results,
    runs_in,
    state_of,
)

from .background import AtWork, at_work
from .progress import summary, time_left

AT_WORK = ("training", "measuring")
DEPTH, AT_MOST = 3, 20_000  # levels below a folder, and folders in all, that are searched for experiments


@dataclass(frozen=True)
class Overview:
    """The runs of a results folder and the state of each."""

    results: Path
    definition: Mapping[str, Any]
    runs: tuple[Run, ...]
    states: tuple[Mapping[str, Any], ...]  # of the runs, in their order; see `store.state_of`
    further: Mapping[str, Mapping[str, Any]]  # what runs need first, and parts of the study; see `further_states`

    @property
    def title(self) -> str:
        return str(self.definition.get("title"))

    @property
    def profile(self) -> str:
        return str(self.definition.get("profile_name"))

    def count(self, phase: str) -> int:
        """Return how many runs and further parts are in a phase."""
        return sum(state["phase"] == phase for state in (*self.states, *self.further.values()))

    @property
    def finished(self) -> bool:
        """Whether there are runs, and all of them and of the further parts have their result."""
        return bool(self.runs) and self.count("finished") == len(self.states) + len(self.further)

    @property
    def _slots(self) -> int:
        return sum(state["phase"] in AT_WORK for state in self.states) or 1

    @property
    def _guess(self) -> float | None:
        return self.definition["profile"].get("seconds_per_run")

    def summary(self) -> str:
        """Return one line on all runs."""
        return summary(self.states, self._slots, self._guess)

    def seconds_left(self) -> float | None:
        """Return about how long the open runs will take; None where nothing tells."""
        return time_left(self.states, self._slots, self._guess)

    def label_of(self, variant: str) -> str:
        """Return what a variant is called in reports."""
        entry = (self.definition.get("variants") or {}).get(variant)
        return str((entry or {}).get("label") or variant)

    def trained(self) -> list[Run]:
        """Return the finished runs whose training left a beta strategy, so that beta(x) can be asked of them."""
        from ledpo_plugin.modeling.head_file import CONFIG  # brings torch, which `ledpo status` does without

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
    return Overview(results, kept["definition"], runs, states, further_states(results))


@dataclass(frozen=True)
class Standing:
    """How an experiment stands under one of its profiles."""

    state: str  # not_started, running, ended_early (before any run), interrupted, failed, finished, unreadable
    present: AtWork | None  # the process at work on it
    found: Overview | None  # None: nothing of it is there, or it cannot be read
    error: str = ""


def standing(results: Path) -> Standing:
    """Return how the experiment of a results folder stands; what is wrong with the folder is part of the answer."""
    present = at_work(results)
    if not (results / EXPERIMENT).is_file():
        early = "ended_early" if (results / BACKGROUND).is_file() else "not_started"
        return Standing("running" if present else early, present, None)
    try:
        found = overview(results)
    except ResultsError as error:
        return Standing("running" if present else "unreadable", present, None, str(error))
    if present:
        return Standing("running", present, found)
    if found.finished:
        return Standing("finished", None, found)
    ended = found.count("finished") + found.count("failed") == len(found.states) + len(found.further)
    return Standing("failed" if ended and found.states else "interrupted", None, found)


@dataclass(frozen=True)
class Sketch:
    """What an experiment says of itself, unchecked: it is shown, not run."""

    folder: Path
    title: str
    question: str
    planned: Mapping[str, tuple[int, int]]  # profile -> number of variants and of seeds
    error: str = ""

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    def results(self, profile: str) -> Path:
        """Return where `ledpo run` keeps its results."""
        return results_folder(self.name, profile)


def sketch(folder: Path) -> Sketch:
    """Return what an experiment says of itself; a file that cannot be read is part of the answer."""
    try:
        state = (folder / FILE).stat()
    except OSError as error:
        return Sketch(folder, "", "", {}, f"{folder / FILE} cannot be read ({error.strerror}).")
    return _sketch(folder, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=500)
def _sketch(folder: Path, *_version: int) -> Sketch:
    try:
        raw = read_yaml(folder / FILE)
    except (OSError, ValueError) as error:
        return Sketch(folder, "", "", {}, str(error))
    if not isinstance(raw, dict):
        return Sketch(folder, "", "", {}, f"{folder / FILE} holds no mapping of keys to values.")
    profiles, variants = raw.get("profiles"), raw.get("variants")
    profiles = profiles if isinstance(profiles, dict) else {}
    planned = {str(name): _planned(profile, variants) for name, profile in profiles.items()}
    return Sketch(folder, str(raw.get("title") or ""), str(raw.get("question") or ""), planned)


def _planned(profile: Any, variants: Any) -> tuple[int, int]:
    profile = profile if isinstance(profile, dict) else {}
    chosen, seeds = profile.get("variants") or variants, profile.get("seeds")
    counts = [len(value) if isinstance(value, list | dict) else 0 for value in (chosen, seeds)]
    return counts[0], counts[1]


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
