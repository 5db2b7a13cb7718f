"""Finished runs as one small JSON file each, which a repository can hold: another machine goes on from them.

A file holds what the report needs of a run: its result, and of its last measurement one number an item. It holds no
text of a data set and no weights; what was drawn or generated stays in the results folder.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ledpo_plugin.common.files import packed_json, read_json, write_json, write_text
from ledpo_plugin.common.run_record import without_secrets
from ledpo_plugin.common.stats import to_digits
from ledpo_plugin.experiments.definition.checks import differences
from ledpo_plugin.experiments.definition.plan import Run

from .store import BASE, MEASURES, RESULT, ResultsError, now, write_run, write_state

KEPT_FORMAT = 1
DIGITS = 7  # significant ones of an item's value: what single precision has
RESULTS = "{results}"  # stands in recipes for the results folder, which is another one elsewhere
_STEP = re.compile(r"step-\d+")
_COLUMNS = re.compile(r"(?:step-\d+/)?(?:pairs|instructions|scores)/[^/]+\.json")


def kept_file(kept: Path, results: Path, run: Run) -> Path:
    """Return where a run, or an untrained model, is kept: as in the results folder, a file for its folder."""
    return (kept / run.folder.relative_to(results)).with_suffix(".json")


def keep(kept: Path, results: Path, run: Run, job: Mapping[str, Any]) -> Path | None:
    """Write the file of a finished run; return it, or None where there is no result that can be read.

    Args:
        kept: the folder of such files.
        results: the results folder.
        run: of the results folder.
        job: what its worker was told.
    """
    result = read_json(run.folder / RESULT)
    if not isinstance(result, dict):
        return None
    base = _base_columns(results, result)
    measures = {name: _without(measure, base.get(_of(name))) for name, measure in _measured(run.folder).items()}
    told = {"recipes": _recipes(run, results), "budget": job.get("budget"), "evaluation": job["evaluation"]}
    path = kept_file(kept, results, run)
    whole = {"format": KEPT_FORMAT, "told": told, "result": _plain(result), "measures": measures}
    write_text(path, packed_json(whole) + "\n")
    return path


def restore(kept: Path, results: Path, run: Run, job: Mapping[str, Any], data: Mapping[str, str]) -> bool:
    """Write a kept run's result into its folder, if it is kept; return whether it is.

    Untrained models are to be restored before the runs that started from them.

    Args:
        kept: the folder of kept runs.
        results: the results folder.
        run: not finished yet.
        job: what its worker would be told.
        data: name -> SHA-256 of the data sets of today.

    Raises:
        ResultsError: the file is damaged, or of something else than this run; the message says what differs.
    """
    path = kept_file(kept, results, run)
    if not path.is_file():
        return False
    found = read_json(path)
    if not _is_whole(found):
        raise ResultsError(
            f"{path} is damaged, or of a later version (this one reads format {KEPT_FORMAT}). Bring it back from the "
            f"repository, or delete it: then the run is done anew."
        )
    problems = _conflicts(found, run, results, job, data)
    if problems:
        raise ResultsError(
            f"{path} was kept of another run than {run.name} is now: {'; '.join(problems)}. Take the change back, name "
            f"another folder with --keep, or delete the file: then the run is done anew."
        )
    base = _base_columns(results, found["result"])
    write_run(run, job)
    for name, measure in found["measures"].items():
        write_json(run.folder / MEASURES / name, _with(measure, base.get(_of(name)), path))
    write_json(run.folder / RESULT, found["result"])  # last: with it, the run is finished
    write_state(run.folder, "finished", str(found["result"].get("started") or now()), restored_from=str(path))
    return True


# ---- what is compared


def _recipes(run: Run, results: Path) -> dict[str, Any]:
    """Return the recipes of a run's trainings by name, the results folder's own name left out, without secrets."""
    recipes = {training.name: training.recipe for training in run.trainings} or {"": run.recipe}
    return {name: _anywhere(without_secrets(recipe), str(results)) for name, recipe in recipes.items()}


def _anywhere(value: Any, results: str) -> Any:
    if isinstance(value, dict):
        return {key: _anywhere(inner, results) for key, inner in value.items()}
    if isinstance(value, str) and value.startswith(f"{results}/"):
        return RESULTS + value.removeprefix(results)
    return value


def _conflicts(
    found: Mapping[str, Any], run: Run, results: Path, job: Mapping[str, Any], data: Mapping[str, str]
) -> list[str]:
    told, here = found["told"], json.loads(json.dumps(_recipes(run, results), default=str))
    problems = []
    if told["recipes"].keys() != here.keys():
        problems.append(f"its trainings are {', '.join(told['recipes'])} there, {', '.join(here)} here")
    for name, recipe in here.items():
        kept = told["recipes"].get(name, {})
        for key in differences(kept, recipe):
            problems.append(f"{key} is {kept.get(key)!r} there, {recipe.get(key)!r} here")
    for key in ("budget", "evaluation"):
        now_told = json.loads(json.dumps(job.get(key)))
        if told.get(key) != now_told:
            problems.append(f"the {key} is {told.get(key)!r} there, {now_told!r} here")
    for name, digest in ((found["result"].get("provenance") or {}).get("data_sha256") or {}).items():
        if data.get(name, digest) != digest:
            problems.append(f"data set {name} is another file")
    return problems


def _is_whole(found: Any) -> bool:
    if not isinstance(found, dict) or found.get("format") != KEPT_FORMAT:
        return False
    told, measures = found.get("told"), found.get("measures")
    return (
        isinstance(told, dict)
        and isinstance(told.get("recipes"), dict)
        and isinstance(found.get("result"), dict)
        and isinstance(measures, dict)
        and all(_COLUMNS.fullmatch(name) and ".." not in name for name in measures)
        and all(isinstance(one, dict) and isinstance(one.get("columns"), dict) for one in measures.values())
    )


# ---- what each item said


def _measured(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the newest file of each data set that has a number an item, by its place under `measures`."""
    found: dict[str, dict[str, Any]] = {}
    newest: dict[str, str] = {}
    for path in sorted((folder / MEASURES).rglob("*.json")):
        name = path.relative_to(folder / MEASURES).as_posix()
        measure = read_json(path) if _COLUMNS.fullmatch(name) else None
        if isinstance(measure, dict) and isinstance(measure.get("columns"), dict):
            found.pop(newest.get(_of(name), ""), None)
            newest[_of(name)] = name
            columns = {key: [_rounded(value) for value in column] for key, column in measure["columns"].items()}
            found[name] = {**measure, "columns": columns}
    return found


def _of(name: str) -> str:
    """Return what a measurement is of, whatever step it was made at: `pairs/hh_test.json`."""
    first, _, rest = name.partition("/")
    return rest if _STEP.fullmatch(first) else name


def _base_columns(results: Path, result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what was measured of the model before training; of that model itself nothing."""
    name = result.get("base")
    if "variant" not in result or not isinstance(name, str) or "/" in name:
        return {}
    return _measured(results / BASE / name)


def _without(measure: Mapping[str, Any], base: Mapping[str, Any] | None) -> dict[str, Any]:
    """Leave out what the untrained model's measurement says as well, and name it."""
    if base is None:
        return dict(measure)
    as_base = [key for key, column in measure["columns"].items() if base["columns"].get(key) == column]
    found = {**measure, "columns": {k: v for k, v in measure["columns"].items() if k not in as_base}}
    found["as_base"] = as_base
    if measure.get("items") is not None and measure["items"] == base.get("items"):
        found["items"] = "as_base"
    return found


def _with(measure: Mapping[str, Any], base: Mapping[str, Any] | None, path: Path) -> dict[str, Any]:
    """Undo `_without`."""
    found = {key: value for key, value in measure.items() if key != "as_base"}
    as_base = measure.get("as_base") or []
    if not as_base and found.get("items") != "as_base":
        return found
    if base is None or any(key not in base["columns"] for key in as_base):
        raise ResultsError(
            f"{path} leaves out what the untrained model's file says, and that file is missing or of another version: "
            f"bring base/*.json beside it back from the repository."
        )
    found["columns"] = {**{key: base["columns"][key] for key in as_base}, **measure["columns"]}
    if found.get("items") == "as_base":
        found["items"] = base["items"]
    return found


def _rounded(value: Any) -> float | int | None:
    if isinstance(value, int):
        return value
    return to_digits(value, DIGITS) if isinstance(value, float) else None


def _plain(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result without the secrets that its recipes may hold."""
    found = dict(result)
    if isinstance(found.get("recipe"), dict):
        found["recipe"] = without_secrets(found["recipe"])
    phases = found.get("phases") or []
    return found | ({"phases": [{**one, "recipe": without_secrets(one["recipe"])} for one in phases]} if phases else {})
