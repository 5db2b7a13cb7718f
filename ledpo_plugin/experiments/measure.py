"""A run's checkpoints, and the model before training, measured: a file per data set, and the metrics of the files.

What is written already is not measured again, so a measurement that was killed goes on where it was and ends with the
same numbers.
"""

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ledpo_plugin.checkpoints import checkpoints_of, is_complete
from ledpo_plugin.head_file import WEIGHTS
from ledpo_plugin.hparams import HEAD_MODES, LEARNED_MODES
from ledpo_plugin.recipe import is_plugin_recipe, resolve_recipe

from .files import read_json, write_json
from .measured import merged, named, of_generations, of_instructions, of_pairs
from .subject import BATCH, CheckpointError, Subject, building_keys

FORMAT = 1  # raise it when the way something is measured changes: base models are then measured anew
PAIRS = (
    *("margin", "chosen_logps", "rejected_logps", "reference_chosen_logps", "reference_rejected_logps"),
    *("chosen_length", "rejected_length"),
)
INSTRUCTIONS = ("nll", "length")
Log = Callable[[str], None]
Metrics = dict[str, float]


@dataclass(frozen=True)
class _Part:
    """One file: what of a model it holds."""

    kind: str  # "pairs", "instructions" or "generations"
    name: str
    columns: tuple[str, ...] = ()
    count: int = 0
    max_new_tokens: int = 0

    def path(self, folder: Path) -> Path:
        if self.kind == "generations":
            return folder / "generations.json"
        return folder / self.kind / f"{quote(self.name, safe='')}.json"

    def read(self, folder: Path) -> dict[str, Any] | None:
        """Return what the file holds, or None where it is not there, damaged or of something else."""
        found = read_json(self.path(folder))
        if not isinstance(found, dict) or found.get("dataset") != self.name:
            return None
        if self.kind == "generations":
            same = all(found.get(key) == getattr(self, key) for key in ("count", "max_new_tokens"))
            return found if same and isinstance(found.get("rows"), list) else None
        columns, size = found.get("columns"), found.get("n")
        whole = isinstance(columns, dict) and set(self.columns) == set(columns)
        whole = whole and all(isinstance(values, list) and len(values) == size for values in columns.values())
        return found if whole else None

    def measure(self, subject: Subject, checkpoint: Path | None) -> dict[str, Any]:
        if self.kind == "generations":
            rows = subject.generations(self.name, self.count, self.max_new_tokens)
            return {"count": self.count, "max_new_tokens": self.max_new_tokens, "rows": rows}
        columns = subject.pairs(self.name) if self.kind == "pairs" else subject.instructions(self.name)
        if "beta" in self.columns:
            columns["beta"] = subject.betas(self.name, checkpoint)
        return {"n": len(next(iter(columns.values()))), "dropped": subject.dropped[self.name], "columns": columns}

    def metrics(self, found: Mapping[str, Any]) -> Metrics:
        if self.kind == "generations":
            return named("gen", of_generations(found["rows"]))
        return named(self.name, (of_pairs if self.kind == "pairs" else of_instructions)(found["columns"]))


def _parts(evaluation: Mapping[str, Any], *, beta: bool, final: bool) -> list[_Part]:
    found = [_Part("pairs", name, (*PAIRS, *(["beta"] if beta else []))) for name in evaluation.get("pairs") or ()]
    found += [_Part("instructions", name, INSTRUCTIONS) for name in evaluation.get("instructions") or ()]
    generations = evaluation.get("generations")
    if final and generations:
        sizes = {key: generations[key] for key in ("count", "max_new_tokens")}
        found.append(_Part("generations", generations["prompts"], **sizes))
    if not found and final:
        raise ValueError("The evaluation names nothing to measure. Give it pairs, instructions or generations.")
    return found


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
    measured = {key: evaluation.get(key) for key in ("pairs", "instructions", "generations") if evaluation.get(key)}
    text = json.dumps([FORMAT, BATCH, built, measured], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def measure_run(
    recipe: Mapping[str, Any], train_folder: Path, measures: Path, evaluation: Mapping[str, Any], log: Log
) -> dict[str, Any]:
    """Measure every checkpoint of a run; generations are of the last one, which is the trained model.

    Args:
        recipe: that was run, of any stage.
        train_folder: its output_dir, with checkpoint-N folders.
        measures: where the files are, one folder a checkpoint; what is complete there is not measured again.
        evaluation: `pairs` and `instructions` (names of data sets), `generations` (prompts, count, max_new_tokens).
        log: called with sentences.

    Returns:
        `checkpoints` (step and metrics of each), `final` (metrics of the last one with those of its answers),
        `generated_tokens`, `measure_seconds` (without loading). All is worked out from the files.

    Raises:
        CheckpointError: a checkpoint is missing or damaged, or its model gives numbers that are not finite.
        ValueError: a data set is unknown, or nothing of it can be used.
    """
    checkpoints = _checkpoints(train_folder)
    mode, source = _learned_beta(recipe)
    last = max(checkpoints)
    wanted: dict[int, list[_Part]] = {}
    for step, folder in checkpoints.items():
        beta = mode is not None and (folder / WEIGHTS).is_file()
        if mode is not None and not beta:
            log(f"step {step}: {folder / WEIGHTS} is not there, so beta is not measured")
        wanted[step] = _parts(evaluation, beta=beta, final=step == last)
    places = {step: measures / f"step-{step:06d}" for step in checkpoints}
    missing = {
        step: left for step, parts in wanted.items() if (left := [p for p in parts if p.read(places[step]) is None])
    }
    if missing:
        with _subject(recipe, evaluation, log, source) as subject:
            for step, parts in missing.items():
                subject.take(checkpoints[step])
                for part in parts:
                    _write(part, subject, places[step], log, f"step {step}", checkpoints[step])
    found = {step: _Found(wanted[step], places[step]) for step in checkpoints}
    return {
        "checkpoints": [{"step": step, "metrics": found[step].metrics(answers=False)} for step in found],
        "final": found[last].metrics(),
        "generated_tokens": sum(one.generated_tokens() for one in found.values()),
        "measure_seconds": sum(one.seconds() for one in found.values()),
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
    parts = _parts(evaluation, beta=False, final=True)
    missing = [part for part in parts if part.read(measures) is None]
    if missing:
        with _subject(recipe, evaluation, log, None) as subject, subject.start():
            for part in missing:
                _write(part, subject, measures, log, "base", None)
    found = _Found(parts, measures)
    return {
        "metrics": found.metrics(),
        "generated_tokens": found.generated_tokens(),
        "measure_seconds": found.seconds(),
    }


@contextmanager
def _subject(
    recipe: Mapping[str, Any], evaluation: Mapping[str, Any], log: Log, source: str | None
) -> Iterator[Subject]:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ledpo-measure-") as folder:
        subject = Subject(recipe, evaluation, Path(folder), log, source)
        log(f"model and data are there after {time.monotonic() - started:.1f} s")
        yield subject


def _write(part: _Part, subject: Subject, folder: Path, log: Log, what: str, checkpoint: Path | None) -> None:
    started = time.monotonic()
    found = part.measure(subject, checkpoint)
    seconds = time.monotonic() - started
    write_json(part.path(folder), {"dataset": part.name, **found, "seconds": seconds})
    size = found["n"] if "n" in found else len(found["rows"])
    log(f"{what}: {size} {part.kind} of {part.name} in {seconds:.1f} s")


class _Found:
    """What the files of one model say."""

    def __init__(self, parts: list[_Part], folder: Path):
        self.contents = [(part, part.read(folder)) for part in parts]
        lost = [str(part.path(folder)) for part, content in self.contents if content is None]
        if lost:
            raise RuntimeError(f"Measured, but not to be read again: {', '.join(lost)}. Is something deleting them?")

    def metrics(self, answers: bool = True) -> Metrics:
        return merged(part.metrics(found) for part, found in self.contents if answers or part.kind != "generations")

    def generated_tokens(self) -> int:
        rows = [row for part, found in self.contents if part.kind == "generations" for row in found["rows"]]
        return sum(row["tokens"] + bool(row["ended"]) for row in rows)  # what ends an answer is generated, too

    def seconds(self) -> float:
        return sum(found["seconds"] for _, found in self.contents)


def _checkpoints(train_folder: Path) -> dict[int, Path]:
    """Return step -> folder, ascending."""
    found = checkpoints_of(Path(train_folder))
    if not found:
        raise CheckpointError(
            f"{train_folder} holds no checkpoint to measure. Train with save_strategy: steps and save_steps, or run "
            "the experiment again."
        )
    broken = [str(path) for path in found.values() if not is_complete(path)]
    if broken:
        raise CheckpointError(
            f"Not written to the end: {', '.join(sorted(broken))}. Delete the folder and let training go on, or run "
            "this run again."
        )
    return found


def _learned_beta(recipe: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return the beta mode where beta is learned, and whose hidden state the head reads where there is one."""
    if not is_plugin_recipe(recipe):
        return None, None
    resolved = resolve_recipe(recipe)
    mode = resolved.get("beta_mode")
    if mode not in LEARNED_MODES:
        return None, None
    return mode, resolved.get("beta_head_source") if mode in HEAD_MODES else None
