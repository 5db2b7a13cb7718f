"""Figures of a study as cells of a report's tables, and what its plots have in common."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from eval_harness.agreement.pairwise import TURNED
from ledpo_plugin.common.files import read_json
from ledpo_plugin.experiments.report import formatting
from ledpo_plugin.experiments.results.collected import Collected
from ledpo_plugin.experiments.results.store import RESULT

from .parts import FOLDER, START

BEFORE = "before training"
SAME = "the same in every draw"  # in the reason of a figure without an interval
# Name of a row on the order of answers -> the heading of its column.
POSITION = MappingProxyType(
    {
        "parsed": "Understood",
        "same_text": "Same text",
        "same_verdict": "Same verdict in both orders",
        "turned": "Turned",
        "swap_consistency": "Same verdict, of different texts",
        "first_position": "First position",
    }
)
SHARES = (
    "Same text, same verdict in both orders and turned (another verdict in the other order) are shares of all "
    "comparisons and add up to 1; two answers with the same text say nothing about a judge and are in no other column. "
    "First position: share of verdicts, one half without a liking; of graded verdicts the side of one half decides."
)


def result_of(found: Collected, part: str, name: str = "all") -> dict[str, Any] | None:
    """Return the result of a part; None where it has none."""
    result = read_json(Path(found.folder) / FOLDER / part / name / RESULT)
    return result if isinstance(result, dict) else None


def labels_of(found: Collected, models: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return model -> what it is called: `LEDPO, seed 2`."""
    return {
        model["model"]: BEFORE if model["model"] == START else f"{found.label(model['variant'])}, seed {model['seed']}"
        for model in models
    }


def cell(row: Mapping[str, Any] | None, sign: bool = False) -> str:
    """Return a row's figure as `value [low, high]`; a dash where it has no value."""
    if row is None or row["value"] is None:
        return formatting.NONE
    return formatting.estimate({"mean": row["value"], "low": row["low"], "high": row["high"]}, sign)


def named(rows: Sequence[Mapping[str, Any]], **wanted: Any) -> Mapping[str, Any] | None:
    """Return the first row with these values, None if there is none."""
    return next((row for row in rows if all(row.get(key) == value for key, value in wanted.items())), None)


def reasons(rows: Sequence[Mapping[str, Any] | None]) -> str:
    """Return why figures are missing, each reason once, as sentences for a note; empty if none is."""
    found = dict.fromkeys(str(row["reason"]) for row in rows if row and row["value"] is None and row["reason"])
    return f" {formatting.NONE}: {'; '.join(found)}." if found else ""


def excludes(row: Mapping[str, Any] | None, value: float) -> int:
    """Return 1 where the interval is above a value, -1 where it is below, 0 where it holds it or there is none.

    A figure that is the same in every draw is its own interval.
    """
    if row is None or row["value"] is None:
        return 0
    low, high = row["low"], row["high"]
    if low is None and SAME in str(row["reason"]):
        low = high = row["value"]
    return 0 if low is None else int(low > value) - int(high < value)


def shares_words(position: Sequence[Mapping[str, Any]]) -> str:
    """Return, of a judge's rows on the order of answers, the three shares of its comparisons as a clause."""
    same, steady, turned = (named(position, name=name) for name in ("same_text", "same_verdict", "turned"))
    if turned is None or turned["value"] is None:
        return "what the order of the answers does to it is not known"
    text = f"of {formatting.count(turned['n'], 'comparison')} in both orders {_percent(same)} are of a text "
    text += f"with itself, {_percent(steady)} have the same verdict both ways and "
    return text + f"{_percent(turned)} turn with the order"


def _percent(row: Mapping[str, Any]) -> str:
    return f"{100 * row['value']:.1f} %"


def turned_words(positions: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """Return what a verdict that turns with the order counts as, for judges in letters, graded ones, or both."""
    graded = {bool(row.get("graded")) for rows in positions for row in rows if row["name"] == "first_position"}
    return "; ".join(TURNED[kind] for kind in sorted(graded)) + "."
