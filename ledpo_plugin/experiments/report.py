"""The report of an experiment: `report.html`, which needs nothing else, `report.md`, and `results.json`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from .blocks import Paragraph, Section
from .collected import FINISHED, Collected, collect
from .files import read_json, write_text
from .plain_text import fenced, markdown, visible
from .sections import sections
from .store import REPORT, RESULT, study_states
from .summary import summarise

HTML, MARKDOWN, NUMBERS = REPORT, "report.md", "results.json"


def write_report(
    results: Path, definition: Mapping[str, Any], states: Sequence[Mapping[str, Any]], *, samples: bool = True
) -> list[Path]:
    """Write the report of whatever is finished into the results folder, and return the files.

    Args:
        results: the folder of results.
        definition: the experiment's, with the settings of the one profile under `profile`, its name under
            `profile_name`.
        states: per planned run `variant`, `seed`, `phase` (finished, failed, pending, training, measuring), `folder`,
            `error` and `log_tail`.
        samples: whether prompts and answers are shown; False for a report that goes where the data may not.

    Raises:
        KeyError: the definition lacks what every experiment has (validation would have said so).
        OSError: the folder cannot be written; an older report is untouched.
    """
    found = collect(results, definition, states)
    summary = summarise(found) | {"study": study_figures(found)}
    page = {
        "title": str(definition.get("title") or definition.get("name") or "Experiment"),
        "name": str(definition.get("name") or ""),
        "profile": str(definition.get("profile_name") or ""),
        "question": str(definition.get("question") or ""),
        "date": (summary["date"] or "")[:10] or "no run has finished",
        "sections": [*study_sections(found), *sections(found, summary, samples)],
    }
    texts = {
        HTML: _environment(html=True).get_template("report.html.j2").render(page),
        MARKDOWN: _environment(html=False).get_template("report.md.j2").render(page),
        NUMBERS: json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
    }
    for name, text in texts.items():
        write_text(Path(results) / name, text)
    return [Path(results) / name for name in texts]


def study_figures(found: Collected) -> dict[str, Any] | None:
    """Return every figure of the experiment's study; None where it has none, or did not come to its end."""
    study = found.profile.get("study")
    if not study:
        return None
    from eval_harness.studies import study_of

    return read_json(found.folder / "study" / study_of(study["kind"]).LAST / "all" / RESULT)


def study_sections(found: Collected) -> list[Section]:
    """Return what the report shows of the experiment's study; nothing where it has none."""
    study = found.profile.get("study")
    if not study:
        return []
    from eval_harness.studies import study_of

    open_parts = {name: state for name, state in study_states(found.folder).items() if state["phase"] != FINISHED}
    notices = [
        Paragraph(f"Of the study, {name} is not finished: {state.get('error') or state['phase']}.", "warning")
        for name, state in open_parts.items()
    ]
    if study.get("note"):
        notices.insert(0, Paragraph(str(study["note"]), "warning"))
    return [
        *([Section("study-open", "Before you read", notices)] if notices else []),
        *study_of(study["kind"]).sections(found),
    ]


def _environment(*, html: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("ledpo_plugin.experiments"),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"visible": visible, "md": markdown, "fenced": fenced, "svg": Markup}
    return environment
