"""What a judge's verdicts add up to: win rates by us and by alpaca_eval, and what the judge is worth."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval_harness.agreement.agreement import repeat_consistency
from eval_harness.agreement.length_bias import length_bias, length_effect
from eval_harness.agreement.pairwise import TURNED, debiased_win_rate, position_bias
from eval_harness.agreement.reading import ALPACA_EVAL, read_verdicts
from eval_harness.agreement.tables import (
    figure_row,
    length_effect_rows,
    length_rows,
    parsed_row,
    position_rows,
    win_rate_rows,
)
from eval_harness.agreement.verdicts import ScoreTable, Verdict
from eval_harness.annotation.items import Item
from ledpo_plugin.common.run_record import package_versions

from .alpaca import official_win_rate
from .judging import Judged
from .length_control import length_controlled


def summarise(
    done: Judged, items: Sequence[Item], *, calibration: str | Path | None = None, seed: int = 0
) -> dict[str, Any]:
    """Return every figure of a judge's work, as JSON values.

    Args:
        done: what the judge said.
        items: what it was asked; the second generator of an item is the one whose win rate is given.
        calibration: see `length_controlled`.
        seed: of the bootstrap intervals.
    """
    name, verdicts = done.judge.name, list(done.verdicts)
    lengths = _lengths(items)
    pairs = []
    for against, model in dict.fromkeys(item.generators for item in items):
        own = [v for v in verdicts if {v.model_1, v.model_2} == {against, model}]
        rate = debiased_win_rate(own, name, model, against, seed=seed)
        pairs.append(
            {
                "model": model,
                "against": against,
                "rows": win_rate_rows(rate),
                "parsed": parsed_row(name, rate.parsed),
                "alpaca_eval": _official(done.annotations, model, against),
                "length_controlled": _length_controlled(done.annotations, model, against, calibration),
                "length_effect": [
                    *length_effect_rows(length_effect(own, name, model, against, lengths, seed=seed)),
                    *(
                        row
                        for row in length_rows(length_bias(own, name, lengths, seed=seed))
                        if row["name"] == "length_log_odds"
                    ),
                ],
            }
        )
    texts = [[item.prompt, item.outputs, item.generators] for item in items]
    return {
        "judge": done.judge.described(),
        "pairs": pairs,
        "position": position_rows(position_bias(verdicts, name, seed=seed)),
        "length": length_rows(length_bias(verdicts, name, lengths, seed=seed)),
        "repeat": figure_row("repeat_consistency", repeat_consistency(verdicts, name, seed=seed)),
        "usage": done.usage,
        "provenance": {
            "versions": versions(),
            "comparisons": len(items),
            "items_sha256": hashlib.sha256(repr(texts).encode()).hexdigest(),
        },
    }


def versions() -> dict[str, str | None]:
    """Return the versions that judging rests on."""
    from importlib.metadata import version

    return package_versions() | {name: version(name) for name in ("alpaca_eval", "scikit-learn", "scipy")}


def _lengths(items: Iterable[Item]) -> ScoreTable:
    scores: dict[str, dict[str, float]] = {}
    for item in items:
        for name, text in zip(item.generators, item.outputs, strict=True):
            scores.setdefault(item.prompt, {})[name] = float(len(text))
    return ScoreTable("characters", scores)


def _of(annotations: Iterable[Mapping[str, Any]], first: str, second: str) -> list[dict[str, Any]]:
    return [
        dict(row) for row in annotations
        if (row["generator_1"], row["generator_2"]) == (first, second) and not row["repeat"]
    ]  # fmt: skip


def _official(annotations: Sequence[Mapping[str, Any]], model: str, against: str) -> dict[str, Any]:
    """Return alpaca_eval's own figures, in percent: the model second, first (turned round), and their mean."""
    second = _of(annotations, against, model)
    first = [row | {"preference": 3 - row["preference"]} for row in _of(annotations, model, against)]
    found = {
        name: official_win_rate(rows) if rows else None
        for name, rows in (("model_second", second), ("model_first", first))
    }
    known = [own["win_rate"] for own in found.values() if own and math.isfinite(own["win_rate"])]
    return found | {"both_orders": sum(known) / 2 if len(known) == 2 else None}


def _length_controlled(
    annotations: Sequence[Mapping[str, Any]], model: str, against: str, calibration: str | Path | None
) -> dict[str, Any]:
    """Return the length-controlled win rate over both orders: one row a prompt, its preference their mean."""
    second = {row["instruction"]: row for row in _of(annotations, against, model)}
    first = {row["instruction"]: row for row in _of(annotations, model, against)}
    rows = [
        row | {"preference": (row["preference"] + 3 - first[prompt]["preference"]) / 2}
        for prompt, row in second.items()
        if prompt in first
    ]
    return length_controlled(rows, calibration)


def of_annotations(path: str | Path) -> list[dict[str, Any]]:
    """Return alpaca_eval's win rate and ours for every pair of generators in a file of its annotations.

    Raises:
        DataError: the file cannot be used; every problem is listed with its row.
    """
    verdicts: list[Verdict] = read_verdicts(path, columns=ALPACA_EVAL)
    found = []
    for method, first, second in dict.fromkeys((v.method, v.model_1, v.model_2) for v in verdicts):
        own = [v for v in verdicts if (v.method, v.model_1, v.model_2) == (method, first, second)]
        given = [{"preference": 1 + v.second_gain} for v in own if v.second_gain is not None]
        found.append(
            {
                "judge": method,
                "model": second,
                "against": first,
                "asked": len(own),
                "alpaca_eval": official_win_rate(given) if given else None,
            }
        )
    return found


def text(summary: Mapping[str, Any]) -> str:
    """Return a summary as lines for a terminal."""
    judge = summary["judge"]["name"]
    lines = []
    for pair in summary["pairs"]:
        row = next(r for r in pair["rows"] if r["name"] == "win_rate" and r["interval"] == "bootstrap")
        error = next(r for r in pair["rows"] if r["name"] == "win_rate_standard_error")
        controlled = pair["length_controlled"]
        lines.append(f"{pair['model']} against {pair['against']}, by {judge}:")
        lines.append(f"  win rate {_shown(row)}, standard error {_number(error['value'])}, n = {row['n']}")
        counts = f"wins {row['wins']}, ties {row['ties']}, losses {row['losses']}, {row['turned']} of them turned"
        lines.append(f"  {counts} (both orders of every pair)")
        if controlled["win_rate"] is None:
            lines.append(f"  not controlled for length: {controlled['reason']}")
        else:
            lines.append(f"  length-controlled {controlled['win_rate'] / 100:.3f} ({controlled['label']})")
        effect = {row["name"]: row for row in pair["length_effect"]}
        lines.append(f"  longer than the other's by {_shown(effect['longer_by'])} characters on average")
        for name, where in (("win_rate_where_longer", "longer"), ("win_rate_where_shorter", "shorter")):
            lines.append(f"  win rate where its answer is {where}: {_shown(effect[name])}, n = {effect[name]['n']}")
        lines.append(f"  log-odds for a standard deviation of length: {_shown(effect['length_log_odds'])}")
        if not pair["parsed"]["reliable"]:
            lines.append(f"  UNRELIABLE: {pair['parsed']['reason']}")
        if pair["parsed"]["missing"]:
            gaps = ", ".join(f"{count} {why}" for why, count in pair["parsed"]["missing"].items())
            lines.append(f"  without a verdict: {gaps}")
    named = {row["name"]: row for row in [*summary["position"], *summary["length"]]}
    lines.append(f"{judge} itself:")
    for name, what in (
        ("same_text", "comparisons of a text with itself, which say nothing about it"),
        ("same_verdict", "comparisons of different texts, the same verdict in both orders"),
        ("turned", "comparisons of different texts, another verdict in the other order"),
        ("swap_consistency", "of different texts, share with the same verdict in both orders"),
        ("first_position", "of different texts, verdicts for the answer shown first (0.5 without a liking)"),
        ("longer_preferred", "of different texts, verdicts for the longer answer"),
    ):
        lines.append(f"  {what}: {_shown(named[name])}")
    lines.append(f"  {TURNED[named['first_position']['graded']]}")
    used = summary["usage"]
    price = f", price {used['price']:.4f}" if "price" in used else ""
    lines.append(
        f"  {used['calls']} calls, {used['cached']} answers known before, {used['tokens_in']} tokens in and "
        f"{used['tokens_out']} out{price}"
    )
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _shown(row: Mapping[str, Any]) -> str:
    if row["value"] is None:
        return f"none ({row['reason']})"
    interval = "" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
    return f"{row['value']:.3f}{interval}"
