"""How far an experiment is: a line for each run at work, and the time that is left."""

import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from ledpo_plugin.common.files import read_lines
from ledpo_plugin.experiments.definition.plan import TRAIN, Run
from ledpo_plugin.experiments.results.store import state_of

EVERY = 30.0  # seconds between lines where the output is no terminal


def steps_done(folder: Path) -> int:
    """Return the optimizer steps that a run's training has logged, in all of its phases."""
    logs = [read_lines(path)[0] for path in folder.glob(f"**/{TRAIN}/trainer_log.jsonl")]
    return sum(max((int(row.get("current_steps") or 0) for row in rows), default=0) for rows in logs)


def seconds_of(state: Mapping[str, Any]) -> float | None:
    """Return how long a finished run took from its start to its end; None where the state does not say."""
    try:
        span = datetime.fromisoformat(state["changed"]) - datetime.fromisoformat(state["started"])
    except (KeyError, TypeError, ValueError):
        return None
    return span.total_seconds()


def time_left(states: Sequence[Mapping[str, Any]], slots: int, guess: float | None) -> float | None:
    """Return the seconds until all runs are through, from what finished runs took, else from `guess`; None: unknown."""
    took = [seconds for state in states if state["phase"] == "finished" and (seconds := seconds_of(state))]
    each = sum(took) / len(took) if took else guess
    if each is None:
        return None
    open_runs = [state for state in states if state["phase"] not in ("finished", "failed")]
    at_work = [state for state in open_runs if state["phase"] in ("training", "measuring")]
    spent = sum(min(each, _age(state)) for state in at_work)
    return max(0.0, each * len(open_runs) - spent) / max(1, min(slots, len(open_runs)))


def _age(state: Mapping[str, Any]) -> float:
    try:
        return time.time() - datetime.fromisoformat(state["started"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return 0.0


def duration(seconds: float | None) -> str:
    """Return a duration for people: 45 s, 12 min, 2 h 05 min."""
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def line_of(run: Run, state: Mapping[str, Any]) -> str:
    """Return one line on a run."""
    phase = state["phase"]
    text = f"{run.variant:<24} seed {run.seed:<4} {phase:<12}"
    if phase in ("training", "interrupted"):
        total = state.get("total_steps")
        text += f" step {steps_done(run.folder)}" + (f" of {total}" if total else "")
        text += f", phase {state['of_phase']}" if state.get("of_phase") else ""
    elif phase == "finished":
        text += f" {duration(seconds_of(state))}"
    elif phase == "failed":
        text += f" {str(state.get('error') or 'see its worker.log').splitlines()[0][:100]}"
    return text.rstrip()


def summary(states: Sequence[Mapping[str, Any]], slots: int, guess: float | None) -> str:
    """Return one line on all runs."""
    count = {phase: sum(state["phase"] == phase for state in states) for phase in ("finished", "failed")}
    failed = f", {count['failed']} failed" if count["failed"] else ""
    left = time_left(states, slots, guess)
    return f"{count['finished']} of {len(states)} runs finished{failed}; time left about {duration(left)}"


class Progress:
    """Shows how far the runs are: redrawn in place on a terminal, else a line at each event and now and then."""

    def __init__(self, runs: Sequence[Run], slots: int, guess: float | None, out: TextIO | None = None):
        self.runs, self.slots, self.guess = list(runs), slots, guess
        self.out = out or sys.stdout
        self.live = self.out.isatty()
        self.drawn, self.last = 0, 0.0

    def note(self, text: str) -> None:
        """Say something that stays."""
        self._clear()
        print(text, file=self.out, flush=True)

    def show(self, at_work: set[str], *, now: bool = False) -> None:
        """Show the runs named in `at_work`, and the sum of all."""
        every = 1.0 if self.live else EVERY
        if not now and time.monotonic() - self.last < every:
            return
        self.last = time.monotonic()
        states = [state_of(run.folder) for run in self.runs]
        lines = [line_of(run, state) for run, state in zip(self.runs, states, strict=True) if run.name in at_work]
        lines.append(summary(states, self.slots, self.guess))
        self._clear()
        print("\n".join(lines), file=self.out, flush=True)
        self.drawn = len(lines) if self.live else 0

    def _clear(self) -> None:
        if self.drawn:
            print(f"\x1b[{self.drawn}F\x1b[J", end="", file=self.out)
            self.drawn = 0
