"""What the tab "Experiments" shows as HTML. Every name and message in it is somebody else's text: all is escaped."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from ledpo_plugin.common.plain_text import shortened, visible
from ledpo_plugin.experiments.definition.plan import Run
from ledpo_plugin.experiments.results.store import REPORT
from ledpo_plugin.experiments.running.overview import Sketch, Standing, standing
from ledpo_plugin.experiments.running.progress import duration, seconds_of, steps_done

from .experiments_texts import say

ERROR_LENGTH = 300  # characters of a run's error in the table
REPORT_MB = 20
# A report needs no script, no other host and no cookie of this page, and its frame gives it none, whoever wrote it.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'"
# With the base, a link to a place in the report leads there; without it, to LlamaBoard, whose address the frame has.
HEAD = f'<!DOCTYPE html><meta http-equiv="Content-Security-Policy" content="{POLICY}"><base href="about:srcdoc">'

STYLE = """
.ledpo-exp table { width: 100%; border-collapse: collapse; font-size: var(--text-md); }
.ledpo-exp table tr > * { text-align: start; padding: 4px 10px; vertical-align: top; overflow-wrap: anywhere;
  border: 0 solid var(--border-color-primary) !important; border-bottom-width: 1px !important; }
.ledpo-exp table, .ledpo-exp thead, .ledpo-exp tbody, .ledpo-exp tr { border: 0 !important; }
.ledpo-exp td.number { font-variant-numeric: tabular-nums; }
.ledpo-exp .state { white-space: nowrap; }
.ledpo-exp .state::before { content: ""; display: inline-block; width: .6em; height: .6em; border-radius: 50%;
  margin-inline-end: .5em; background: var(--neutral-400); }
.ledpo-exp .running::before, .ledpo-exp .training::before, .ledpo-exp .measuring::before { background: #2563eb; }
.ledpo-exp .finished::before { background: #16a34a; }
.ledpo-exp .failed::before, .ledpo-exp .unreadable::before, .ledpo-exp .ended_early::before { background: #dc2626; }
.ledpo-exp .interrupted::before { background: #d97706; }
.ledpo-exp .error { white-space: pre-wrap; }
.ledpo-exp .quiet { color: var(--body-text-color-subdued); }
.ledpo-exp iframe { width: 100%; height: 80vh; border: 1px solid var(--border-color-primary); background: #fff; }
"""

TEMPLATES = {
    "list": """
<div class="ledpo-exp"><style>{{ style|safe }}</style>
{% if rows %}<table>
<thead><tr><th>{{ say("experiment") }}</th><th>{{ say("title") }}</th><th>{{ say("profiles") }}</th></tr></thead>
<tbody>{% for sketch, profiles in rows %}
<tr><td>{{ sketch.name|visible }}</td>
<td>{{ sketch.title|visible }}{% if sketch.error %}<div class="error">{{ sketch.error|visible }}</div>{% endif %}</td>
<td>{% for profile, standing, text in profiles %}
<div><span class="state {{ standing.state }}">{{ profile|visible }}: {{ text }}</span></div>
{% endfor %}</td></tr>
{% endfor %}</tbody></table>
{% else %}<p class="quiet">{{ nothing|visible }}</p>{% endif %}
</div>""",
    "status": """
<div class="ledpo-exp" data-state="{{ standing.state }}">
<h3>{{ sketch.title|visible }}</h3>
<p class="quiet">{{ sketch.question|visible }}</p>
<p><span class="state {{ standing.state }}"><strong>{{ heading }}</strong></span>
{% for text in remarks %}<span class="quiet"> · {{ text|visible }}</span>{% endfor %}</p>
{% if standing.error %}<p class="error">{{ standing.error|visible }}</p>{% endif %}
{% if rows %}<table>
<thead><tr><th>{{ say("variant") }}</th><th>{{ say("seed") }}</th><th>{{ say("state") }}</th>
<th>{{ say("detail") }}</th></tr></thead>
<tbody>{% for name, seed, phase, detail in rows %}
<tr><td>{{ name|visible }}</td><td class="number">{{ seed }}</td>
<td><span class="state {{ phase }}">{{ say(phase) }}</span></td><td class="error">{{ detail|visible }}</td></tr>
{% endfor %}</tbody></table>{% endif %}
</div>""",
    "report": """
<div class="ledpo-exp"><p class="quiet">{{ caption|visible }}</p>
<iframe sandbox="" referrerpolicy="no-referrer" title="{{ caption|visible }}" srcdoc="{{ page }}"></iframe></div>""",
    "text": """<div class="ledpo-exp"><p>{{ text|visible }}</p></div>""",
}


def _render(name: str, lang: str | None, **facts: Any) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["visible"] = lambda text: visible(str(text))
    environment.globals["say"] = lambda word: say(word, lang)
    return environment.from_string(TEMPLATES[name]).render(facts)


def list_html(sketches: Sequence[Sketch], folder: str, lang: str | None) -> str:
    """Return a table of the experiments that were found, and how each stands under each of its profiles."""
    rows = []
    for one in sketches:
        stands = [(profile, standing(one.results(profile))) for profile in one.planned]
        rows.append((one, [(profile, how, _short(how, lang)) for profile, how in stands]))
    return _render("list", lang, rows=rows, style=STYLE, nothing=say("none_found", lang, folder=folder))


def status_html(one: Sketch, profile: str, how: Standing, lang: str | None) -> str:
    """Return how one experiment stands: all of it in a line, and a table of its runs."""
    remarks = [f"{one.results(profile)}"]
    rows: list[tuple[str, Any, str, str]] = []
    if how.found is None:
        variants, seeds = one.planned.get(profile, (0, 0))
        remarks.append(say("planned", lang, variants=variants, seeds=seeds, runs=variants * seeds))
    else:
        left = how.found.seconds_left()
        if how.present and left is not None:
            remarks.append(say("left", lang, time=duration(left)))
        pairs = zip(how.found.runs, how.found.states, strict=True)
        rows += [
            (how.found.label_of(run.variant), run.seed, state["phase"], _detail(run, state, lang))
            for run, state in pairs
        ]
        rows += [
            (_translated(name, lang), "", state["phase"], _error(state)) for name, state in how.found.further.items()
        ]
    if how.present:
        remarks.append(say("process", lang, pid=how.present.pid, host=how.present.host))
    if how.state == "interrupted":
        remarks.append(say("goes_on", lang))
    return _render("status", lang, sketch=one, standing=how, heading=_short(how, lang), remarks=remarks, rows=rows)


def _translated(part: str, lang: str | None) -> str:
    kind, separator, name = part.partition(": ")
    return f"{say('study', lang)}: {name}" if separator and kind == "study" else part


def _short(how: Standing, lang: str | None) -> str:
    text = say(how.state, lang)
    if how.found is None or not how.found.states:
        return text
    text += ", " + say("runs_finished", lang, finished=how.found.count("finished"), all=_all(how))
    failed = how.found.count("failed")
    return text + (", " + say("runs_failed", lang, failed=failed) if failed else "")


def _all(how: Standing) -> int:
    return len(how.found.states) + len(how.found.further)


def _detail(run: Run, state: Mapping[str, Any], lang: str | None) -> str:
    phase, total = state["phase"], state.get("total_steps")
    if phase in ("training", "interrupted"):
        step = steps_done(run.folder)
        return say("step_of", lang, step=step, total=total) if total else say("step", lang, step=step)
    if phase == "finished":
        seconds = seconds_of(state)
        return "" if seconds is None else duration(seconds)
    return _error(state)


def _error(state: Mapping[str, Any]) -> str:
    return shortened(str(state.get("error") or ""), ERROR_LENGTH) if state["phase"] == "failed" else ""


def report_html(results: Path, lang: str | None) -> str:
    """Return the report of a results folder in a frame in which nothing of it can act.

    The frame has no rights: no scripts, no forms, an origin of its own. A policy is put before whatever the file says,
    so that nothing is loaded from anywhere either.
    """
    path = results / REPORT
    try:
        facts = path.stat()
        if facts.st_size > REPORT_MB * 1e6:
            return text_html(say("report_too_large", lang, path=path, size=round(facts.st_size / 1e6)))
        text = path.read_bytes().decode("utf-8", errors="replace")
    except OSError:
        return text_html(say("no_report", lang))
    written = datetime.fromtimestamp(facts.st_mtime).astimezone().strftime("%Y-%m-%d %H:%M")
    return _render("report", lang, caption=say("report_of", lang, path=path, time=written), page=HEAD + text)


def text_html(text: str) -> str:
    """Return a text as a paragraph."""
    return _render("text", None, text=text)
