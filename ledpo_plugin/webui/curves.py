"""Beta and accuracy while a run goes on: its live log, read again and drawn again when it has grown."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ledpo_plugin.training.live_log import read_live_log

_BLUE, _GREEN, _RED, _GREY = "#0072B2", "#009E73", "#D55E00", "#777777"  # told apart by the colour-blind, too
_ACCURACY = "rewards/accuracies"
_LABEL = 0.35  # inches at the top, over which the page writes the plot's label

Rows = Sequence[Mapping[str, float]]


class Curves:
    """The curves of one run's live log."""

    def __init__(self, path: Path) -> None:
        self.path, self.seen = path, None

    def figure_if_new(self) -> Figure | None:
        """Return the figure of what was logged; None where that is nothing, or nothing more than last time."""
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            return None
        state = (status.st_ino, status.st_size, status.st_mtime_ns)
        if state == self.seen:
            return None
        self.seen = state
        return draw(read_live_log(self.path))


def series(rows: Rows, key: str) -> tuple[list[float], list[float]]:
    """Return the steps at which a number was logged, and its values."""
    found = [row for row in rows if key in row]
    return [row["step"] for row in found], [row[key] for row in found]


def held_out(rows: Rows) -> dict[str, str]:
    """Return the logged keys of the accuracy on held-out pairs, each with the name it is drawn under."""
    keys = dict.fromkeys(key for row in rows for key in row if key.startswith("eval_") and key.endswith(_ACCURACY))
    names = {key: key.removeprefix("eval_").removesuffix(_ACCURACY).rstrip("_") for key in keys}
    return {key: f"held out, {name}" if name else "held out" for key, name in names.items()}


def draw(rows: Rows) -> Figure | None:
    """Return beta, accuracy, reward and KL, each over steps, as far as they were logged; None where none was."""
    panels = [panel for panel in (_beta, _accuracy, _reward, _kl) if panel(None, rows)]
    if not panels:
        return None
    height = 2.7 * len(panels) + _LABEL
    figure = Figure(figsize=(4.6, height), dpi=130, layout="constrained")  # not pyplot's: threads draw at a time
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - _LABEL / height))
    every_axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axes, panel in zip(every_axes, panels, strict=True):
        panel(axes, rows)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.legend(fontsize=7.5, loc="best")
    every_axes[-1].set_xlabel("step")
    return figure


def _beta(axes: Axes | None, rows: Rows) -> bool:
    """Draw beta's mean, its band and its means by the sign of the margin; return whether there is beta to draw."""
    steps, mean = series(rows, "beta/mean")
    if axes is None or not steps:
        return bool(steps)
    low, high, name = band([row for row in rows if "beta/mean" in row])
    if name:
        axes.fill_between(steps, low, high, color=_BLUE, alpha=0.18, linewidth=0, label=name)
    axes.plot(steps, mean, color=_BLUE, label="mean", **_mark(steps))
    for key, color, name in (
        ("beta/mean_positive_margin", _GREEN, "mean where margin > 0"),
        ("beta/mean_negative_margin", _RED, "mean where margin < 0"),
    ):
        places, values = series(rows, key)
        if places:
            axes.plot(places, values, color=color, linewidth=1, linestyle="--", label=name, **_mark(places))
    axes.set_ylabel("beta")
    axes.ticklabel_format(axis="y", useOffset=False)
    return True


def band(rows: Rows) -> tuple[list[float], list[float], str]:
    """Return the lower and the upper edge of beta's band and its name; "" where rows have neither edges nor spread."""
    if all("beta/q10" in row and "beta/q90" in row for row in rows):
        return [row["beta/q10"] for row in rows], [row["beta/q90"] for row in rows], "10 % to 90 %"
    if all("beta/std" in row for row in rows):  # rollouts, and those mixed with preferences
        pairs = [(row["beta/mean"], row["beta/std"]) for row in rows]
        return [mean - std for mean, std in pairs], [mean + std for mean, std in pairs], "mean ± standard deviation"
    return [], [], ""


def _accuracy(axes: Axes | None, rows: Rows) -> bool:
    """Draw the share of pairs with a positive margin, in training and held out; return whether there is one."""
    steps, values = series(rows, _ACCURACY)
    evaluated = held_out(rows)
    if axes is None:
        return bool(steps or evaluated)
    if steps:
        axes.plot(steps, values, color=_GREY, linewidth=1, label="training batches", **_mark(steps))
    for number, (key, name) in enumerate(evaluated.items()):
        axes.plot(*series(rows, key), color=(_BLUE, _GREEN, _RED)[number % 3], marker="o", label=name)
    axes.axhline(0.5, color="black", linewidth=0.6)
    axes.set_ylabel("accuracy")
    axes.set_ylim(-0.03, 1.03)
    return True


def _reward(axes: Axes | None, rows: Rows) -> bool:
    """Draw the mean reward of rollouts, in training and held out; return whether there is one."""
    return _plain(axes, rows, "reward", {"rewards/mean": "rollouts", "eval_rewards/mean": "held out"})


def _kl(axes: Axes | None, rows: Rows) -> bool:
    """Draw the KL to the reference per answer; return whether there is one."""
    keys = {"kl/sequence": "rollouts", "eval_kl/sequence": "held out"}
    return _plain(axes, rows, "KL per answer (nats)", keys)


def _plain(axes: Axes | None, rows: Rows, title: str, keys: Mapping[str, str]) -> bool:
    found = {key: name for key, name in keys.items() if series(rows, key)[0]}
    if axes is not None:
        for (key, name), color in zip(found.items(), (_GREY, _BLUE), strict=False):
            steps, values = series(rows, key)
            axes.plot(
                steps, values, color=color, marker="o" if color == _BLUE else _mark(steps).get("marker"), label=name
            )
        axes.set_ylabel(title)
    return bool(found)


def _mark(steps: Sequence[float]) -> dict[str, str]:
    """Return a dot for a line of one point, which would not be seen."""
    return {"marker": "."} if len(steps) < 3 else {}
