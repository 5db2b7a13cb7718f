"""Plots of a report as SVG text, from the numbers of `results.json`: one panel each, so that a phone can stack them.

Told apart without colour: every variant has its own marker and its own line style. The same numbers give the same
bytes: ids come from the panel's name, and no date is written.
"""

import io
import math
import re
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from .curves import binned
from .formatting import metric

# Okabe and Ito's colours but yellow, which is too pale on white.
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p")
LINES = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)), (0, (9, 3)))
POINTS = 15  # of a noisy curve that shares its panel with others
WIDTH, HEIGHT, SMALL = 4.6, 3.2, (3.4, 2.3)
STYLE = {
    "svg.fonttype": "none",  # text stays text: small, can be searched, read aloud
    "text.parse_math": False,  # a label's $ is a $
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that text has the same size everywhere
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.unicode_minus": True,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    "path.simplify": True,
    "figure.dpi": 72,
}


@dataclass(frozen=True)
class Plot:
    """An SVG image: what it shows in one sentence, and the sentence that stands in for it where it is not seen."""

    name: str
    svg: str
    caption: str
    alt: str

    @property
    def file(self) -> str:
        """The name of the file that it stands in, beside a report in Markdown."""
        return re.sub(r"[^\w.-]", "-", self.name) + ".svg"


@dataclass(frozen=True)
class Look:
    """How a variant is drawn."""

    colour: str
    marker: str
    line: Any


def looks(variants: Sequence[str]) -> dict[str, Look]:
    """Return a colour, marker and line style for every variant, by its place."""
    return {
        name: Look(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], LINES[i % len(LINES)])
        for i, name in enumerate(variants)
    }


def outcome_plots(summary: Mapping[str, Any]) -> list[Plot]:
    """Return the primary metric of every variant and seed, and the differences with both of their intervals."""
    plots = [_values_plot(summary), _differences_plot(summary)]
    return [plot for plot in plots if plot]


def curve_plots(summary: Mapping[str, Any]) -> list[Plot]:
    """Return the primary metric and the margin against steps and against FLOPs."""
    measured = summary["curves"]["measured"]
    names = [name for name in measured if not name.endswith("/chosen_shift") and name not in summary["curves"]["drawn"]]
    plots = []
    for name in names:
        for axis in ("step", "flops"):
            plots.append(_measured_plot(summary, name, axis))
    return [plot for plot in plots if plot]


def answer_plots(summary: Mapping[str, Any]) -> list[Plot]:
    """Return what was measured of drawn answers against FLOPs, and the reward against the KL that it cost."""
    plots = [_measured_plot(summary, name, "flops") for name in summary["curves"]["drawn"]]
    plots.append(_frontier_plot(summary))
    return [plot for plot in plots if plot]


def training_plots(summary: Mapping[str, Any]) -> list[Plot]:
    """Return the margin and gradient norm while training, and the loss of each variant in a panel of its own."""
    training = summary["curves"]["training"]
    plots = [
        _training_plot(summary, "margins/beta_free", "margin while training / nats", "train-margin"),
        _training_plot(summary, "grad_norm", "gradient norm", "train-gradient", log=True),
    ]
    for index, (name, curve) in enumerate(training["loss"].items()):
        plots.append(_loss_plot(summary, name, curve, f"loss-{index}"))
    return [plot for plot in plots if plot]


def shift_plots(summary: Mapping[str, Any]) -> list[Plot]:
    """Return how the likelihood of chosen answers moved."""
    names = [name for name in summary["curves"]["measured"] if name.endswith("/chosen_shift")]
    return [plot for name in names if (plot := _measured_plot(summary, name, "step"))]


def beta_plots(summary: Mapping[str, Any]) -> list[Plot]:
    """Return beta while training, its distribution on held-out prompts, and beta against the margin of each variant."""
    found = summary["beta"]
    if not found:
        return []
    plots = [_beta_training_plot(summary), _beta_distribution_plot(summary)]
    for index, name in enumerate(found):
        plots.append(_scatter_plot(summary, name, f"beta-margin-{index}"))
    return [plot for plot in plots if plot]


def mixture_plots(summary: Mapping[str, Any]) -> list[Plot]:
    """Return the loss of preferences and the NLL of instructions of the variants that trained on both."""
    only = tuple(summary["mixture"])
    plots = [
        _training_plot(summary, "preference_loss", "loss of preferences", "mixture-preferences", only=only),
        _training_plot(summary, "sft_nll", "NLL of instructions / nats per token", "mixture-instructions", only=only),
    ]
    return [plot for plot in plots if plot]


# ---- panels


def _values_plot(summary: Mapping[str, Any]) -> Plot | None:
    primary, styles = summary["primary"], looks(list(summary["labels"]))
    rows = [name for name in summary["labels"] if (summary["metrics"][name].get(primary) or {}).get("mean") is not None]
    if not rows:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = new_panel(height=1.0 + 0.44 * len(rows))
        for place, name in enumerate(rows):
            found = summary["metrics"][name][primary]
            finals = [run["final"].get(primary) for run in summary["runs"] if run["variant"] == name and run["final"]]
            values = [value for value in finals if value is not None]
            offsets = [place + 0.16 + 0.07 * (i % 2) for i in range(len(values))]
            axes.plot(
                values, offsets, linestyle="", marker="o", markersize=3.5, markerfacecolor="white", color="#555555"
            )
            interval_mark(axes, found, place - 0.05, styles[name])
        for base in summary["bases"]:
            if base["metrics"].get(primary) is not None:
                axes.axvline(base["metrics"][primary], color="#555555", linestyle=":", linewidth=1.2)
        categories(axes, [summary["labels"][name] for name in rows])
        axes.set_xlabel(_axis_name(primary).replace(" / ", "\n/ "))
        key = [
            Line2D([], [], color="black", marker="o", label="mean, 95 % interval over seeds"),
            Line2D([], [], color="#555555", marker="o", markersize=3.5, markerfacecolor="white", ls="", label="a seed"),
        ]
        if summary["bases"]:
            key.append(Line2D([], [], color="#555555", linestyle=":", label="before training"))
        key_above(figure, key, columns=2)
        caption = f"{primary} of every variant; larger marks: means, small circles: seeds, dotted: before training."
        alt = f"Dot plot of {primary} by variant with 95 percent intervals; the numbers are in the table of results."
        return Plot("values", as_svg(figure, "values", alt), caption, alt)


def _differences_plot(summary: Mapping[str, Any]) -> Plot | None:
    rows = [
        row
        for row in summary["comparisons"]
        if row["metric"] == summary["primary"] and row["difference"]["mean"] is not None
    ]
    if not rows:
        return None
    styles = looks(list(summary["labels"]))
    with matplotlib.rc_context(STYLE):
        figure, axes = new_panel(height=1.0 + 0.44 * len(rows))
        axes.axvline(0, color="black", linewidth=0.9)
        for place, row in enumerate(rows):
            interval_mark(axes, row["difference"], place - 0.12, styles[row["variant"]])
            items = row.get("items") or {}
            if items.get("low") is not None:
                line = [items["low"], items["high"]], [place + 0.2, place + 0.2]
                axes.plot(*line, color="#555555", linestyle=(0, (2, 1)), linewidth=1.2, marker="|", markersize=5)
        categories(axes, [f"{row['label']} − {row['against_label']}" for row in rows])
        axes.set_xlabel(f"difference in {_axis_name(summary['primary'])}".replace(" / ", "\n/ "))
        key = [Line2D([], [], color="black", marker="o", label="over seeds")]
        key += [Line2D([], [], color="#555555", linestyle=(0, (2, 1)), marker="|", label="over held-out items")]
        key_above(figure, key, columns=2)
        caption = f"Differences in {summary['primary']}, with 95 % intervals over seeds and over held-out items."
        alt = f"Interval plot of differences in {summary['primary']}; the numbers are in the table of comparisons."
        return Plot("differences", as_svg(figure, "differences", alt), caption, alt)


def _measured_plot(summary: Mapping[str, Any], name: str, axis: str) -> Plot | None:
    found = {key: curve for key, curve in summary["curves"]["measured"][name].items() if curve["mean"]}
    if not found:
        return None
    factor, unit = _flops_unit(found) if axis == "flops" else (1.0, "optimizer steps")
    where = "compute / " + unit if axis == "flops" else "training / " + unit
    with matplotlib.rc_context(STYLE):
        figure, axes = new_panel()
        for key, curve in found.items():
            x = [None if value is None else value / factor for value in curve[axis]]
            _band(axes, x, curve, looks(list(summary["labels"]))[key], marks=True)
        if name.endswith(("/margin", "_shift")):
            axes.axhline(0, color="black", linewidth=0.6)
        target = summary["convergence"]
        if target and target["metric"] == name:
            for bound in (target["at_least"], target["at_most"]):
                if bound is not None:
                    axes.axhline(bound, color="#555555", linestyle=":", linewidth=1.2)
                    axes.annotate(
                        "target",
                        (1, bound),
                        xycoords=("axes fraction", "data"),
                        ha="right",
                        va="bottom",
                        color="#555555",
                        fontsize=8,
                        xytext=(0, 1),
                        textcoords="offset points",
                    )
        axes.set_xlabel(where)
        axes.set_ylabel(_axis_name(name).replace(" / ", "\n/ "))
        key_above(figure, _key(summary, found, marks=True))
        against = "FLOPs" if axis == "flops" else "steps"
        caption = f"{name} against {against}: mean and, shaded, least to greatest over seeds."
        alt = f"Line plot of {name} against {against}, a line per variant with a band over seeds."
        panel = f"{'flops' if axis == 'flops' else 'steps'}-{list(summary['curves']['measured']).index(name)}"
        return Plot(panel, as_svg(figure, panel, alt), caption, alt)


def _frontier_plot(summary: Mapping[str, Any]) -> Plot | None:
    """Return the reward at each measurement against the KL from the start there (as in arXiv:2210.10760)."""
    rewards, kls = (summary["curves"]["measured"].get(name) or {} for name in ("reward/score", "answers/kl"))
    found = {
        name: (kls[name]["mean"], curve["mean"])
        for name, curve in rewards.items()
        if curve["mean"] and len(curve["mean"]) == len((kls.get(name) or {}).get("mean") or ())
    }
    if not found:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = new_panel()
        for name, (kl, reward) in found.items():
            look = looks(list(summary["labels"]))[name]
            axes.plot(kl, reward, **_line(look), marker=look.marker)
        axes.set_xlabel("KL from the start / nats per answer")
        axes.set_ylabel("reward/score")
        key_above(figure, _key(summary, found, marks=True))
        caption = "Reward of drawn answers against KL from the start at each measurement: means over seeds."
        alt = (
            "Line plot of reward against KL from the start, a line per variant, from the start to the end of training."
        )
        return Plot("frontier", as_svg(figure, "frontier", alt), caption, alt)


def _training_plot(
    summary: Mapping[str, Any],
    key: str,
    title: str,
    panel: str,
    *,
    log: bool = False,
    only: Sequence[str] | None = None,
) -> Plot | None:
    found = {name: curve for name, curve in summary["curves"]["training"][key].items() if only is None or name in only}
    if not found:
        return None
    size = -(-max(len(curve["step"]) for curve in found.values()) // POINTS)
    found = {name: binned(curve, size) for name, curve in found.items()}
    with matplotlib.rc_context(STYLE):
        figure, axes = new_panel()
        for name, curve in found.items():
            _band(axes, curve["step"], curve, looks(list(summary["labels"]))[name], marks=True, shade=not log)
        if log and _wide([value for curve in found.values() for value in curve["mean"]]):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(FuncFormatter(_two_or_five))
        axes.set_xlabel("training / optimizer steps")
        axes.set_ylabel(title)
        key_above(figure, _key(summary, found))
        what = title.partition(" /")[0]
        of = f" of {size} logged steps," if size > 1 else ""
        band = "." if log else " and, shaded, least to greatest."
        caption = f"{what[0].upper()}{what[1:]}: mean{of} over seeds{band}"
        alt = f"Line plot of {what} against optimizer steps, a line per variant."
        return Plot(panel, as_svg(figure, panel, alt), caption, alt)


def _loss_plot(summary: Mapping[str, Any], name: str, curve: Mapping[str, Any], panel: str) -> Plot:
    label = summary["labels"][name]
    with matplotlib.rc_context(STYLE):
        figure, axes = new_panel(*SMALL)
        _band(axes, curve["step"], curve, looks(list(summary["labels"]))[name])
        runs = summary["stability"][name]["runs"]
        places = dict(zip(curve["step"], curve["greatest"], strict=True))
        spiked = sorted({step for run in runs for step in run["spikes"] if step in places})
        if spiked:
            axes.plot(spiked, [places[step] for step in spiked], ls="", marker="x", color="black", markersize=6)
        axes.set_title(label, loc="left", fontweight="bold")
        axes.set_xlabel("training / optimizer steps")
        axes.set_ylabel("training loss")
        alt = f"Line plot of the training loss of {label} against optimizer steps."
        return Plot(
            panel, as_svg(figure, panel, alt), f"Training loss of {label}." + " × marks a spike." * bool(spiked), alt
        )


def _beta_training_plot(summary: Mapping[str, Any]) -> Plot | None:
    training = summary["curves"]["training"]
    found = {name: training["beta/mean"][name] for name in summary["beta"] if name in training["beta/mean"]}
    if not found:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = new_panel()
        for name, curve in found.items():
            look = looks(list(summary["labels"]))[name]
            low, high = (training[key].get(name) for key in ("beta/q10", "beta/q90"))
            if low and high and low["step"] == high["step"] == curve["step"]:
                axes.fill_between(curve["step"], low["mean"], high["mean"], color=look.colour, alpha=0.15, linewidth=0)
                for edge in (low, high):
                    axes.plot(edge["step"], edge["mean"], color=look.colour, linestyle=look.line, linewidth=0.6)
            axes.plot(curve["step"], curve["mean"], **_line(look), **_marks(look, len(curve["step"])))
        axes.set_xlabel("training / optimizer steps")
        axes.set_ylabel("beta")
        key_above(figure, _key(summary, found, marks=True))
        caption = "Beta of the training examples: mean over seeds and, between thin lines, its 10 % to 90 % quantiles."
        alt = "Line plot of beta against optimizer steps with a band from the 10 to the 90 percent quantile."
        return Plot("beta-training", as_svg(figure, "beta-training", alt), caption, alt)


def _beta_distribution_plot(summary: Mapping[str, Any]) -> Plot | None:
    found = {name: row for name, row in summary["beta"].items() if row["quantiles"]}
    if not found:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = new_panel()
        for name, row in found.items():
            look = looks(list(summary["labels"]))[name]
            share = [100 * i / (len(row["quantiles"]) - 1) for i in range(len(row["quantiles"]))]
            axes.plot(row["quantiles"], share, **_line(look), **_marks(look, len(share)))
        axes.set_xlabel("beta of held-out prompts")
        axes.set_ylabel("share of prompts with less / %")
        key_above(figure, _key(summary, found, marks=True))
        caption = "Distribution of beta over the held-out prompts of all seeds."
        alt = "Cumulative distribution of beta on held-out prompts, a line per variant."
        return Plot("beta-heldout", as_svg(figure, "beta-heldout", alt), caption, alt)


def _scatter_plot(summary: Mapping[str, Any], name: str, panel: str) -> Plot | None:
    row, label = summary["beta"][name], summary["labels"][name]
    dots = [(x, y) for x, y in zip(row["margin"], row["beta"], strict=False) if x is not None and y is not None]
    if not dots:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = new_panel(*SMALL)
        look = looks(list(summary["labels"]))[name]
        axes.axvline(0, color="black", linewidth=0.6)
        axes.plot(*zip(*dots, strict=True), ls="", marker=look.marker, markersize=4, color=look.colour,
                  markerfacecolor="none")  # fmt: skip
        axes.set_title(label, loc="left", fontweight="bold")
        axes.set_xlabel("beta-free margin / nats")
        axes.set_ylabel("beta")
        alt = f"Scatter plot of beta against the beta-free margin of held-out pairs, {label}."
        caption = f"Beta against margin of the held-out pairs, {label}, first seed."
        return Plot(panel, as_svg(figure, panel, alt), caption, alt)


# ---- parts of panels


def new_panel(width: float = WIDTH, height: float = HEIGHT) -> tuple[Figure, Axes]:
    """Return an empty figure and its axes; draw under `rc_context(STYLE)`."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def _line(look: Look) -> dict[str, Any]:
    return {"color": look.colour, "linestyle": look.line}


def _marks(look: Look, n: int) -> dict[str, Any]:
    return {"marker": look.marker, "markevery": max(1, n // 8), "markersize": 5}


def _band(
    axes: Axes, x: Sequence[Any], curve: Mapping[str, Any], look: Look, marks: bool = False, shade: bool = True
) -> None:
    x = [math.nan if value is None else value for value in x]
    if shade and max(curve["n"]) > 1:
        axes.fill_between(x, curve["least"], curve["greatest"], color=look.colour, alpha=0.13, linewidth=0)
    shown = {"marker": look.marker} if marks else _marks(look, len(x))
    axes.plot(x, curve["mean"], **_line(look), **shown)


def _wide(values: Sequence[float]) -> bool:
    """Whether positive values need a logarithmic axis."""
    return min(values) > 0 and max(values) > 20 * min(values)


def _two_or_five(value: float, _: Any) -> str:
    """Return the label of a tick between powers of ten: where there is room, at 2 and 5 times one."""
    return f"{value:g}" if f"{value:e}"[0] in "25" else ""


def interval_mark(axes: Axes, found: Mapping[str, Any], place: float, look: Look) -> None:
    """Draw a mean and its interval (`mean`, `low`, `high`) as one row of a panel."""
    if found["low"] is not None:
        axes.plot([found["low"], found["high"]], [place, place], color=look.colour, marker="|", markersize=7)
    axes.plot([found["mean"]], [place], color=look.colour, marker=look.marker, markersize=7)


def categories(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows of a panel, the first on top."""
    axes.set_yticks(range(len(names)), [textwrap.fill(name, 20) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def _key(summary: Mapping[str, Any], names: Any, marks: bool = True) -> list[Line2D]:
    styles = looks(list(summary["labels"]))
    return [
        Line2D([], [], label=summary["labels"][name], marker=styles[name].marker, **_line(styles[name]))
        for name in names
        if name in styles
    ]


def key_above(figure: Figure, handles: Sequence[Line2D], columns: int | None = None) -> None:
    """Put the key above the panel, where it covers nothing, and make the image taller by it."""
    labels = [
        handle.get_label() if not handle.get_label().startswith("_") else f" {handle.get_label()}" for handle in handles
    ]
    longest = max(map(len, labels), default=1)
    columns = min(len(labels), columns or max(1, min(3, int(WIDTH * 11 / (longest + 7)))))
    rows = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + 0.2 * rows)
    space = {"handlelength": 3.2, "columnspacing": 1.2, "borderpad": 0, "labelspacing": 0.3}
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False, fontsize=8.5, **space)


def _axis_name(name: str) -> str:
    unit = metric(name).unit
    return f"{name} / {unit}" if unit != name.rpartition("/")[2] else name


def _flops_unit(curves: Mapping[str, Mapping[str, Any]]) -> tuple[float, str]:
    largest = max((value for curve in curves.values() for value in curve["flops"] if value is not None), default=0)
    for factor, unit in ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP")):
        if largest >= factor:
            return factor, unit
    return 1.0, "FLOP"


_NUMBER = re.compile(r"(\d+\.\d\d)\d+")
_TAG = re.compile(r"<[^>]*>")
_ID = re.compile(r'\bid="([^"]+)"')


def as_svg(figure: Figure, panel: str, alt: str) -> str:
    """Return the figure as an SVG element to stand in a page: small, with ids of its own, and with a name."""
    buffer = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": panel}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # letters the font lacks stay text, which the browser's fonts have
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\s*<style type="text/css">.*?</style>', "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    used = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', text))
    text = _ID.sub(lambda found: f'id="{panel}-{found[1]}"' if found[1] in used else "", text)
    text = re.sub(r'((?:xlink:href="#|url\(#))', rf"\g<1>{panel}-", text)
    text = _TAG.sub(lambda found: _NUMBER.sub(r"\1", found[0]), text)  # places, not the numbers that are read
    text = re.sub(r"\n\s*", "\n", text)
    size = re.search(r'viewBox="[\d. ]+"', text)
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {size[0]}'
    return opening + f' role="img" aria-label="{_attribute(alt)}">' + text[text.index(">") + 1 :]


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")
