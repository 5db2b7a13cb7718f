"""Results as rows of plain values, ready for JSON and a report; every row has name, n, value, low, high and reason."""

from collections.abc import Iterable
from typing import Any

from .agreement import PairAgreement
from .alignment import Lost
from .figures import Figure
from .length_bias import LengthBias, LengthEffect
from .pairwise import RELIABLE, Parsed, PositionBias, WinRate
from .ranking import Choice, Ranking
from .stability import Stability

Row = dict[str, Any]


def figure_row(name: str, figure: Figure, **more: Any) -> Row:
    """Return one figure as a row; `more` are further columns before it, as method="human"."""
    return {
        "name": name,
        **more,
        "n": figure.n,
        "value": figure.value,
        "low": figure.low,
        "high": figure.high,
        "reason": figure.why,
    }


def parsed_row(method: str, counts: Parsed) -> Row:
    """Return the share of parsed verdicts with its flag and the reasons of the missing ones."""
    few = None if counts.reliable else f"unreliable: under {RELIABLE:.0%} of the verdicts were parsed"
    return figure_row(
        "parsed", Figure(counts.asked, counts.share, why=few), method=method, reliable=counts.reliable,
        missing=dict(counts.reasons),
    )  # fmt: skip


def win_rate_rows(found: WinRate, name: str = "win_rate") -> list[Row]:
    """Return a win rate (0 to 1) with both intervals, its standard error and counts of items."""
    more = {"method": found.method, "model": found.model, "against": found.against}
    counts = {"wins": found.wins, "ties": found.ties, "losses": found.losses, "turned": found.turned}
    counts |= {"reliable": found.parsed.reliable}
    return [
        figure_row(name, found.rate, **more, **counts, interval="wilson"),
        figure_row(name, found.bootstrap, **more, **counts, interval="bootstrap"),
        figure_row(f"{name}_standard_error", found.standard_error, **more),
    ]


def position_rows(found: PositionBias) -> list[Row]:
    """Return the shares of same texts, same and turned verdicts; first-position rate and swap consistency on different
    texts; and the share of parsed verdicts."""
    more = {"method": found.method, "both_orders": found.both, "one_order": found.one}
    more |= {"unknown_texts": found.unknown, "graded": found.graded}
    return [
        figure_row("same_text", found.same_text, **more),
        figure_row("same_verdict", found.same_verdict, **more),
        figure_row("turned", found.turned, **more),
        figure_row("first_position", found.first_position, **more),
        figure_row("swap_consistency", found.consistency, **more),
        parsed_row(found.method, found.parsed),
    ]


def length_rows(found: LengthBias) -> list[Row]:
    """Return the figures on length; `spread` is the length difference in whose unit the effect is."""
    more = {"method": found.method, "no_length": found.no_length, "same_text": found.same_text}
    more |= {"equal": found.equal, "spread": found.spread}
    named = {
        "longer_preferred": found.longer,
        "length_correlation": found.correlation,
        "length_log_odds": found.effect,
        "first_log_odds": found.first,
    }
    return [figure_row(name, figure, **more) for name, figure in named.items()]


def length_effect_rows(found: LengthEffect) -> list[Row]:
    """Return what stands beside a win rate on the lengths of the answers."""
    more = {"method": found.method, "model": found.model, "against": found.against}
    named = {
        "longer_by": found.longer_by,
        "win_rate_where_longer": found.where_longer,
        "win_rate_where_shorter": found.where_shorter,
    }
    return [figure_row(name, figure, **more) for name, figure in named.items()]


def agreement_rows(found: PairAgreement) -> list[Row]:
    """Return percent agreement and kappas of two methods."""
    more = {"first": found.first, "second": found.second}
    more |= {"only_first": found.only_first, "only_second": found.only_second}
    named = {"percent_agreement": found.percent, "cohen_kappa": found.kappa, "weighted_kappa": found.weighted}
    return [figure_row(name, figure, **more) for name, figure in named.items()]


def ranking_rows(found: Ranking) -> list[Row]:
    """Return one row a model, best first."""
    return [
        figure_row(row.model, row.figure, method=found.method, by=found.by, rank=row.rank) for row in found.rows
    ]  # fmt: skip


def stability_rows(found: Stability) -> list[Row]:
    """Return the sufficient number of prompts, and then the curve: one row a number of prompts."""
    more = {"method": found.method, "models": len(found.models)}
    rows = [figure_row("prompts_until_stable", found.enough, **more, prompts=found.prompts, same=None)]
    return rows + [figure_row("tau", point.tau, **more, prompts=point.n, same=point.same) for point in found.curve]


def choice_rows(found: Iterable[Choice]) -> list[Row]:
    """Return what each method would have chosen, with its regret."""
    return [
        figure_row(
            "regret", row.regret, method=row.method, reference=row.reference, chosen=list(row.chosen),
            best=list(row.best), chosen_on=row.chosen_on,
        )
        for row in found
    ]  # fmt: skip


def lost_rows(found: Iterable[Lost]) -> list[Row]:
    """Return what each method lost in an alignment; the value is the share of its items that was kept."""
    rows = []
    for lost in found:
        share = Figure(lost.items, lost.kept / lost.items) if lost.items else Figure(0, None, why="no items")
        more = {"incomplete": lost.incomplete, "elsewhere": lost.elsewhere, "models_left_out": list(lost.models)}
        rows.append(figure_row("kept_items", share, method=lost.method, **more, missing=dict(lost.reasons)))
    return rows
