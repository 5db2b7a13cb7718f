"""Experiment five of the plan: which decoding is best for a trained model, and whether training changes the answer."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ledpo_plugin.common.files import read_json, write_json
from ledpo_plugin.experiments.definition.experiment import Experiment
from ledpo_plugin.experiments.definition.plan import Run

from .checks import judge_files
from .given import Given
from .judged import judge, pairs_of
from .methods import check_decoding, check_serve, served_of
from .outputs import BATCH, OUTPUTS, SCORES, Scorer, read_outputs, read_prompts, score
from .parts import Part, chosen_runs, compared, digest, finished, key_of, model_of, part
from .prompts import write_prompts

KEYS = ("decodings", "baseline", "samples", "reward", "repeats", "serve")
NEEDED = ("decodings", "baseline")
LAST = "summary"
SEED = 1  # of the first sample; the others count on from it


def check(given: Given) -> None:
    """Say what is wrong with the study's own keys."""
    study, where, found = given.study, given.where, given.found
    decodings = found.mapping(study.get("decodings") or {}, f"{where}.decodings")
    for name, settings in decodings.items():
        check_decoding(given, f"decodings.{name}", settings)
    if decodings and study.get("baseline") not in decodings:
        why = "what the others are compared with is none of the decodings"
        found.say(f"{where}.baseline", study.get("baseline"), why, f"name one of {', '.join(decodings)}")
    for key in ("samples", "repeats"):
        if study.get(key) is not None:
            found.number(study[key], f"{where}.{key}")
    if study.get("reward") is not None:
        given.variant("reward", study["reward"])
    check_serve(given)


def samples_of(study: Mapping[str, Any], settings: Mapping[str, Any]) -> range:
    """Return the numbers of a decoding's samples: one where nothing is drawn."""
    from eval_harness.generation import read_decoding

    return range((study.get("samples") or 1) if read_decoding(settings).draws else 1)


def stages(experiment: Experiment, results: Path, runs: Sequence[Run]) -> Iterator[list[Part]]:
    """Yield the parts: answers of every model under every decoding; judges and likelihoods; what they add up to."""
    study = experiment.study
    runs = chosen_runs(experiment, runs)
    if not runs:
        return
    prompts = write_prompts(experiment, results)
    common = prompts | {"batch_size": study.get("batch_size") or BATCH}
    models = {model["model"]: model for model in map(model_of, runs)}
    told = common | {
        "decodings": {name: dict(settings) for name, settings in study["decodings"].items()},
        "samples": study.get("samples") or 1,
        "max_new_tokens": study["max_new_tokens"],
    }
    answers = {name: part(experiment, results, "decode", name, model=model, **told) for name, model in models.items()}
    yield list(answers.values())
    made = {name: finished(own) for name, own in answers.items() if finished(own)}
    if not made:
        return
    outputs = {
        key: str((answers[name].folder / "outputs" / key).absolute())
        for name, result in made.items()
        for key in result["outputs"]
    }
    hashes = {key: sha for result in made.values() for key, sha in result["outputs"].items()}
    asked = common | {
        "outputs": outputs,
        "outputs_sha256": hashes,
        "models": [models[name] for name in made],
        "decodings": told["decodings"],
        "baseline": study["baseline"],
        "against": experiment.baseline,
    }
    parts = [
        part(
            experiment, results, "judge", path.stem, judge_file=str(path.absolute()), judge=path.read_text("utf-8"),
            repeats=study.get("repeats") or 1, judge_prompts=study.get("judge_prompts"),
            serve=served_of(study, path), **asked,
        )
        for path in judge_files(study, experiment.folder)
    ]  # fmt: skip
    by = next((run for run in runs if run.variant == study.get("reward")), None)
    if by is not None:
        parts.append(part(experiment, results, "likelihoods", by.variant, by=model_of(by), **asked))
    yield parts
    done = {own.name: str(own.folder.absolute()) for own in parts if finished(own)}
    ended = {own.name: finished(own)["ended"] for own in parts if finished(own)}
    speeds = {key: row for result in made.values() for key, row in result["speed"].items()}
    left_out = {name: result["left_out"] for name, result in made.items() if result["left_out"]}
    yield [part(experiment, results, "summary", "all", parts=done, ended=ended, speeds=speeds, left_out=left_out,
                **asked)]  # fmt: skip


def work(folder: Path, job: Mapping[str, Any], log: Any) -> dict[str, Any]:
    """Do one part in its folder and return its result."""
    if job["part"] == "decode":
        return _decode(folder, job, log)
    if job["part"] == "likelihoods":
        return score(folder, job, log)
    if job["part"] == "judge":
        return judge(folder, job, comparisons(job), log)
    from .decoding_tables import summary

    return summary(job, log)


def _decode(folder: Path, job: Mapping[str, Any], log: Any) -> dict[str, Any]:
    """Have one model answer all prompts under every decoding; what is there already is kept."""
    from eval_harness.generation import generate, load, read_decoding

    model = job["model"]
    loaded = load(**model["load"])
    prompts = [row["prompt"] for row in read_prompts(job)]
    scorer = Scorer(loaded, prompts, job["batch_size"])
    found: dict[str, str] = {}
    speed: dict[str, dict[str, float]] = {}
    left_out = []
    for name, settings in job["decodings"].items():
        decoding = read_decoding(settings)
        if decoding.adaptive and not loaded.per_prompt:
            left_out.append(name)
            log(f"{model['model']}: {name} is left out, as this model has no beta(x)")
            continue
        for sample in samples_of(job, settings):
            key = key_of(model["model"], name, sample)
            place = folder / "outputs" / key
            rows = generate(
                loaded, prompts, decoding, seed=SEED + sample, max_new_tokens=job["max_new_tokens"],
                batch_size=job["batch_size"], folder=place / "batches",
            )  # fmt: skip
            rows = [{**row, "generator": key} for row in rows]
            write_json(place / OUTPUTS, rows)
            found[key] = digest(rows)
            ids = [row["ids"] for row in rows]
            scored = read_json(place / SCORES) or {}
            if scored.get("outputs_sha256") != found[key]:
                scored = {"outputs_sha256": found[key], "columns": scorer.columns(ids)}
                write_json(place / SCORES, scored)
            scorer.remember(ids, scored["columns"])
            seconds = sum(row["seconds"] for row in rows)
            tokens = sum(row["tokens"] for row in rows)
            speed[key] = {"seconds": seconds, "tokens": tokens}
            log(f"{key}: {tokens} tokens in {seconds:.1f} s")
    return {"model": model, "n": len(prompts), "outputs": found, "speed": speed, "left_out": left_out}


def comparisons(job: Mapping[str, Any]) -> list[Any]:
    """Return what a judge compares: each decoding with the baseline's, and each variant with the baseline variant.

    First samples only: more of them would cost as much again and tell little more about a judge's taste.
    """
    items = []
    for first, second in compared(job):
        ours, theirs = (read_outputs(Path(job["outputs"][key]))[: job["judge_prompts"]] for key in (first, second))
        items += pairs_of(first, ours, second, theirs)
    return items


def sections(found: Any) -> list[Any]:
    """Return what the report shows of the study."""
    from .decoding_report import report

    return report(found)
