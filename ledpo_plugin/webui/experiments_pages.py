"""What the tab "Experiments" shows after each event: new values of its elements, from what is on the disk.

Every function takes the tab's elements first (`at`, see `experiments`), then the values that its listener sends.
"""

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr

from ledpo_plugin.experiments.results.store import REPORT
from ledpo_plugin.experiments.running.overview import Sketch, Standing, sketch, standing

from . import experiments_actions as actions
from . import experiments_view as view

Shown = dict[Any, Any]  # new values of elements


def find(at: SimpleNamespace, lang: str | None, where: str | None, path: str | None, profile: str | None) -> Shown:
    """Show the experiments of a folder; keep the choice if it is among them, else choose what is at work."""
    sketches, wrong = actions.found_in(where or "")
    paths = [str(one.folder) for one in sketches]
    if path not in paths:
        path, profile = _foremost(sketches)
    shown = {
        at.searched: where,
        at.list: view.text_html(wrong) if wrong else view.list_html(sketches, where or "", lang),
        at.name: gr.Dropdown(choices=list(zip(_names(sketches), paths, strict=True)), value=path),
        at.timer: gr.Timer(active=path is not None),
    }
    return shown | choose(at, lang, where, path, profile)


def choose(at: SimpleNamespace, lang: str | None, where: str | None, path: str | None, profile: str | None) -> Shown:
    """Show an experiment that was chosen, at its first profile if it has not the one that was chosen."""
    profiles = list(sketch(Path(path)).planned) if path else []
    profile = profile if profile in profiles else next(iter(profiles), None)
    shown: Shown = {
        at.profile: gr.Dropdown(choices=profiles, value=profile),
        at.report: "",
        at.report_close_btn: gr.Button(visible=False),
    }
    if profile is None:
        buttons = (at.start_btn, at.stop_btn, at.resume_btn, at.report_btn)
        off = {button: gr.Button(interactive=False) for button in buttons}
        error = view.text_html(sketch(Path(path)).error) if path else ""
        empty = {at.log: gr.Textbox(value="", visible=False), at.beta_run: gr.Dropdown(choices=[]), at.seen: ""}
        return shown | off | empty | {at.status: error}
    return shown | look_at(at, lang, where, path, profile)


def look_at(
    at: SimpleNamespace,
    lang: str | None,
    where: str | None,
    path: str | None,
    profile: str | None,
    seen: str | None = None,
) -> Shown:
    """Show how an experiment stands; nothing new where the page has `seen` just that."""
    if not path or not profile:
        return {at.seen: ""}
    one = sketch(Path(path))
    results = one.results(profile)
    how = standing(results)
    said = actions.log_of(results)
    page = view.status_html(one, profile, how, lang)
    runs = actions.trained_runs(how)
    has_report = (results / REPORT).is_file()
    digest = hashlib.sha256(repr((page, said, runs, has_report)).encode(errors="replace")).hexdigest()
    if digest == seen:
        return {at.seen: digest}
    sketches, wrong = actions.found_in(where or "")
    return {
        at.seen: digest,
        **({} if wrong else {at.list: view.list_html(sketches, where or "", lang)}),
        at.status: page,
        at.log: gr.Textbox(value=said, visible=bool(said)),
        at.beta_run: gr.Dropdown(choices=runs),
        **_buttons(at, one, how, has_report),
    }


def begin(at: SimpleNamespace, lang: str | None, where: str | None, path: str | None, profile: str | None) -> Shown:
    """Start or resume an experiment; show what happened."""
    return {at.message: actions.start(path, profile, lang), **look_at(at, lang, where, path, profile)}


def end(at: SimpleNamespace, lang: str | None, where: str | None, path: str | None, profile: str | None) -> Shown:
    """Stop an experiment; show what happened."""
    return {at.message: actions.stop(path, profile, lang), **look_at(at, lang, where, path, profile)}


def show_report(at: SimpleNamespace, lang: str | None, path: str | None, profile: str | None) -> Shown:
    """Show the report of an experiment."""
    if not path or not profile:
        return {at.report: "", at.report_close_btn: gr.Button(visible=False)}
    report = view.report_html(sketch(Path(path)).results(profile), lang)
    return {at.report: report, at.report_close_btn: gr.Button(visible=True)}


def beta_of(at: SimpleNamespace, run: str | None, prompt: str | None, lang: str | None) -> Shown:
    """Show beta(x) of a prompt by a trained run."""
    return {at.beta_result: actions.beta_of(run, prompt, lang)}


def _buttons(at: SimpleNamespace, one: Sketch, how: Standing, has_report: bool) -> Shown:
    begun = how.found is not None or how.state == "ended_early"
    return {
        at.start_btn: gr.Button(interactive=not how.present and not begun and not one.error),
        at.stop_btn: gr.Button(interactive=bool(how.present)),
        at.resume_btn: gr.Button(interactive=not how.present and begun and how.state != "unreadable"),
        at.report_btn: gr.Button(interactive=has_report),
    }


def _foremost(sketches: list[Sketch]) -> tuple[str | None, str | None]:
    """Return folder and profile of what a user will want to see first: what is at work, then what was broken off."""
    order = {"running": 0, "interrupted": 1, "ended_early": 2}
    stands = [(order.get(standing(one.results(p)).state, 3), one, p) for one in sketches for p in one.planned]
    if not stands:
        return (str(sketches[0].folder), None) if sketches else (None, None)
    _, one, profile = min(stands, key=lambda item: item[0])
    return str(one.folder), profile


def _names(sketches: list[Sketch]) -> list[str]:
    """Return what to call each experiment: its name, or its path where two have the same name."""
    names = [one.name for one in sketches]
    return [n if names.count(n) == 1 else str(one.folder) for n, one in zip(names, sketches, strict=True)]
