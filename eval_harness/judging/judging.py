"""From pairs of answers to verdicts: both orders of every pair, through alpaca_eval; what is known is not asked."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval_harness.agreement.verdicts import TIE, Verdict
from eval_harness.annotation.items import Item

from .alpaca import annotate
from .cache import Answers, answers, key_of
from .judge import Judge
from .local import LocalModel
from .openai_client import Endpoint, Usage

REFUSAL = re.compile(r"\b(?:I(?:'m| am) (?:sorry|unable)|I (?:can(?:not|'t)|won't)|As an AI)\b", re.IGNORECASE)
Log = Callable[[str], None]


@dataclass(frozen=True)
class Judged:
    """What a judge said: a verdict for each order and repeat, and what it took."""

    judge: Judge
    verdicts: tuple[Verdict, ...]
    annotations: tuple[dict[str, Any], ...]  # in alpaca_eval's format, of what was understood
    usage: dict[str, Any]


def judge_items(items: Sequence[Item], judge: Judge, folder: Path, *, repeats: int = 1, log: Log = print) -> Judged:
    """Have a judge compare the answers of every item, in both orders.

    Answers are kept in the folder as they come. What is there is not asked again; what failed is.

    Args:
        items: the comparisons.
        judge: who is asked.
        folder: keeps the answers.
        repeats: how often each order is asked.
        log: called with sentences.

    Raises:
        ValueError: the judge's key is missing, another process judges into the folder, or the endpoint gives no
            log-probabilities though the parser needs them.
    """
    rows = _rows(items, judge)
    usage = Usage()
    verdicts: list[Verdict] = []
    annotations: list[dict[str, Any]] = []
    with answers(Path(folder)) as kept:
        asker = _Asker(judge, kept, usage, log)
        try:
            for repeat in range(repeats):
                gaps: dict[str, str] = {}
                unique = list({row["question"]: row for row in rows}.values())
                texts = ("instruction", "output_1", "output_2", "question")
                found = annotate(
                    judge,
                    [{key: row[key] for key in texts} for row in unique],
                    lambda questions, repeat=repeat, gaps=gaps: asker.completions(questions, repeat, gaps),
                )
                by_question = {row["question"]: row for row in found}
                for row in rows:
                    said = by_question.get(row["question"])
                    key = key_of(judge, row["question"], repeat)
                    why = gaps.get(row["question"]) or _not_understood(kept.get(key))
                    verdicts.append(_verdict(row, judge, repeat, said, why))
                    if said is not None:
                        annotations.append(_annotation(row, judge, repeat, said))
        finally:
            asker.close()
    return Judged(judge, tuple(verdicts), tuple(annotations), usage.counted(judge))


def _rows(items: Sequence[Item], judge: Judge) -> list[dict[str, Any]]:
    rows = []
    for item in items:
        for first, second in ((0, 1), (1, 0)):
            texts = (item.prompt, item.outputs[first], item.outputs[second])
            rows.append(
                {
                    "instruction": texts[0],
                    "output_1": texts[1],
                    "output_2": texts[2],
                    "generator_1": item.generators[first],
                    "generator_2": item.generators[second],
                    "question": judge.question(*texts),
                }
            )
    return rows


class _Asker:
    """Answers from the folder where they are, else from the judge, which is not woken before it is needed."""

    def __init__(self, judge: Judge, kept: Answers, usage: Usage, log: Log):
        self.judge, self.kept, self.usage, self.log = judge, kept, usage, log
        self.source: Endpoint | LocalModel | None = None
        self.warned = False

    def completions(self, questions: Sequence[str], repeat: int, gaps: dict[str, str]) -> dict[str, Any]:
        """Return alpaca_eval's completions of the questions; a gap is an empty one, with its reason in `gaps`."""
        keys = [key_of(self.judge, question, repeat) for question in questions]
        asked = [place for place, key in enumerate(keys) if self.kept.get(key) is None]
        self.usage.add(cached=len(questions) - len(asked))
        if asked:
            self._ask([questions[place] for place in asked], [keys[place] for place in asked], gaps)
        found = [self.kept.get(key) for key in keys]
        if self.judge.parser == "logprobs":
            self._require_logprobs(found)
        return {
            "completions": ["" if row is None else row["choice"]["content"] for row in found],
            "completions_all": ["" if row is None else _openai(row["choice"]) for row in found],
        }

    def _ask(self, questions: Sequence[str], keys: Sequence[str], gaps: dict[str, str]) -> None:
        if self.source is None:
            make = Endpoint if self.judge.kind == "http" else LocalModel
            self.source = make(self.judge, self.usage)
        self.log(f"{self.judge.name}: {len(questions)} questions to ask")
        done = 0

        def keep(place: int, choice: dict[str, Any], usage: dict[str, Any]) -> None:
            nonlocal done
            self.kept.add(keys[place], choice, usage)
            done += 1
            if done % 200 == 0:
                self.log(f"{self.judge.name}: {done} of {len(questions)}")

        missing = self.source.ask_all(questions, keep)
        gaps |= {questions[place]: why for place, why in missing.items()}
        if missing:
            reasons = ", ".join(sorted(set(missing.values())))
            self.log(
                f"{self.judge.name}: {len(missing)} questions without an answer ({reasons}); asked again next time"
            )

    def _require_logprobs(self, found: Sequence[Any]) -> None:
        given = [row for row in found if row is not None]
        if given and not any(row["choice"]["logprobs"] for row in given):
            raise ValueError(
                f"The judge {self.judge.name} gives no log-probabilities, by which parser: logprobs weighs verdicts. "
                "Set parser: letter, or ask an endpoint that gives them."
            )

    def close(self) -> None:
        if self.source is not None:
            self.source.close()


def _openai(choice: dict[str, Any]) -> dict[str, Any] | str:
    """Return a kept answer as alpaca_eval's parser of log-probabilities wants it; empty where it has none."""
    if not choice["logprobs"]:
        return ""
    return {"logprobs": {"content": [{"top_logprobs": top} for top in choice["logprobs"]]}, "text": choice["content"]}


def _not_understood(kept: Any) -> str:
    text = "" if kept is None else kept["choice"]["content"]
    return "refused" if REFUSAL.search(text) else "not understood"


def _verdict(row: dict[str, Any], judge: Judge, repeat: int, said: dict[str, Any] | None, why: str | None) -> Verdict:
    models = (row["instruction"], judge.name, row["generator_1"], row["generator_2"])
    same = row["output_1"] == row["output_2"]
    if said is None:
        return Verdict(*models, None, why, repeat, same_text=same)
    value = float(said["preference"])
    if value in (0.0, 1.5):
        return Verdict(*models, TIE, None, repeat, same_text=same)
    if value in (1.0, 2.0):
        return Verdict(*models, int(value), None, repeat, same_text=same)
    return Verdict(*models, 1 if value < 1.5 else 2, None, repeat, value, same)


def _annotation(row: dict[str, Any], judge: Judge, repeat: int, said: dict[str, Any]) -> dict[str, Any]:
    kept = {key: row[key] for key in ("instruction", "output_1", "output_2", "generator_1", "generator_2")}
    return kept | {"annotator": judge.name, "preference": float(said["preference"]), "repeat": repeat}
