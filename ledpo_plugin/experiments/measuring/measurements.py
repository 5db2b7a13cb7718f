"""What is measured of one model, part by part: each is a file, whose contents give metrics."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ledpo_plugin.common.files import read_json

from .columns import named, of_answers, of_generations, of_instructions, of_pairs, of_scores

if TYPE_CHECKING:
    from .evaluated_model import EvaluatedModel

PAIRS = (
    *("margin", "chosen_logps", "rejected_logps", "reference_chosen_logps", "reference_rejected_logps"),
    *("chosen_length", "rejected_length"),
)
INSTRUCTIONS = ("nll", "length")
SIZES = ("count", "max_new_tokens")
ANSWERS = "answers.json"


@dataclass(frozen=True)
class Part:
    """One file: what of a model it holds."""

    kind: str  # "pairs", "instructions", "generations", "answers" or "scores"
    name: str  # of the data set
    columns: tuple[str, ...] = ()
    count: int = 0
    max_new_tokens: int = 0
    seed: int = 0
    role: str = ""  # of what scores
    scorer: str = ""  # its folder

    def path(self, folder: Path) -> Path:
        """Return the file in a model's folder."""
        if self.kind in ("generations", "answers"):
            return folder / f"{self.kind}.json"
        return folder / self.kind / f"{quote(self.role or self.name, safe='')}.json"

    def read(self, folder: Path) -> dict[str, Any] | None:
        """Return what the file holds, or None where it is not there, damaged or of something else."""
        found = read_json(self.path(folder))
        if not isinstance(found, dict) or found.get("dataset") != self.name:
            return None
        if self.kind in ("generations", "answers"):
            keys = (*SIZES, "seed") if self.kind == "answers" else SIZES
            same = all(found.get(key) == getattr(self, key) for key in keys)
            return found if same and isinstance(found.get("rows"), list) else None
        columns, size = found.get("columns"), found.get("n")
        whole = isinstance(columns, dict) and set(self.columns) == set(columns)
        whole = whole and all(isinstance(values, list) and len(values) == size for values in columns.values())
        if whole and self.kind == "scores":
            rows = (read_json(folder / ANSWERS) or {}).get("rows")
            whole = isinstance(rows, list) and found.get("of") == _digest(rows)
        return found if whole else None

    def measure(self, subject: "EvaluatedModel", folder: Path, checkpoint: Path | None) -> dict[str, Any]:
        """Return the contents of the file.

        Args:
            subject: has the weights that are measured.
            folder: the model's, with the parts that come before this one.
            checkpoint: whose weights they are; None: those before training.
        """
        if self.kind == "generations":
            rows = subject.sampler.generations(self.name, self.count, self.max_new_tokens)
            return {"count": self.count, "max_new_tokens": self.max_new_tokens, "rows": rows}
        if self.kind == "answers":
            sizes = {"count": self.count, "max_new_tokens": self.max_new_tokens, "seed": self.seed}
            return {**sizes, "rows": subject.sampler.answers(self.name, **sizes)}
        if self.kind == "scores":
            rows = read_json(folder / ANSWERS)["rows"]
            scores = subject.sampler.scores(self.name, rows, self.scorer)
            items = subject.items(self.name)[: len(rows)]
            return {
                "role": self.role,
                "of": _digest(rows),
                "n": len(rows),
                "items": items,
                "columns": {"score": scores},
            }
        scorer = subject.scorer
        columns = scorer.pairs(self.name) if self.kind == "pairs" else scorer.instructions(self.name)
        if "beta" in self.columns:
            columns["beta"] = scorer.betas(self.name, checkpoint)
        size, dropped = len(next(iter(columns.values()))), subject.dropped[self.name]
        return {"n": size, "dropped": dropped, "items": subject.items(self.name), "columns": columns}

    def metrics(self, found: Mapping[str, Any], base: Path | None) -> dict[str, float]:
        """Return the metrics of what the file holds.

        Args:
            found: its contents.
            base: the folder of the model before training, with whose scores these are compared.

        Raises:
            RuntimeError: the model before training was not measured alike.
        """
        if self.kind == "generations":
            return named("gen", of_generations(found["rows"]))
        if self.kind == "answers":
            return named("answers", of_answers(found["rows"]))
        if self.kind == "scores":
            start = None if base is None else self.read(base)
            if start is None or start["n"] != found["n"]:
                raise RuntimeError(
                    f"The start's answers were not scored by {self.role} (in {base}), and win rates are against them. "
                    "See why the untrained model could not be measured; the same command goes on from here."
                )
            return named(self.role, of_scores(found["columns"]["score"], start["columns"]["score"]))
        return named(self.name, (of_pairs if self.kind == "pairs" else of_instructions)(found["columns"]))


def parts_of(evaluation: Mapping[str, Any], *, beta: bool, final: bool) -> list[Part]:
    """Return what of one model is measured, in order.

    Args:
        evaluation: see `measure.measure_run`.
        beta: whether beta is learned.
        final: whether it is the trained model, or the one before training, whose greedy answers are shown.

    Raises:
        ValueError: nothing is to be measured.
    """
    found = [Part("pairs", name, (*PAIRS, *(["beta"] if beta else []))) for name in evaluation.get("pairs") or ()]
    found += [Part("instructions", name, INSTRUCTIONS) for name in evaluation.get("instructions") or ()]
    generations, answers = evaluation.get("generations"), evaluation.get("answers")
    if final and generations:
        found.append(Part("generations", generations["prompts"], **{key: generations[key] for key in SIZES}))
    if answers:
        sizes = {key: answers[key] for key in SIZES}
        found.append(Part("answers", answers["prompts"], **sizes, seed=answers.get("seed") or 0))
        for role, scorer in (answers.get("scorers") or {}).items():
            found.append(Part("scores", answers["prompts"], ("score",), role=role, scorer=str(scorer)))
    if not found and final:
        raise ValueError("The evaluation names nothing to measure. Give it pairs, instructions or answers.")
    return found


def _digest(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return 16 hex digits of answers."""
    text = json.dumps([[row["prompt"], row["ids"], row["ended"]] for row in rows], ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
