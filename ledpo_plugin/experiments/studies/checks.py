"""What is wrong with the `study` of a profile: said with everything else that is wrong with the experiment."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ledpo_plugin.common.problem import unknown
from ledpo_plugin.experiments.definition.checks import registries
from ledpo_plugin.experiments.definition.experiment import Variant
from ledpo_plugin.experiments.definition.problems import Found

from .given import Given
from .kinds import STUDIES, study_of

# Keys that every kind of study has.
COMMON = ("kind", "note", "prompts", "max_new_tokens", "batch_size", "judges", "judge_prompts", "seeds")
NEEDED = ("kind", "prompts", "max_new_tokens")


def check_study(
    value: Any,
    where: str,
    folder: Path,
    variants: Sequence[Variant],
    seeds: Sequence[int],
    with_files: bool,
    found: Found,
) -> dict[str, Any]:
    """Return a study's known keys; say everything that is wrong with it.

    Args:
        value: what experiment.yaml has under `study`.
        where: its key there.
        folder: of the experiment.
        variants, seeds: of the profile.
        with_files: whether data sets must be there.
        found: takes the problems.
    """
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if isinstance(value, Mapping) and kind not in STUDIES:
        found.problems.append(unknown(f"{where}.kind", kind, "kind of study", STUDIES))
        return {}
    if not isinstance(value, Mapping):
        found.say(where, value, "a mapping of keys to values is expected here", f"write {where}: with lines below it")
        return {}
    study = study_of(kind)
    given = found.mapping(value, where, (*COMMON, *study.KEYS), (*NEEDED, *study.NEEDED))
    for key in ("max_new_tokens", "batch_size", "judge_prompts"):
        if given.get(key) is not None:
            found.number(given[key], f"{where}.{key}")
    if given.get("note") is not None and not isinstance(given["note"], str):
        found.say(f"{where}.note", given["note"], "a text is expected here", "write what a reader must know first")
    _check_prompts(given.get("prompts"), f"{where}.prompts", variants, with_files, found)
    own_seeds = given.get("seeds")
    if own_seeds is not None and (not isinstance(own_seeds, list) or not own_seeds or not set(own_seeds) <= set(seeds)):
        why = f"the study asks runs of seeds that are not run (the profile's are {list(seeds)})"
        found.say(f"{where}.seeds", own_seeds, why, "name some of the profile's seeds, or leave the key out")
    checked = Given(given, where, folder, variants, found)
    _check_judges(checked)
    study.check(checked)
    return given


def _check_prompts(value: Any, where: str, variants: Sequence[Variant], with_files: bool, found: Found) -> None:
    if value is None:
        return
    counts = found.mapping(value, where)
    for name, count in counts.items():
        found.number(count, f"{where}.{name}")
    if not with_files:
        return
    for folder, known in registries(variants):
        found.problems += [unknown(where, name, f"data set in {folder}", known) for name in counts if name not in known]


def judge_files(study: Mapping[str, Any], folder: Path) -> list[Path]:
    """Return the files of a study's judges."""
    return [folder / name for name in study.get("judges") or ()]


def _check_judges(given: Given) -> None:
    from eval_harness.judging import read_judge

    key = f"{given.where}.judges"
    names: dict[str, str] = {}
    given.found.names(given.study.get("judges"), key)
    for path in judge_files(given.study, given.folder):
        if not path.is_file():
            given.found.say(key, str(path), "there is no such file", "name a judge's YAML, beside experiment.yaml")
            continue
        try:
            judge = read_judge(path)
        except ValueError as error:
            given.found.say(key, str(path), str(error), "mend the file")
            continue
        if judge.name in names:
            why = f"{names[judge.name]} has the same name {judge.name!r}"
            given.found.say(key, str(path), why, "give each judge a name of its own")
        names.setdefault(judge.name, str(path))
