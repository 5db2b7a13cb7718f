"""The report of an experiment: `report.html`, which needs nothing else, `report.md` with `plots/`, `results.json`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ledpo_plugin.common.files import packed_json, read_json, write_text
from ledpo_plugin.common.plain_text import fenced, markdown, visible
from ledpo_plugin.experiments.report.blocks import Paragraph, Section
from ledpo_plugin.experiments.report.earlier import earlier
from ledpo_plugin.experiments.report.from_markdown import PLOTS
from ledpo_plugin.experiments.report.per_item import LOST
from ledpo_plugin.experiments.report.plots import Plot
from ledpo_plugin.experiments.report.reuse import other_results
from ledpo_plugin.experiments.report.sections import sections
from ledpo_plugin.experiments.report.summary import renewed, summarise
from ledpo_plugin.experiments.results.collected import FINISHED, Collected, collect
from ledpo_plugin.experiments.results.store import REPORT, RESULT, study_states
from ledpo_plugin.experiments.studies.kinds import study_of

HTML, MARKDOWN, NUMBERS = REPORT, "report.md", "results.json"


def write_report(
    results: Path,
    definition: Mapping[str, Any],
    states: Sequence[Mapping[str, Any]],
    *,
    samples: bool = True,
    beside: Sequence[Path] = (),
) -> list[Path]:
    """Write the report of whatever is finished into the results folder, and return the files.

    Args:
        results: the folder of results.
        definition: the experiment's, with the settings of the one profile under `profile`, its name under
            `profile_name`.
        states: per planned run `variant`, `seed`, `phase` (finished, failed, pending, training, measuring), `folder`,
            `error` and `log_tail`.
        samples: whether prompts and answers are shown; False for a report that goes where the data may not.
        beside: further folders with reports in which some of these runs may stand as well; see `reuse.other_results`.

    Raises:
        KeyError: the definition lacks what every experiment has (validation would have said so).
        ValueError: one of `beside` holds no report.
        OSError: the folder cannot be written; an older report is untouched.
    """
    found = collect(results, definition, states)
    title = str(definition.get("title") or definition.get("name") or "Experiment")
    summary = {"title": title, **summarise(found, other_results(Path(results), beside))}
    values = summary.pop("per_item")
    summary |= {"study": study_figures(found), "per_item": values}
    return _write(Path(results), summary, [*study_sections(found), *sections(found, summary, samples)])


def rewrite_report(results: Path, *, samples: bool = True, beside: Sequence[Path] = ()) -> list[Path]:
    """Write the report anew from the results.json that an earlier one left, and return the files.

    What follows from numbers is concluded and drawn anew. What only the runs' own files tell (set-up, texts, recipes,
    the sections of a study) is kept from the earlier report.md and, where it is there, report.html.

    Args:
        results: the folder; it needs no runs.
        samples, beside: as of `write_report`.

    Raises:
        ValueError: results.json is damaged or of a later version, or the other two files are not of one report.
        OSError: the folder cannot be written; the older report is untouched.
    """
    kept = read_json(Path(results) / NUMBERS)
    if not isinstance(kept, dict):
        raise ValueError(f"{Path(results) / NUMBERS} cannot be read. Take it from where the experiment was run.")
    try:
        summary = renewed(kept, other_results(Path(results), beside))
    except ValueError as error:
        raise ValueError(f"{Path(results) / NUMBERS} cannot be used. {error}") from None
    fresh = sections(None, summary, samples)
    known = {section.name for section in fresh}
    title, old = earlier(
        Path(results) / HTML, Path(results) / MARKDOWN, {section.title: section.name for section in fresh}
    )
    summary.setdefault("title", title or str(summary["experiment"]))
    of_study = [section for name, section in old.items() if name not in known]
    return _write(Path(results), summary, of_study + [s if s.blocks else old[s.name] for s in fresh
                                                      if s.blocks or s.name in old])  # fmt: skip


def _write(results: Path, summary: Mapping[str, Any], made: Sequence[Section]) -> list[Path]:
    page = {
        "title": summary["title"],
        "name": str(summary["experiment"] or ""),
        "profile": str(summary["profile"] or ""),
        "question": str(summary["question"] or ""),
        "date": (summary["date"] or "")[:10] or "no run has finished",
        "sections": made,
        "folder_of_plots": PLOTS,
    }
    texts = {
        HTML: _environment(html=True).get_template("report.html.j2").render(page),
        MARKDOWN: _environment(html=False).get_template("report.md.j2").render(page),
        NUMBERS: numbers_text(summary),
    }
    plots = {f"{PLOTS}/{plot.file}": plot.svg for plot in _plots(made)}
    for name, text in {**plots, **texts}.items():
        write_text(results / name, text)
    for file in (results / PLOTS).glob("*.svg"):  # of an earlier report
        if f"]({PLOTS}/{file.name})" not in texts[MARKDOWN]:
            file.unlink()
    return [results / name for name in texts]


def _plots(made: Sequence[Section]) -> list[Plot]:
    return [plot for section in made for block in section.blocks if block.kind == "plots" for plot in block.plots]


def numbers_text(summary: Mapping[str, Any]) -> str:
    """Return the content of results.json: indented to be read, but for values per item, which are packed."""
    study = summary.get("study")
    packed = {_PACKED[0]: summary.get("per_item")} | ({_PACKED[1]: study["per_item"]} if _has_items(study) else {})
    shown = {**summary, "per_item": _PACKED[0]}
    if _has_items(study):
        shown["study"] = {**study, "per_item": _PACKED[1]}
    text = json.dumps(shown, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    for mark, value in packed.items():
        text = text.replace(json.dumps(mark, ensure_ascii=False), packed_json(value), 1)
    return text


_PACKED = ("\ue000 values per item \ue000", "\ue000 values per item of the study \ue000")  # of no text that is shown


def _has_items(study: Any) -> bool:
    return isinstance(study, Mapping) and bool(study.get("per_item"))


def study_figures(found: Collected) -> dict[str, Any] | None:
    """Return every figure of the experiment's study; None where it has none, or did not come to its end."""
    study = found.profile.get("study")
    if not study:
        return None
    return read_json(found.folder / "study" / study_of(study["kind"]).LAST / "all" / RESULT)


def study_sections(found: Collected) -> list[Section]:
    """Return what the report shows of the experiment's study; nothing where it has none."""
    study = found.profile.get("study")
    if not study:
        return []
    open_parts = {name: state for name, state in study_states(found.folder).items() if state["phase"] != FINISHED}
    notices = [
        Paragraph(f"Of the study, {name} is not finished: {state.get('error') or state['phase']}.", "warning")
        for name, state in open_parts.items()
    ]
    figures = study_figures(found)
    if figures is not None and not _has_items(figures):
        notices.append(Paragraph(LOST, "warning"))
    if study.get("note"):
        notices.insert(0, Paragraph(str(study["note"]), "warning"))
    return [
        *([Section("study-open", "Before you read", notices)] if notices else []),
        *study_of(study["kind"]).sections(found),
    ]


def _environment(*, html: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("ledpo_plugin.experiments.report"),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"visible": visible, "md": markdown, "fenced": fenced, "svg": Markup}
    return environment
