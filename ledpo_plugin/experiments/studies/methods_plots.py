"""Plots of the report's part on evaluation methods, from the result of the study."""

import textwrap
from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.lines import Line2D

from ledpo_plugin.experiments.report.plots import (
    STYLE,
    Plot,
    as_svg,
    categories,
    interval_mark,
    key_above,
    looks,
    new_panel,
)


def correlation_plot(result: Mapping[str, Any]) -> Plot | None:
    """Return a heat map of Spearman's correlation of every two methods, over models; a number in each cell."""
    compared = result["compared"]
    methods = compared["methods"]
    values = {(row["first"], row["second"]): row["value"] for row in compared["per_model"] if row["name"] == "spearman"}
    if not any(value is not None for value in values.values()):
        return None
    nan = float("nan")
    known = {pair: nan if value is None else value for pair, value in values.items()}
    grid = [[1.0 if a == b else known.get((a, b), known.get((b, a), nan)) for b in methods] for a in methods]
    size = 1.6 + 0.42 * len(methods)
    with matplotlib.rc_context(STYLE):
        figure, axes = new_panel(size + 1.0, size)
        axes.imshow(grid, vmin=-1, vmax=1, cmap="PuOr")
        for y, row in enumerate(grid):
            for x, value in enumerate(row):
                text = "" if value != value else f"{value:.2f}".replace("-", "\N{MINUS SIGN}")
                axes.text(
                    x, y, text, ha="center", va="center", fontsize=7, color="white" if abs(value) > 0.7 else "black"
                )
        names = [textwrap.fill(name, 18) for name in methods]
        axes.set_xticks(range(len(methods)), names, rotation=60, ha="right", fontsize=8)
        axes.set_yticks(range(len(methods)), names, fontsize=8)
        axes.grid(visible=False)
        caption = "Spearman's correlation of the models' mean scores by every two methods; intervals are in the table."
        alt = "Heat map of rank correlations between evaluation methods; the numbers are in the table of correlations."
        return Plot("methods-correlation", as_svg(figure, "methods-correlation", alt), caption, alt)


def stability_plot(result: Mapping[str, Any]) -> Plot | None:
    """Return how near the order of the models by fewer prompts is to that by all, a line per method."""
    curves = {
        method: [row for row in own if row["name"] == "tau" and row["value"] is not None]
        for method, own in result["compared"]["stability"].items()
    }
    curves = {method: rows for method, rows in curves.items() if len(rows) > 1}
    if not curves:
        return None
    styles = looks(list(curves))
    with matplotlib.rc_context(STYLE):
        figure, axes = new_panel()
        for method, rows in curves.items():
            look = styles[method]
            x, y = [row["prompts"] for row in rows], [row["value"] for row in rows]
            axes.plot(x, y, color=look.colour, linestyle=look.line, marker=look.marker, markevery=3, markersize=4)
        axes.set_xlabel("prompts in the subset")
        axes.set_ylabel("Kendall's tau with the order\nby all prompts")
        key = [
            Line2D([], [], label=method, color=look.colour, linestyle=look.line, marker=look.marker)
            for method, look in styles.items()
        ]
        key_above(figure, key)
        caption = "Order of the models by random subsets of the prompts against that by all: mean over subsets."
        alt = "Line plot of Kendall's tau against the number of prompts, a line per evaluation method."
        return Plot("methods-stability", as_svg(figure, "methods-stability", alt), caption, alt)


def win_rate_plot(result: Mapping[str, Any], names: Mapping[str, str]) -> Plot | None:
    """Return every judge's win rates of the models against the untrained one, with intervals over prompts."""
    judges = {
        name: [row for row in own["win_rates"] if row["name"] == "win_rate" and row.get("interval") == "bootstrap"]
        for name, own in result["judges"].items()
    }
    models = list(dict.fromkeys(row["model"] for rows in judges.values() for row in rows))
    if not models:
        return None
    styles = looks(list(judges))
    with matplotlib.rc_context(STYLE):
        figure, axes = new_panel(height=1.0 + 0.34 * len(models))
        axes.axvline(0.5, color="black", linewidth=0.9)
        for number, (judge, rows) in enumerate(judges.items()):
            for row in rows:
                if row["value"] is not None:
                    place = models.index(row["model"]) + 0.22 * (number - (len(judges) - 1) / 2)
                    shown = {"mean": row["value"], "low": row["low"], "high": row["high"]}
                    interval_mark(axes, shown, place, styles[judge])
        categories(axes, [names[model] for model in models])
        axes.set_xlabel("win rate against the untrained model")
        key_above(figure, [Line2D([], [], label=j, color=s.colour, marker=s.marker) for j, s in styles.items()])
        caption = "Win rates with both orders taken together, and 95 % bootstrap intervals over prompts."
        alt = "Dot plot of win rates by model and judge; the numbers are in the table of win rates."
        return Plot("methods-win-rates", as_svg(figure, "methods-win-rates", alt), caption, alt)
