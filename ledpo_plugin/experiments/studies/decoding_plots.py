"""Plots of the report's part on decoding, from the result of the study."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

from ledpo_plugin.experiments.report.plots import (
    COLOURS,
    LINES,
    STYLE,
    Look,
    Plot,
    as_svg,
    categories,
    interval_mark,
    new_panel,
)

from .parts import safe
from .shown import named

DIVERSITY = "distinct-2"
QUALITY = ("win rate", "implicit reward")
SHOWN = ("win rate", "implicit reward", "log-probability", "repetition")
PLAIN = Look(COLOURS[2], "o", LINES[0])


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return the names of the points that no other equals or beats in both numbers, by their first number.

    Of points that are the same, all are returned.
    """

    def beaten(own: tuple[float, float]) -> bool:
        return any(x >= own[0] and y >= own[1] and (x, y) != own for x, y in points.values())

    return sorted((name for name, own in points.items() if not beaten(own)), key=lambda name: points[name])


def points_of(result: Mapping[str, Any], model: str, quality: str) -> dict[str, tuple[float, float]]:
    """Return decoding -> (diversity, quality) of a model; settings without one of them are left out."""
    found = {}
    for row in result["settings"]:
        pair = [named(row["figures"], name=name) for name in (DIVERSITY, quality)]
        if row["model"] == model and all(one and one["value"] is not None for one in pair):
            found[row["decoding"]] = (pair[0]["value"], pair[1]["value"])
    return found


def front_plot(result: Mapping[str, Any], model: str, label: str) -> Plot | None:
    """Return quality against diversity of a model's settings, those on the front joined by a line."""
    for quality in QUALITY:
        points = points_of(result, model, quality)
        if len(points) > 1:
            break
    else:
        return None
    best = front(points)
    with matplotlib.rc_context(STYLE):
        figure, axes = new_panel(5.4, 4.2)
        axes.plot([points[n][0] for n in best], [points[n][1] for n in best], color=COLOURS[1], linewidth=1)
        for name, (x, y) in points.items():
            on = name in best
            axes.plot([x], [y], linestyle="", marker="D" if on else "o", color=COLOURS[1] if on else COLOURS[2])
            axes.annotate(name, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=7)
        axes.set_xlabel("diversity: distinct-2")
        axes.set_ylabel(quality)
        axes.set_title(label, loc="left", fontweight="bold")
        axes.margins(x=0.18, y=0.1)
        name = f"decoding-front-{safe(model)}"
        caption = f"Quality against diversity, {label}; diamonds: settings that no other beats in both by "
        caption += "their means on all prompts; which of near ones has a diamond is chance."
        alt = f"Scatter plot of {quality} against distinct-2 by decoding setting; the numbers are in the table."
        return Plot(name, as_svg(figure, name, alt), caption, alt)


def setting_plots(result: Mapping[str, Any], model: str, label: str) -> list[Plot]:
    """Return a panel a metric: every setting's mean and interval over prompts."""
    rows = [row for row in result["settings"] if row["model"] == model]
    return [plot for metric in SHOWN if (plot := _setting_plot(rows, metric, model, label))]


def _setting_plot(rows: Sequence[Mapping[str, Any]], metric: str, model: str, label: str) -> Plot | None:
    shown = [(row["decoding"], named(row["figures"], name=metric)) for row in rows]
    shown = [(name, figure) for name, figure in shown if figure and figure["value"] is not None]
    if len(shown) < 2:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = new_panel(height=0.9 + 0.26 * len(shown))
        for place, (_, own) in enumerate(shown):
            found = {"mean": own["value"], "low": own["low"], "high": own["high"]}
            interval_mark(axes, found, place, PLAIN)
        categories(axes, [name for name, _ in shown])
        axes.set_xlabel(metric)
        axes.locator_params(axis="x", nbins=5)
        axes.set_title(label, loc="left", fontweight="bold")
        name = f"decoding-{safe(metric)}-{safe(model)}"
        alt = f"Dot plot of {metric} by decoding setting with 95 percent intervals; the numbers are in the table."
        return Plot(name, as_svg(figure, name, alt), f"{metric} by setting, {label}, 95 % intervals over prompts.", alt)
