"""What a report is made of, whatever it is written as: sections of paragraphs, tables, plots. Plain text."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .plots import Plot


@dataclass(frozen=True)
class Paragraph:
    """A paragraph; `tone` is plain, answer, note or warning."""

    text: str
    tone: str = "plain"
    kind: str = "paragraph"


@dataclass(frozen=True)
class Table:
    """A table: its first column names the rows; of the others those in `text_columns` hold words, the rest numbers."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    text_columns: Sequence[int] = ()
    kind: str = "table"

    def column_class(self, index: int) -> str:
        """Return how a column is set: numbers to the right, words to the left, prose with room for sentences."""
        if index not in self.text_columns:
            return "number"
        return "words prose" if max((len(row[index]) for row in self.rows), default=0) > 24 else "words"


@dataclass(frozen=True)
class Plots:
    """Plots that stand side by side where there is room."""

    plots: Sequence[Plot]
    small: bool = False
    kind: str = "plots"


@dataclass(frozen=True)
class Samples:
    """A prompt, and what was answered by whom."""

    title: str
    prompt: str
    answers: Sequence[tuple[str, str, str]]  # by whom, the text, a remark
    kind: str = "samples"


@dataclass(frozen=True)
class Verbatim:
    """A text as it is, folded away until asked for."""

    title: str
    text: str
    kind: str = "verbatim"


@dataclass(frozen=True)
class Terms:
    """Names and what they mean."""

    rows: Sequence[tuple[str, str]]
    kind: str = "terms"


@dataclass(frozen=True)
class Kept:
    """What an earlier report holds of a section, as it stands there."""

    html: str
    markdown: str
    kind: str = "kept"


@dataclass(frozen=True)
class Section:
    """A part of the report."""

    name: str
    title: str
    blocks: Sequence[Any] = field(default_factory=tuple)
