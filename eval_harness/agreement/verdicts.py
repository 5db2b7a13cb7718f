"""The data of an agreement study: verdicts of judges and people on pairs of answers, scores of single answers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

TIE: Literal["tie"] = "tie"
PREFERENCES = (1, 2, TIE)
Key = tuple[str, str, str]  # item, and two models in the order of their names


@dataclass(frozen=True)
class Verdict:
    """What one method said about two answers to one item; `model_1`'s answer was shown first.

    `strength` is for judges that weigh (AlpacaEval 2): from 1 (surely the first) to 2 (surely the second).
    `same_text` is whether the two answers are the same text, which says nothing about a judge; None: not known.
    """

    item: str
    method: str
    model_1: str
    model_2: str
    preference: Literal[1, 2, "tie"] | None
    reason: str | None = None  # why there is no preference; only then
    repeat: int = 0
    strength: float | None = None
    same_text: bool | None = None

    def __post_init__(self) -> None:
        if self.preference is not None and self.preference not in PREFERENCES:
            raise ValueError(f"Preference {self.preference!r} is none of 1, 2, 'tie' and None; use one of these.")
        if (self.preference is None) != bool(self.reason):
            raise ValueError(
                f"Preference {self.preference!r} with reason {self.reason!r}: give a reason where there is no "
                "preference, and only there."
            )
        if self.model_1 == self.model_2:
            raise ValueError(f"Both answers are of {self.model_1!r}; compare two different models.")
        if self.strength is not None and (self.preference is None or not 1 <= self.strength <= 2):
            raise ValueError(f"Strength {self.strength!r} with preference {self.preference!r}: give 1 to 2, or None.")

    @property
    def second_gain(self) -> float | None:
        """What the second answer gains: preference - 1 as in alpaca_eval (0, 1, tie 1/2, or graded)."""
        if self.preference is None:
            return None
        if self.strength is not None:
            return self.strength - 1
        return 0.5 if self.preference == TIE else float(self.preference - 1)

    def gain(self, model: str) -> float | None:
        """What `model`'s answer gains, from 0 to 1; None where the verdict is missing.

        Raises:
            ValueError: the verdict is not about this model.
        """
        if model not in (self.model_1, self.model_2):
            raise ValueError(f"The verdict compares {self.model_1!r} and {self.model_2!r}; {model!r} is not in it.")
        second = self.second_gain
        return second if second is None or model == self.model_2 else 1 - second

    @property
    def key(self) -> Key:
        """The comparison without its order: item, and the models by name."""
        first, second = sorted((self.model_1, self.model_2))
        return self.item, first, second


@dataclass(frozen=True)
class ScoreTable:
    """Scores of one method: item -> model -> number; and why a cell is missing, where that is known."""

    method: str
    scores: Mapping[str, Mapping[str, float]]
    higher_is_better: bool = True
    missing: Mapping[tuple[str, str], str] = field(default_factory=dict)  # (item, model) -> reason

    def __post_init__(self) -> None:
        wrong = [
            (item, model)
            for item, row in self.scores.items()
            for model, value in row.items()
            if value is None or not math.isfinite(value)
        ]
        if wrong:
            raise ValueError(
                f"Scores of {self.method!r} are not finite in {len(wrong)} cells, the first is {wrong[0]}. "
                "Leave such cells out of `scores` and give their reasons in `missing`."
            )

    @property
    def items(self) -> tuple[str, ...]:
        """Every item, in the order of the scores."""
        return tuple(dict.fromkeys([*self.scores, *(item for item, _ in self.missing)]))

    @property
    def models(self) -> tuple[str, ...]:
        """Every model, in the order of their first appearance."""
        names = [model for row in self.scores.values() for model in row]
        return tuple(dict.fromkeys([*names, *(model for _, model in self.missing)]))

    def complete_items(self, models: Sequence[str]) -> tuple[str, ...]:
        """The items with a score of every one of `models`."""
        return tuple(item for item, row in self.scores.items() if all(model in row for model in models))

    def better(self, items: Sequence[str], models: Sequence[str]) -> np.ndarray:
        """Return the scores [items, models], turned so that more is better."""
        sign = 1.0 if self.higher_is_better else -1.0
        rows = [[sign * self.scores[item][model] for model in models] for item in items]
        return np.asarray(rows, dtype=float).reshape(len(items), len(models))
