"""The results folder of an experiment, read: which runs there are, what they measured, and the untrained models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ledpo_plugin.common.files import read_json
from ledpo_plugin.common.plain_text import visible
from ledpo_plugin.common.run_record import without_secrets

from .store import MEASURES

FINISHED = "finished"


@dataclass(frozen=True)
class Run:
    """One planned run; `result` is None unless it finished."""

    variant: str
    seed: int
    phase: str
    folder: Path
    error: str | None
    log_tail: tuple[str, ...]
    result: Mapping[str, Any] | None

    def items(self, kind: str, dataset: str) -> dict[str, np.ndarray] | None:
        """Return the columns [N] of the last measurement of a data set; None if it was not measured.

        Args:
            kind: `pairs` or `instructions`, or `scores` of drawn answers.
            dataset: its name; of scores, who gave them.
        """
        return newest_columns(self.folder / MEASURES, f"{kind}/{dataset}.json")

    def item_ids(self, kind: str, dataset: str) -> list[str] | None:
        """Return what the items of those columns are called; None where an earlier version measured them."""
        return _ids(_newest(self.folder / MEASURES, f"{kind}/{dataset}.json"))

    def generations(self) -> list[Mapping[str, Any]]:
        """Return the rows of the last generations: prompt, output, tokens, ended; drawn answers where none are."""
        measures = self.folder / MEASURES
        return _rows(_newest(measures, "generations.json")) or _rows(_newest(measures, "answers.json"))


@dataclass(frozen=True)
class Base:
    """An untrained model, measured as the runs that started from it are."""

    name: str
    model: str
    folder: Path
    metrics: Mapping[str, float]
    provenance: Mapping[str, Any]

    def items(self, kind: str, dataset: str) -> dict[str, np.ndarray] | None:
        """Return the columns [N] of a measurement, as of a run."""
        return _columns(next(iter(sorted(self.folder.rglob(f"{kind}/{dataset}.json"))), None))

    def item_ids(self, kind: str, dataset: str) -> list[str] | None:
        """Return what the items of those columns are called, as of a run."""
        return _ids(next(iter(sorted(self.folder.rglob(f"{kind}/{dataset}.json"))), None))

    def generations(self) -> list[Mapping[str, Any]]:
        """Return the rows of its generations: prompt, output, tokens, ended; drawn answers where there are none."""
        files = [next(iter(sorted(self.folder.rglob(name))), None) for name in ("generations.json", "answers.json")]
        return _rows(files[0]) or _rows(files[1])


@dataclass(frozen=True)
class Collected:
    """An experiment's definition and everything its results folder holds."""

    folder: Path
    definition: Mapping[str, Any]
    runs: tuple[Run, ...]
    bases: Mapping[str, Base]
    prerequisites: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # what each left: its result

    @property
    def profile(self) -> Mapping[str, Any]:
        """The one profile that was run."""
        return self.definition["profile"]

    @property
    def evaluation(self) -> Mapping[str, Any]:
        """What is measured, and which metric answers the question."""
        return self.profile["evaluation"]

    @property
    def baseline(self) -> str:
        """The variant the others are compared to where they name none."""
        return self.definition["baseline"]

    @cached_property
    def variants(self) -> tuple[str, ...]:
        """Names of the variants that were planned, in the definition's order."""
        planned = {run.variant for run in self.runs}
        return tuple(name for name in self.definition["variants"] if name in planned or not planned)

    def settings(self, variant: str) -> Mapping[str, Any]:
        """Return what the definition says of a variant."""
        return self.definition["variants"].get(variant) or {}

    def label(self, variant: str) -> str:
        """Return a variant's name in tables and plots."""
        return " ".join(visible(str(self.settings(variant).get("label", variant))).split())

    def compares_to(self, variant: str) -> str | None:
        """Return the variant that `variant` is compared to; None for the baseline."""
        other = self.settings(variant).get("compares_to") or self.baseline
        return None if other == variant else other

    def planned(self, variant: str) -> tuple[Run, ...]:
        """Return the planned runs of a variant."""
        return tuple(run for run in self.runs if run.variant == variant)

    def finished(self, variant: str) -> tuple[Run, ...]:
        """Return the finished runs of a variant, by seed."""
        return tuple(sorted((r for r in self.planned(variant) if r.result is not None), key=lambda run: run.seed))

    def base_of(self, variant: str) -> Base | None:
        """Return the untrained model that a variant's runs started from."""
        names = [run.result.get("base") for run in self.finished(variant)]
        return next((self.bases[name] for name in names if name in self.bases), None)

    def recipe(self, variant: str) -> dict[str, Any] | None:
        """Return a variant's recipe without secrets: of its first finished run, or as it was to be run."""
        for run in self.finished(variant):
            if isinstance(run.result.get("recipe"), Mapping):
                return without_secrets(run.result["recipe"])
        for run in self.planned(variant):
            found = _yaml(run.folder / "recipe.yaml")
            if found:
                return without_secrets(found)
        kept = (_json(self.folder / "experiment.json") or {}).get("recipes")
        found = kept.get(variant) if isinstance(kept, Mapping) else None
        return without_secrets(found) if isinstance(found, Mapping) else None

    def phases(self, variant: str) -> list[Mapping[str, Any]]:
        """Return the trainings of a variant that has several, as its first finished run says them; else nothing."""
        return next((list(run.result.get("phases") or ()) for run in self.finished(variant)), [])

    def recipes(self, variant: str) -> list[tuple[str, dict[str, Any], Mapping[str, Any]]]:
        """Return name, recipe and values that were filled in of every training of a variant; the name may be empty."""
        phases = self.phases(variant)
        if phases:
            return [(one["name"], without_secrets(one["recipe"]), one.get("resolved") or {}) for one in phases]
        recipe = self.recipe(variant)
        return [] if recipe is None else [("", recipe, self.resolved(variant))]

    def names(self, variant: str, place: str) -> bool:
        """Return whether a variant's trainings name what another one left in a place."""
        return any(place and place in map(str, recipe.values()) for _, recipe, _ in self.recipes(variant))

    def resolved(self, variant: str) -> Mapping[str, Any]:
        """Return the values that the plugin filled in."""
        return next((dict(run.result.get("resolved") or {}) for run in self.finished(variant)), {})

    def value(self, variant: str, key: str) -> Any:
        """Return the value of a key of a variant's recipes, as written or as filled in; None if neither.

        Of several trainings it is the first one's that has the key.
        """
        recipes = self.recipes(variant)
        given = [recipe[key] for _, recipe, _ in recipes if recipe.get(key) is not None]
        return next(iter([*given, *(added[key] for _, _, added in recipes if added.get(key) is not None)]), None)


def collect(results: Path, definition: Mapping[str, Any], states: Sequence[Mapping[str, Any]]) -> Collected:
    """Read a results folder.

    Args:
        results: the folder.
        definition: the experiment's, with the one profile's settings under `profile`.
        states: per planned run variant, seed, phase, folder, error and log_tail.

    A result that cannot be read makes its run unfinished, and says why; it is never an error of the report.
    """
    results = Path(results)
    runs = tuple(_run(results, state) for state in states)
    bases = {}
    for path in sorted(results.glob("base/*/result.json")):
        found = _json(path)
        if found:
            name = str(found.get("base", path.parent.name))
            metrics = found.get("metrics") or {}
            bases[name] = Base(name, str(found.get("model", "")), path.parent, metrics, found.get("provenance") or {})
    needed = {path.parent.name: found for path in results.glob("prerequisites/*/result.json") if (found := _json(path))}
    return Collected(results, definition, runs, bases, needed)


def number(value: Any) -> float:
    """Return a logged value as a float; nan for what is none, so that it counts as not finite."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def _run(results: Path, state: Mapping[str, Any]) -> Run:
    variant, seed, phase = state["variant"], int(state["seed"]), state["phase"]
    folder = Path(state.get("folder") or "")
    if not state.get("folder") or not folder.is_dir():  # the folder may have been moved since
        folder = results / "runs" / variant / f"seed-{seed}"
    error, result = state.get("error"), None
    if phase == FINISHED:
        result = _json(folder / "result.json")
        if result is None:
            phase, error = "unreadable", f"{folder / 'result.json'} cannot be read. Delete it and run this again."
    return Run(variant, seed, phase, folder, error, tuple(map(str, state.get("log_tail") or ())), result)


def _json(path: Path) -> dict[str, Any] | None:
    found = read_json(path)
    return found if isinstance(found, dict) else None


def _yaml(path: Path) -> dict[str, Any] | None:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return found if isinstance(found, dict) else None


def newest_columns(measures: Path, name: str) -> dict[str, np.ndarray] | None:
    """Return the columns [N] of the last checkpoint that has a file of this name; None where there is none."""
    return _columns(_newest(measures, name))


def _newest(measures: Path, name: str) -> Path | None:
    return max((path for path in measures.glob(f"step-*/{name}")), default=None, key=lambda path: path.parts)


def _columns(path: Path | None) -> dict[str, np.ndarray] | None:
    found = _json(path) if path else None
    if not found or not isinstance(found.get("columns"), dict):
        return None
    return {key: np.asarray([number(v) for v in values]) for key, values in found["columns"].items()}


def _ids(path: Path | None) -> list[str] | None:
    found = (_json(path) if path else None) or {}
    return [str(item) for item in found["items"]] if isinstance(found.get("items"), list) else None


def _rows(path: Path | None) -> list[Mapping[str, Any]]:
    found = (_json(path) if path else None) or {}
    return [row for row in found.get("rows", []) if isinstance(row, dict)]
