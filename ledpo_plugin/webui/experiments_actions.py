"""What the buttons of the tab "Experiments" do, as functions of plain values: each returns what is to be said."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from ledpo_plugin.common.files import tail
from ledpo_plugin.common.plain_text import visible
from ledpo_plugin.experiments.definition.plan import TRAIN
from ledpo_plugin.experiments.results.store import BACKGROUND_LOG
from ledpo_plugin.experiments.running import background
from ledpo_plugin.experiments.running.overview import Sketch, find_experiments, sketch

from .experiments_texts import say

BETA_SECONDS = 600
LOG_LINES = 40
# What `ledpo` reports as a message instead of a traceback; here it is a text in the page.
MENDABLE = (ValueError, OSError, KeyError, RuntimeError)


def message_of(error: BaseException) -> str:
    """Return an error as `ledpo` would print it."""
    return str(error.args[0] if isinstance(error, KeyError) and error.args else error)


def found_in(folder: str) -> tuple[list[Sketch], str]:
    """Return the experiments in a folder, and what is wrong with the folder."""
    try:
        return [sketch(path) for path in find_experiments(Path(folder.strip() or "."))], ""
    except MENDABLE as error:
        return [], message_of(error)


def start(folder: str | None, profile: str | None, lang: str | None) -> str:
    """Start, or go on with, what is open of an experiment; return what happened."""
    if not folder or not profile:
        return say("choose", lang)
    try:
        return say("started", lang, pid=background.start(Path(folder), profile).pid)
    except MENDABLE as error:
        return message_of(error)


def stop(folder: str | None, profile: str | None, lang: str | None) -> str:
    """Stop whatever is at work on an experiment; return what happened."""
    if not folder or not profile:
        return say("choose", lang)
    try:
        return say("stopped" if background.stop(sketch(Path(folder)).results(profile)) else "nothing_to_stop", lang)
    except MENDABLE as error:
        return message_of(error)


def log_of(results: Path) -> str:
    """Return the end of what the last `ledpo run` that was started here has said."""
    return visible("\n".join(tail(results / BACKGROUND_LOG, LOG_LINES)))


def trained_runs(how) -> list[tuple[str, str]]:
    """Return label and folder of every trained run of an experiment that beta(x) can be asked of."""
    if how.found is None:
        return []
    return [
        (visible(f"{how.found.label_of(run.variant)}, {run.seed}"), str(run.folder / TRAIN))
        for run in how.found.trained()
    ]


def beta_of(run: str | None, prompt: str | None, lang: str | None) -> str:
    """Return beta(x) of a prompt by a trained run, or what went wrong, as `ledpo beta` says it.

    In a process of its own: the UI stays responsive, and gets its memory back.
    """
    if not run or not run.strip():
        return say("no_run", lang)
    if not prompt or not prompt.strip():
        return say("no_prompt", lang)
    with tempfile.TemporaryDirectory(prefix="ledpo-beta-") as folder:
        asked = Path(folder) / "prompts.json"  # not on the command line, which others can see and which is bounded
        asked.write_text(json.dumps([prompt]), encoding="utf-8")
        command = [sys.executable, "-P", "-m", "ledpo_plugin.cli", "beta", "--jsonl", f"--prompts={asked}"]
        try:
            done = subprocess.run(
                [*command, "--", run.strip()],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=BETA_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return say("too_long", lang, seconds=BETA_SECONDS)
        except (OSError, ValueError) as error:  # a null byte in the name of the run, no memory
            return message_of(error)
    if done.returncode == 0:
        try:
            row = json.loads(done.stdout.strip().splitlines()[-1])
        except (ValueError, IndexError):
            return visible(done.stdout[-2000:])
        beta = f"{row['beta']:.6g}"
        if "prompt_tokens" in row:
            return say("beta", lang, beta=beta, tokens=row["prompt_tokens"])
        return say("beta_constant", lang, beta=beta)
    return visible(_said(done.stderr) or f"ledpo beta: exit status {done.returncode}")


def _said(stderr: str) -> str:
    """Return ledpo's own message, without the warnings of libraries before it; else the end of what was written."""
    place = stderr.rfind("ledpo beta: ")
    return stderr[place + len("ledpo beta: ") :].strip() if place >= 0 else stderr[-2000:].strip()
