"""A run's checkpoints, and the model before training, measured: a file per data set, and the metrics of the files.

What is written already is not measured again, so a measurement that was killed goes on where it was and ends with the
same numbers.
"""

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ledpo_plugin.common.checkpoints import checkpoints_of, is_complete
from ledpo_plugin.common.files import read_json, write_json
from ledpo_plugin.facts import has_head, is_learned
from ledpo_plugin.modeling.head_file import WEIGHTS
from ledpo_plugin.recipes.check import is_plugin_recipe, resolve_recipe

from .columns import merged
from .evaluated_model import EvaluatedModel
from .loader import BATCH, building_keys
from .measurements import Part, parts_of
from .weights import CheckpointError

FORMAT = 1  # raise it when the way something is measured changes: base models are then measured anew
COST = "cost.json"
Log = Callable[[str], None]
Metrics = dict[str, float]


@dataclass(frozen=True)
class Measured:
    """A training that is measured: the recipe, of any stage, and its output_dir with the checkpoints."""

    recipe: Mapping[str, Any]
    folder: Path


def base_key(recipe: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """Return 12 hex digits that are the same for runs that start from the same model and are measured alike."""
    # What shapes the part that is trained says nothing of the model before training.
    apart = {"finetuning_type", "overwrite_cache", "preprocessing_num_workers", "preprocessing_batch_size"}
    built = {
        key: recipe[key]
        for key in building_keys()
        if recipe.get(key) is not None
        and key not in apart
        and not key.startswith(("lora_", "oft_", "freeze_", "use_rslora", "use_dora", "additional_target"))
    }
    if not recipe.get("adapter_name_or_path"):
        built.pop("create_new_adapter", None)
    kinds = ("pairs", "instructions", "generations", "answers")
    measured = {key: evaluation.get(key) for key in kinds if evaluation.get(key)}
    text = json.dumps([FORMAT, BATCH, built, measured], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def measure_run(
    trained: Sequence[Measured],
    measures: Path,
    evaluation: Mapping[str, Any],
    log: Log,
    *,
    base: Path | None = None,
) -> dict[str, Any]:
    """Measure every checkpoint of a run; greedy answers are of the last one, which is the trained model.

    Args:
        trained: the run's trainings in order; what the first starts from is what all are compared with.
        measures: where the files are, one folder a checkpoint; what is complete there is not measured again.
        evaluation: `pairs` and `instructions` (names of data sets), `generations` (prompts, count, max_new_tokens),
            `answers` (the same, with seed and `scorers`: role -> folder of a reward model).
        log: called with sentences.
        base: the files of the model before training, where answers are scored.

    Returns:
        `checkpoints` (step, over all trainings, and metrics of each), `final` (metrics of the last one with those of
        its greedy answers), `generated_tokens`, `measure_seconds` (without loading), `cost` (see `usage.Cost`; None
        where it is not known). All is worked out from the files.

    Raises:
        CheckpointError: a checkpoint is missing or damaged, or its model gives numbers that are not finite.
        ValueError: a data set is unknown, or nothing of it can be used.
        RuntimeError: the model before training was not measured.
    """
    checkpoints = [one for number, training in enumerate(trained) for one in _checkpoints(training, trained[:number])]
    last = checkpoints[-1].step
    wanted: dict[int, list[Part]] = {}
    for one in checkpoints:
        beta = one.mode is not None and (one.folder / WEIGHTS).is_file()
        if one.mode is not None and not beta:
            log(f"step {one.step}: {one.folder / WEIGHTS} is not there, so beta is not measured")
        wanted[one.step] = parts_of(evaluation, beta=beta, final=one.step == last)
    places = {one.step: measures / f"step-{one.step:06d}" for one in checkpoints}
    missing = {
        one: left for one in checkpoints if (left := [p for p in wanted[one.step] if p.read(places[one.step]) is None])
    }
    if missing:
        sources = [one.source for one in checkpoints if one.source]
        with _subject(trained[0].recipe, evaluation, log, sources[0] if sources else None) as subject:
            write_json(measures / COST, asdict(subject.cost))
            for one, parts in missing.items():
                subject.weights.take(one.folder)
                for part in parts:
                    _write(part, subject, places[one.step], log, f"step {one.step}", one.folder)
    found = {step: _Found(wanted[step], places[step], base) for step in wanted}
    return {
        "checkpoints": [{"step": step, "metrics": found[step].metrics(answers=False)} for step in found],
        "final": found[last].metrics(),
        "generated_tokens": sum(one.generated_tokens() for one in found.values()),
        "measure_seconds": sum(one.seconds() for one in found.values()),
        "cost": read_json(measures / COST),
    }


def measure_base(recipe: Mapping[str, Any], measures: Path, evaluation: Mapping[str, Any], log: Log) -> dict[str, Any]:
    """Measure the model before training, which is its own reference: all margins are 0.

    Args:
        recipe: of any run that starts from it.
        measures: where the files are; what is complete there is not measured again.
        evaluation: see `measure_run`.
        log: called with sentences.

    Returns:
        `metrics`, `generated_tokens`, `measure_seconds`.

    Raises:
        ValueError: a data set is unknown, or nothing of it can be used.
    """
    parts = parts_of(evaluation, beta=False, final=True)
    missing = [part for part in parts if part.read(measures) is None]
    if missing:
        with _subject(recipe, evaluation, log, None) as subject:
            for part in missing:
                # A reward model is an adapter of its own, and not to be switched off with the policy's.
                with nullcontext() if part.kind == "scores" else subject.weights.start():
                    _write(part, subject, measures, log, "base", None)
    found = _Found(parts, measures, measures)
    return {
        "metrics": found.metrics(),
        "generated_tokens": found.generated_tokens(),
        "measure_seconds": found.seconds(),
    }


@contextmanager
def _subject(
    recipe: Mapping[str, Any], evaluation: Mapping[str, Any], log: Log, source: str | None
) -> Iterator[EvaluatedModel]:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ledpo-measure-") as folder:
        subject = EvaluatedModel(recipe, evaluation, Path(folder), log, source)
        log(f"model and data are there after {time.monotonic() - started:.1f} s")
        yield subject


def _write(part: Part, subject: EvaluatedModel, folder: Path, log: Log, what: str, checkpoint: Path | None) -> None:
    started = time.monotonic()
    found = part.measure(subject, folder, checkpoint)
    seconds = time.monotonic() - started
    write_json(part.path(folder), {"dataset": part.name, **found, "seconds": seconds})
    size = found["n"] if "n" in found else len(found["rows"])
    log(f"{what}: {size} {part.kind} of {part.name} in {seconds:.1f} s")


class _Found:
    """What the files of one model say; scores are compared with those of the model before training."""

    def __init__(self, parts: list[Part], folder: Path, base: Path | None):
        self.contents = [(part, part.read(folder)) for part in parts]
        self.base = base
        lost = [str(part.path(folder)) for part, content in self.contents if content is None]
        if lost:
            raise RuntimeError(f"Measured, but not to be read again: {', '.join(lost)}. Is something deleting them?")

    def metrics(self, answers: bool = True) -> Metrics:
        shown = [one for one in self.contents if answers or one[0].kind != "generations"]
        return merged(part.metrics(found, self.base) for part, found in shown)

    def generated_tokens(self) -> int:
        kinds = ("generations", "answers")
        rows = [row for part, found in self.contents if part.kind in kinds for row in found["rows"]]
        return sum(row["tokens"] + bool(row["ended"]) for row in rows)  # what ends an answer is generated, too

    def seconds(self) -> float:
        return sum(found["seconds"] for _, found in self.contents)


@dataclass(frozen=True)
class _Checkpoint:
    """A checkpoint of a run: its step over all trainings, and what of beta is to be measured there."""

    step: int
    folder: Path
    mode: str | None
    source: str | None


def _checkpoints(training: Measured, before: Sequence[Measured]) -> list[_Checkpoint]:
    """Return the checkpoints of a training, ascending, counted on from those of the trainings before."""
    found = checkpoints_of(training.folder)
    if not found:
        raise CheckpointError(
            f"{training.folder} holds no checkpoint to measure. Train with save_strategy: steps and save_steps, or run "
            "the experiment again."
        )
    broken = [str(path) for path in found.values() if not is_complete(path)]
    if broken:
        raise CheckpointError(
            f"Not written to the end: {', '.join(sorted(broken))}. Delete the folder and let training go on, or run "
            "this run again."
        )
    done = sum(max(checkpoints_of(one.folder)) for one in before)
    mode, source = _learned_beta(training.recipe)
    return [_Checkpoint(done + step, folder, mode, source) for step, folder in found.items()]


def _learned_beta(recipe: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return the beta mode where beta is learned, and whose hidden state the head reads where there is one."""
    if not is_plugin_recipe(recipe):
        return None, None
    resolved = resolve_recipe(recipe)
    mode = resolved.get("beta_mode")
    if not is_learned(mode):
        return None, None
    return mode, resolved.get("beta_head_source") if has_head(mode) else None
