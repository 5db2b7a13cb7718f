"""Experiment three of the plan: which ways to evaluate a model agree, with each other and with people."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ledpo_plugin.experiments.definition.experiment import Experiment
from ledpo_plugin.experiments.definition.plan import Run
from ledpo_plugin.experiments.results.store import MEASURES

from .checks import judge_files
from .given import Given
from .judged import judge, pairs_of
from .outputs import BATCH, answer, read_outputs, read_prompts, score
from .parts import START, Part, chosen_runs, finished, model_name, model_of, part, start_of
from .prompts import write_prompts

KEYS = ("decoding", "labels", "reward", "reference", "human", "repeats", "serve", "worse")
NEEDED = ("judges",)
LAST = "agreement"
GREEDY = {"method": "greedy"}
LABELS = ("chosen", "rejected")  # the answers of a data set's pairs, as models


def check(given: Given) -> None:
    """Say what is wrong with the study's own keys."""
    study, where, found = given.study, given.where, given.found
    for key in ("reward", "worse"):
        if study.get(key) is not None:
            given.variant(key, study[key])
    if study.get("repeats") is not None:
        found.number(study["repeats"], f"{where}.repeats")
    if study.get("labels") is not None and not isinstance(study["labels"], bool):
        found.say(f"{where}.labels", study["labels"], "true or false is expected here", "write true or false")
    for name in found.names(study.get("human"), f"{where}.human"):
        if not (given.folder / name).is_file():
            found.say(f"{where}.human", name, "there is no such file", "name an export of `ledpo eval annotate`, .json")
    check_decoding(given, "decoding", study.get("decoding"))
    check_serve(given)
    starts = {variant.recipe.get("model_name_or_path") for variant in given.variants if variant.recipe}
    if len(starts) > 1:
        why = f"the variants start from different models ({', '.join(sorted(map(str, starts)))})"
        found.say(f"{where}.kind", study["kind"], why, "compare variants of one model")


def check_decoding(given: Given, key: str, value: Any) -> None:
    """Say what is wrong with settings of decoding."""
    from eval_harness.generation import read_decoding

    if value is None:
        return
    try:
        read_decoding(value)
    except (ValueError, KeyError) as error:
        given.found.say(f"{given.where}.{key}", value, str(error), "mend the settings")


def check_serve(given: Given) -> None:
    """Say what is wrong with the servers that the study starts for its judges."""
    from eval_harness.judging import read_judge

    from .judged import port_of

    serve = given.study.get("serve")
    if serve is None:
        return
    where = f"{given.where}.serve"
    judges = {}
    for path in judge_files(given.study, given.folder):
        try:
            own = read_judge(path)
            judges[own.name] = own
        except (OSError, ValueError):
            continue  # said of the judges
    for name, arguments in given.found.mapping(serve, where).items():
        if name not in judges:
            given.found.say(f"{where}.{name}", name, "no judge of the study has this name", "name one of its judges")
            continue
        given.found.mapping(arguments, f"{where}.{name}", None, ("model_name_or_path", "template"))
        try:
            port_of(judges[name].base_url)
        except ValueError as error:
            given.found.say(f"{where}.{name}", name, str(error), "mend the judge's file")


def stages(experiment: Experiment, results: Path, runs: Sequence[Run]) -> Iterator[list[Part]]:
    """Yield the parts: answers of every model; judges and likelihoods; agreement."""
    study = experiment.study
    runs = chosen_runs(experiment, runs)
    if not runs:
        return
    prompts = write_prompts(experiment, results)
    common = prompts | {"batch_size": study.get("batch_size") or BATCH}
    models = {model["model"]: model for model in [start_of(runs[0]), *map(model_of, runs)]}
    told = common | {"decoding": study.get("decoding") or GREEDY, "max_new_tokens": study["max_new_tokens"], "seed": 0}
    answers = {name: part(experiment, results, "answers", name, model=model, **told) for name, model in models.items()}
    yield list(answers.values())
    made = {name: (own, finished(own)) for name, own in answers.items() if finished(own)}
    if START not in made or len(made) < 2:
        return
    outputs = {name: str(own.folder.absolute()) for name, (own, _) in made.items()}
    hashes = {name: result["outputs_sha256"] for name, (_, result) in made.items()}
    asked = common | {"outputs": outputs, "outputs_sha256": hashes}
    parts = [
        part(
            experiment, results, "judge", path.stem, judge_file=str(path.absolute()), judge=path.read_text("utf-8"),
            repeats=study.get("repeats") or 1, judge_prompts=study.get("judge_prompts"),
            labels=bool(study.get("labels")), serve=served_of(study, path), **asked,
        )
        for path in judge_files(study, experiment.folder)
    ]  # fmt: skip
    by = _reward_run(study, runs)
    if by is not None:
        parts.append(part(experiment, results, "likelihoods", by.variant, by=model_of(by), **asked))
    yield parts
    done = {own.name: str(own.folder.absolute()) for own in parts if finished(own)}
    ended = {own.name: finished(own)["ended"] for own in parts if finished(own)}
    human = [str((experiment.folder / name).absolute()) for name in study.get("human") or ()]
    measures = {model_name(run.variant, run.seed): str((run.folder / MEASURES).absolute()) for run in runs}
    yield [
        part(
            experiment, results, "agreement", "all", models=[models[name] for name in made], parts=done, ended=ended,
            human=human, reference=study.get("reference"), measures=measures,
            measured=list(experiment.evaluation["pairs"]), labels=bool(study.get("labels")),
            worse=study.get("worse"), **asked,
        )
    ]  # fmt: skip


def served_of(study: Mapping[str, Any], path: Path) -> Mapping[str, Any] | None:
    """Return the arguments of the server that the study starts for a judge; None where it starts none."""
    from eval_harness.judging import read_judge

    return (study.get("serve") or {}).get(read_judge(path).name)


def _reward_run(study: Mapping[str, Any], runs: Sequence[Run]) -> Run | None:
    return next((run for run in runs if run.variant == study.get("reward")), None)


def work(folder: Path, job: Mapping[str, Any], log: Any) -> dict[str, Any]:
    """Do one part in its folder and return its result."""
    if job["part"] == "answers":
        return answer(folder, job, log)
    if job["part"] == "likelihoods":
        return score(folder, job, log)
    if job["part"] == "judge":
        return judge(folder, job, _comparisons(job), log)
    from .methods_tables import agreement

    return agreement(job, log)


def _comparisons(job: Mapping[str, Any]) -> list[Any]:
    """Return what a judge compares: every model's answers with those of the start, and the data set's own pairs."""
    start = read_outputs(Path(job["outputs"][START]))[: job["judge_prompts"]]
    items = []
    for name, place in job["outputs"].items():
        if name != START:
            items += pairs_of(START, start, name, read_outputs(Path(place))[: job["judge_prompts"]])
    if job["labels"]:
        rows = [row for row in read_prompts(job) if row.get("chosen") is not None and row.get("rejected") is not None]
        sides = [[{"instruction": row["prompt"], "output": row[side]} for row in rows] for side in LABELS]
        items += pairs_of(LABELS[0], sides[0], LABELS[1], sides[1])
    return items


def sections(found: Any) -> list[Any]:
    """Return what the report shows of the study."""
    from .methods_report import report

    return report(found)
