"""LlamaBoard's tab "Experiments": find, start, watch, stop and resume them, read reports, ask for beta(x)."""

import hashlib
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from ledpo_plugin.experiments.overview import Sketch, Standing, sketch, standing
from ledpo_plugin.experiments.store import REPORT

from . import experiments_actions as actions
from . import experiments_view as view
from .experiments_texts import EXPERIMENT_LOCALES

__all__ = ["EXPERIMENT_LOCALES", "create_experiments_tab"]

FOLDER = "yaml_recipes"
EVERY = 2.0  # seconds between looks at the chosen experiment


def create_experiments_tab(engine: Any) -> dict[str, Component]:
    """Build the tab in the present gradio context; return its elements by the names in `EXPERIMENT_LOCALES`.

    Args:
        engine: LlamaBoard's, whose manager holds `top.lang`.
    """
    lang = engine.manager.get_elem_by_id("top.lang")
    with gr.Row():
        folder = gr.Textbox(value=FOLDER, scale=5, elem_id="exp_folder")
        find_btn = gr.Button(scale=1, elem_id="exp_find")
    listing = gr.HTML(elem_id="exp_list", padding=False)
    with gr.Row():
        name = gr.Dropdown(choices=[], value=None, scale=3, elem_id="exp_name")
        profile = gr.Dropdown(choices=[], value=None, scale=2, elem_id="exp_profile")
    with gr.Row():
        start_btn = gr.Button(variant="primary", interactive=False, elem_id="exp_start")
        stop_btn = gr.Button(variant="stop", interactive=False, elem_id="exp_stop")
        resume_btn = gr.Button(interactive=False, elem_id="exp_resume")
    message = gr.Textbox(interactive=False, lines=1, max_lines=30, elem_id="exp_message")
    status = gr.HTML(elem_id="exp_status", padding=False)
    log = gr.Textbox(interactive=False, lines=4, max_lines=14, autoscroll=True, visible=False, elem_id="exp_log")
    with gr.Row():
        report_btn = gr.Button(interactive=False, elem_id="exp_report_show")
        report_close_btn = gr.Button(visible=False, elem_id="exp_report_close")
    report = gr.HTML(elem_id="exp_report", padding=False)
    with gr.Accordion(open=False, elem_id="exp_beta") as beta_tab:
        with gr.Row():
            beta_run = gr.Dropdown(choices=[], value=None, allow_custom_value=True, scale=2, elem_id="exp_beta_run")
            beta_prompt = gr.Textbox(lines=3, scale=3, elem_id="exp_beta_prompt")
        beta_btn = gr.Button(elem_id="exp_beta_compute")
        beta_result = gr.Textbox(interactive=False, max_lines=20, elem_id="exp_beta_result")
    timer = gr.Timer(EVERY, active=False)
    seen = gr.State("")  # what the page shows of the chosen experiment, so that only changes are sent
    searched = gr.State(FOLDER)  # the folder that was last searched, while the user may be typing another

    def look_at(
        words: str | None, where: str | None, path: str | None, which: str | None, shown: str | None
    ) -> dict[Component, Any]:
        if not path or not which:
            return {seen: ""}
        one = sketch(Path(path))
        how = standing(one.results(which))
        said = actions.log_of(one.results(which))
        page = view.status_html(one, which, how, words)
        runs = actions.trained_runs(how)
        has_report = (one.results(which) / REPORT).is_file()
        digest = hashlib.sha256(repr((page, said, runs, has_report)).encode(errors="replace")).hexdigest()
        if digest == shown:
            return {seen: digest}
        sketches, wrong = actions.found_in(where or "")
        return {
            seen: digest,
            **({} if wrong else {listing: view.list_html(sketches, where or "", words)}),
            status: page,
            log: gr.Textbox(value=said, visible=bool(said)),
            beta_run: gr.Dropdown(choices=runs),
            **_buttons(one, how, has_report),
        }

    def _buttons(one: Sketch, how: Standing, has_report: bool) -> dict[Component, Any]:
        begun = how.found is not None or how.state == "ended_early"
        return {
            start_btn: gr.Button(interactive=not how.present and not begun and not one.error),
            stop_btn: gr.Button(interactive=bool(how.present)),
            resume_btn: gr.Button(interactive=not how.present and begun and how.state != "unreadable"),
            report_btn: gr.Button(interactive=has_report),
        }

    def find(words: str | None, where: str | None, chosen: str | None, which: str | None) -> dict[Component, Any]:
        """Show the experiments of a folder; keep the choice if it is among them, else choose what is at work."""
        sketches, wrong = actions.found_in(where or "")
        paths = [str(one.folder) for one in sketches]
        if chosen not in paths:
            chosen, which = _foremost(sketches)
        shown = {
            searched: where,
            listing: view.text_html(wrong) if wrong else view.list_html(sketches, where or "", words),
            name: gr.Dropdown(choices=list(zip(_names(sketches), paths, strict=True)), value=chosen),
            timer: gr.Timer(active=chosen is not None),
        }
        return shown | choose(words, where, chosen, which)

    def choose(words: str | None, where: str | None, chosen: str | None, which: str | None) -> dict[Component, Any]:
        profiles = list(sketch(Path(chosen)).planned) if chosen else []
        which = which if which in profiles else next(iter(profiles), None)
        shown: dict[Component, Any] = {
            profile: gr.Dropdown(choices=profiles, value=which),
            report: "",
            report_close_btn: gr.Button(visible=False),
        }
        if which is None:
            off = {button: gr.Button(interactive=False) for button in (start_btn, stop_btn, resume_btn, report_btn)}
            error = view.text_html(sketch(Path(chosen)).error) if chosen else ""
            empty = {log: gr.Textbox(value="", visible=False), beta_run: gr.Dropdown(choices=[]), seen: ""}
            return shown | off | empty | {status: error}
        return shown | look_at(words, where, chosen, which, None)

    def begin(words: str | None, where: str | None, path: str | None, which: str | None) -> dict[Component, Any]:
        return {message: actions.start(path, which, words), **look_at(words, where, path, which, None)}

    def end(words: str | None, where: str | None, path: str | None, which: str | None) -> dict[Component, Any]:
        return {message: actions.stop(path, which, words), **look_at(words, where, path, which, None)}

    def show_report(words: str | None, path: str | None, which: str | None) -> tuple[Any, Any]:
        if not path or not which:
            return "", gr.Button(visible=False)
        return view.report_html(sketch(Path(path)).results(which), words), gr.Button(visible=True)

    choice = [lang, searched, name, profile]
    search = [lang, folder, name, profile]
    looks = [seen, listing, status, log, beta_run, start_btn, stop_btn, resume_btn, report_btn]
    choices = [profile, report, report_close_btn, *looks]
    everything = [searched, name, timer, *choices]

    gr.on([find_btn.click, folder.submit], find, search, everything, api_name=False)
    # The host sets the language when the page has loaded, and the user whenever another one is chosen.
    lang.change(find, search, everything, api_name=False, show_progress="hidden")
    gr.on([name.input, profile.input], choose, choice, choices, api_name=False)
    gr.on([name.input, profile.input], lambda: None, None, [beta_run], api_name=False, queue=False)
    gr.on([start_btn.click, resume_btn.click], begin, choice, [message, *looks], api_name=False)
    stop_btn.click(end, choice, [message, *looks], api_name=False)
    timer.tick(look_at, [*choice, seen], looks, api_name=False, show_progress="hidden")
    report_btn.click(show_report, [lang, name, profile], [report, report_close_btn], api_name=False)
    report_close_btn.click(
        lambda: ("", gr.Button(visible=False)), None, [report, report_close_btn], api_name=False, queue=False
    )
    beta_btn.click(actions.beta_of, [beta_run, beta_prompt, lang], [beta_result], api_name=False)

    return {
        "exp_folder": folder,
        "exp_find_btn": find_btn,
        "exp_list": listing,
        "exp_name": name,
        "exp_profile": profile,
        "exp_start_btn": start_btn,
        "exp_stop_btn": stop_btn,
        "exp_resume_btn": resume_btn,
        "exp_message": message,
        "exp_status": status,
        "exp_log": log,
        "exp_report_btn": report_btn,
        "exp_report_close_btn": report_close_btn,
        "exp_report": report,
        "exp_beta_tab": beta_tab,
        "exp_beta_run": beta_run,
        "exp_beta_prompt": beta_prompt,
        "exp_beta_btn": beta_btn,
        "exp_beta_result": beta_result,
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
