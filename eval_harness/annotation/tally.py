"""Wins, ties and losses, by annotator and in total, and which verdicts count."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .items import Item
from .verdicts import Judgement, Replay

TOTAL = None


@dataclass(frozen=True)
class Tally:
    """How often either of two generators won. `annotator` is None for all together."""

    annotator: str | None
    generator_1: str
    generator_2: str
    wins_1: int
    ties: int
    wins_2: int

    @property
    def count(self) -> int:
        """Number of verdicts."""
        return self.wins_1 + self.ties + self.wins_2

    @property
    def win_rate_2(self) -> float:
        """Share of verdicts for generator 2, a tie counting one half; AlpacaEval, too, has the baseline first."""
        return (self.wins_2 + self.ties / 2) / self.count

    def row(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {**self.__dict__, "win_rate_2": round(self.win_rate_2, 6)}


def counted(items: Iterable[Item], state: Replay) -> tuple[list[tuple[Item, Judgement]], list[Judgement]]:
    """Return the verdicts of the items, in the items' order, and those of unknown items or generators."""
    by_id = {item.id: item for item in items}
    place = {id_: number for number, id_ in enumerate(by_id)}
    known, unknown = [], []
    for verdict in state.current.values():
        item = by_id.get(verdict.item)
        good = item is not None and all(
            name is None or name in item.generators for name in (verdict.winner, verdict.left)
        )
        if good:
            known.append((item, verdict))
        else:
            unknown.append(verdict)
    who = {name: number for number, name in enumerate(state.annotators())}
    known.sort(key=lambda pair: (who[pair[1].annotator], place[pair[0].id]))
    return known, unknown


def tallies(known: Sequence[tuple[Item, Judgement]]) -> list[Tally]:
    """Return the tally of every annotator and pair of generators, then the totals.

    Two generators are 1 and 2 as in the first item they are in, also where another item has them the other way round.
    """
    order: dict[frozenset[str], tuple[str, str]] = {}
    counts: dict[tuple[str | None, tuple[str, str]], list[int]] = {}
    for item, verdict in known:
        pair = order.setdefault(frozenset(item.generators), item.generators)
        outcome = 1 if verdict.winner is None else 2 * pair.index(verdict.winner)
        for annotator in (verdict.annotator, TOTAL):
            counts.setdefault((annotator, pair), [0, 0, 0])[outcome] += 1
    rows = [Tally(annotator, *pair, *count) for (annotator, pair), count in counts.items()]
    return sorted(rows, key=lambda row: row.annotator is TOTAL)


def tally_text(rows: Sequence[Tally]) -> str:
    """Return tallies as a table for a terminal."""
    if not rows:
        return "No verdicts yet."
    head = ("annotator", "generator 1", "generator 2", "1 wins", "ties", "2 wins", "win rate of 2")
    table = [head]
    for row in rows:
        name = "all" if row.annotator is TOTAL else row.annotator
        numbers = (row.wins_1, row.ties, row.wins_2)
        table.append((name, row.generator_1, row.generator_2, *map(str, numbers), f"{100 * row.win_rate_2:.1f} %"))
    widths = [max(len(line[column]) for line in table) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
    )


def gaps(unknown: Sequence[Judgement], state: Replay) -> Mapping[str, int]:
    """Return how much of the log does not count, and why."""
    return {"verdicts_of_unknown_items": len(unknown), "unreadable_lines": state.unreadable}


def gaps_text(found: Mapping[str, int]) -> list[str]:
    """Return sentences about what does not count; none where everything does."""
    texts = []
    if number := found["verdicts_of_unknown_items"]:
        texts.append(
            f"{number} verdict{'' if number == 1 else 's'} of pairs that are not in these files: kept, not counted. "
            "Give the files they were made with to count them."
        )
    if number := found["unreadable_lines"]:
        texts.append(
            f"{number} line{'' if number == 1 else 's'} of verdicts.jsonl cannot be read: left alone, not counted. "
            "A kill or a full disk can cut a line short before its verdict is confirmed to the annotator."
        )
    return texts
