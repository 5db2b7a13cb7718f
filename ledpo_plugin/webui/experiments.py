"""LlamaBoard's tab "Experiments": its elements, and what listens to which of them.

What the listeners do is in `experiments_pages`, which is imported when the first of them is called: the UI starts
without the code that runs experiments.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import gradio as gr
from gradio.components import Component

from .experiments_texts import EXPERIMENT_LOCALES

__all__ = ["EXPERIMENT_LOCALES", "create_experiments_tab"]

FOLDER = "yaml_recipes"
EVERY = 2.0  # seconds between looks at the chosen experiment
NAMELESS = ("timer", "seen", "searched")  # elements without words, of which LlamaBoard's manager is not told


def create_experiments_tab(engine: Any) -> dict[str, Component]:
    """Build the tab in the present gradio context; return its elements by the names in `EXPERIMENT_LOCALES`.

    Args:
        engine: LlamaBoard's, whose manager holds `top.lang`.
    """
    at = _laid_out()
    _listen(engine.manager.get_elem_by_id("top.lang"), at)
    return {f"exp_{name}": element for name, element in vars(at).items() if name not in NAMELESS}


def _laid_out() -> SimpleNamespace:
    at = SimpleNamespace()
    with gr.Row():
        at.folder = gr.Textbox(value=FOLDER, scale=5, elem_id="exp_folder")
        at.find_btn = gr.Button(scale=1, elem_id="exp_find")
    at.list = gr.HTML(elem_id="exp_list", padding=False)
    with gr.Row():
        at.name = gr.Dropdown(choices=[], value=None, scale=3, elem_id="exp_name")
        at.profile = gr.Dropdown(choices=[], value=None, scale=2, elem_id="exp_profile")
    with gr.Row():
        at.start_btn = gr.Button(variant="primary", interactive=False, elem_id="exp_start")
        at.stop_btn = gr.Button(variant="stop", interactive=False, elem_id="exp_stop")
        at.resume_btn = gr.Button(interactive=False, elem_id="exp_resume")
    at.message = gr.Textbox(interactive=False, lines=1, max_lines=30, elem_id="exp_message")
    at.status = gr.HTML(elem_id="exp_status", padding=False)
    at.log = gr.Textbox(interactive=False, lines=4, max_lines=14, autoscroll=True, visible=False, elem_id="exp_log")
    with gr.Row():
        at.report_btn = gr.Button(interactive=False, elem_id="exp_report_show")
        at.report_close_btn = gr.Button(visible=False, elem_id="exp_report_close")
    at.report = gr.HTML(elem_id="exp_report", padding=False)
    with gr.Accordion(open=False, elem_id="exp_beta") as at.beta_tab:
        with gr.Row():
            at.beta_run = gr.Dropdown(choices=[], value=None, allow_custom_value=True, scale=2, elem_id="exp_beta_run")
            at.beta_prompt = gr.Textbox(lines=3, scale=3, elem_id="exp_beta_prompt")
        at.beta_btn = gr.Button(elem_id="exp_beta_compute")
        at.beta_result = gr.Textbox(interactive=False, max_lines=20, elem_id="exp_beta_result")
    at.timer = gr.Timer(EVERY, active=False)
    at.seen = gr.State("")  # what the page shows of the chosen experiment, so that only changes are sent
    at.searched = gr.State(FOLDER)  # the folder that was last searched, while the user may be typing another
    return at


def _listen(lang: Component, at: SimpleNamespace) -> None:
    def later(name: str) -> Callable[..., Any]:
        def listener(*values: Any) -> Any:
            from . import experiments_pages

            return getattr(experiments_pages, name)(at, *values)

        return listener

    choice = [lang, at.searched, at.name, at.profile]
    search = [lang, at.folder, at.name, at.profile]
    buttons = [at.start_btn, at.stop_btn, at.resume_btn, at.report_btn]
    looks = [at.seen, at.list, at.status, at.log, at.beta_run, *buttons]
    choices = [at.profile, at.report, at.report_close_btn, *looks]
    everything = [at.searched, at.name, at.timer, *choices]
    report = [at.report, at.report_close_btn]

    gr.on([at.find_btn.click, at.folder.submit], later("find"), search, everything, api_name=False)
    # The host sets the language when the page has loaded, and the user whenever another one is chosen.
    lang.change(later("find"), search, everything, api_name=False, show_progress="hidden")
    chosen = [at.name.input, at.profile.input]
    gr.on(chosen, later("choose"), choice, choices, api_name=False)
    gr.on(chosen, lambda: None, None, [at.beta_run], api_name=False, queue=False)
    begins = [at.start_btn.click, at.resume_btn.click]
    gr.on(begins, later("begin"), choice, [at.message, *looks], api_name=False)
    at.stop_btn.click(later("end"), choice, [at.message, *looks], api_name=False)
    at.timer.tick(later("look_at"), [*choice, at.seen], looks, api_name=False, show_progress="hidden")
    at.report_btn.click(later("show_report"), [lang, at.name, at.profile], report, api_name=False)
    at.report_close_btn.click(lambda: ("", gr.Button(visible=False)), None, report, api_name=False, queue=False)
    asked = [at.beta_run, at.beta_prompt, lang]
    at.beta_btn.click(later("beta_of"), asked, [at.beta_result], api_name=False)
