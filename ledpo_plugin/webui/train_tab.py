"""The train tab with the plugin's stages, their settings and their curves."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import gradio as gr
from gradio.context import Context

from ledpo_plugin.host import contract
from ledpo_plugin.stages import STAGES
from ledpo_plugin.webui.datasets import choices_for
from ledpo_plugin.webui.form import Form
from ledpo_plugin.webui.running import Running
from ledpo_plugin.webui.saved import keep_apart
from ledpo_plugin.webui.words import PREFIX, locales, text


class Extension:
    """What the plugin adds to one train tab.

    The accordion is made first, so that its widgets are among the inputs and outputs of the stock buttons, which the
    stock function connects: LlamaBoard then reads, saves and loads them as its own. Afterwards it is moved to its
    place. Made inside of the Blocks that the tab belongs to.
    """

    def __init__(self, engine: Any) -> None:
        self.engine, self.ui = engine, contract.webui_api()
        with gr.Column(visible=False) as self.nursery:  # where the elements stay if the stock tab has no place for them
            self.form = Form()
            self.viewer = gr.Plot(label=text("viewer", "en"), visible=False, elem_id="ledpo_viewer")
        self.running = Running(engine.runner, self.form, self.viewer)
        self.titles = {stage.title: name for name, stage in STAGES.items()}

    @property
    def elements(self) -> dict[str, Any]:
        """Return every added element by the name it has in the UI's manager."""
        return {**self.form.elements, f"{PREFIX}viewer": self.viewer}

    def build(self, original: Callable) -> dict[str, Any]:
        """Build the stock tab with the plugin's stages in its list and the form among its inputs."""
        self.ui.TRAINING_STAGES.update(self.titles)
        self.ui.LOCALES.update(locales())
        _follow_stages(self.ui)
        keep_apart(self.ui.runner)
        self.running.take_over()
        manager = self.engine.manager
        stock = manager.get_base_elems
        manager.get_base_elems = lambda: stock() | set(self.form.widgets.values())
        try:
            return original(self.engine)
        finally:
            del manager.get_base_elems  # the method of the class is there again

    def attach(self, elements: dict[str, Any]) -> None:
        """Put accordion and curves beside the stock tab's, and let them follow what is chosen there."""
        stages = self.ui.TRAINING_STAGES
        _draw_in(self.viewer, elements["loss_viewer"])
        self.form.connect(self.engine, elements, stages)
        _clear_dataset(elements, stages)
        _place(self.form.accordion, after=elements["rlhf_tab"])
        _place(self.viewer, after=elements["loss_viewer"])
        self.nursery.unrender()

    def withdraw(self, elements: dict[str, Any]) -> None:
        """Take the plugin's stages out of the list again; the hidden form stays where it is."""
        for title in self.titles:
            self.ui.TRAINING_STAGES.pop(title, None)
        choice = elements["training_stage"]
        choice.choices = [pair for pair in choice.choices if pair[0] not in self.titles]


def _place(element: Any, *, after: Any) -> None:
    """Move an element behind another one."""
    element.parent.children.remove(element)
    siblings = after.parent.children
    siblings.insert(siblings.index(after) + 1, element)
    element.parent = after.parent


def _draw_in(viewer: Any, loss_viewer: Any) -> None:
    """Let the listeners that draw the loss while a run is watched draw into the viewer, too."""
    listeners = Context.root_block.fns.values()
    watching = [item for item in listeners if loss_viewer in item.outputs and item.name in ("run_train", "monitor")]
    if len(watching) != 2:
        raise contract.HostMismatch(f"{len(watching)} listeners draw the loss, expected 2: run_train and monitor")
    for item in watching:
        item.outputs.append(viewer)


def _follow_stages(ui: Any) -> None:
    """List data sets by what the plugin's stages train on, and leave those alone that a loaded configuration names."""
    if hasattr(ui.train.list_datasets, "ledpo_original"):
        return
    stock_list, stock_change = ui.train.list_datasets, ui.train.change_stage

    @wraps(stock_list)
    def list_datasets(dataset_dir, training_stage):
        stage = STAGES.get(ui.TRAINING_STAGES.get(training_stage, ""))
        if stage is None:
            return stock_list(dataset_dir, training_stage)
        return gr.Dropdown(choices=choices_for(dataset_dir, stage))

    @wraps(stock_change)
    def change_stage(training_stage):
        if ui.TRAINING_STAGES.get(training_stage) in STAGES:
            return gr.skip(), False
        return stock_change(training_stage)

    list_datasets.ledpo_original, change_stage.ledpo_original = stock_list, stock_change
    ui.train.list_datasets, ui.train.change_stage = list_datasets, change_stage


def _clear_dataset(elements: dict[str, Any], stages: dict[str, str]) -> None:
    """Clear the data sets where a person chooses one of the plugin's stages, as the stock tab does at every change."""

    def clear(title: str) -> Any:
        return [] if stages.get(title) in STAGES else gr.skip()

    stage = elements["training_stage"]
    stage.input(clear, [stage], [elements["dataset"]], queue=False, show_progress="hidden", api_name=False)
