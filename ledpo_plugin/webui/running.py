"""From the form to a run, on LlamaBoard's own way: the command, its check before a process starts, and the watching."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gradio as gr
import yaml

from ledpo_plugin import readiness
from ledpo_plugin.host import arguments as host_arguments
from ledpo_plugin.host import contract
from ledpo_plugin.stages import STAGES
from ledpo_plugin.training.live_log import log_path
from ledpo_plugin.webui.curves import Curves
from ledpo_plugin.webui.plain import as_markdown, fenced
from ledpo_plugin.webui.words import text

# Text fields of the stock tab, by the recipe keys they are written to, and what LlamaBoard reads them with.
_NUMBERS = {"learning_rate": float, "num_train_epochs": float, "max_samples": int, "max_grad_norm": float}


class Running:
    """What the plugin adds to one `Runner`; runs of stock stages go through it unchanged."""

    def __init__(self, runner: Any, form: Any, viewer: Any) -> None:
        self.runner, self.form, self.viewer = runner, form, viewer
        self.stock_arguments = runner._parse_train_args
        self.stock_preview, self.stock_launch, self.stock_monitor = runner._preview, runner._launch, runner.monitor

    def take_over(self) -> None:
        """Stand in for the runner's methods; before the stock tab connects its buttons to them."""
        self.runner._parse_train_args = self.arguments
        self.runner._preview = self.preview
        self.runner._launch = self.launch
        self.runner.monitor = self.monitor

    def _get(self, data: Mapping[Any, Any], name: str) -> Any:
        return data[self.runner.manager.get_elem_by_id(name)]

    def stage(self, data: Mapping[Any, Any]) -> str | None:
        """Return the chosen stage if it is one of the plugin's."""
        name = contract.webui_api().TRAINING_STAGES.get(self._get(data, "train.training_stage"))
        return name if name in STAGES else None

    def arguments(self, data: dict[Any, Any]) -> dict[str, Any]:
        """Return the recipe that the page says; `extra_args` has the last word, as for LlamaBoard's own fields.

        LlamaBoard sets `trust_remote_code: true` in every recipe; here it is set where `extra_args` say so.
        """
        stage = self.stage(data)
        if stage is None:
            return self.stock_arguments(data)
        manager = self.runner.manager
        readable, typed = dict(data), {}
        for key, read in _NUMBERS.items():
            said = str(self._get(data, f"train.{key}")).strip()
            if not _reads(read, said):
                readable[manager.get_elem_by_id(f"train.{key}")] = "1"  # the check of the recipe judges what was typed
                typed[key] = said or None  # left out: the plugin fills in what it recommends
        args = self.stock_arguments(readable)
        extra = json.loads(self._get(data, "train.extra_args"))
        if "trust_remote_code" not in extra:
            args.pop("trust_remote_code", None)
        said = typed if args["stage"] != stage else {**typed, **self.form.recipe(stage, data)}
        return args | {key: value for key, value in said.items() if key not in extra}

    def problems(self, data: dict[Any, Any]) -> str:
        """Return what is wrong with the recipe that the page says; "" if nothing is."""
        from ledpo_plugin.recipes.check import RecipeError, check_recipe  # not needed to show the page

        extra = self._get(data, "train.extra_args")
        if not isinstance(json.loads(extra), dict):
            return f"extra_args: {extra} -> it must be a JSON object of recipe keys. Fix: write for example {{}}."
        try:
            readiness.require_supported()
        except contract.HostMismatch as error:
            return str(error)
        args = contract.webui_api().clean_cmd(self.arguments(data))
        recipe = yaml.safe_load(yaml.safe_dump(args))  # as the file is read that the process is given
        if recipe.get("stage") not in STAGES:
            return ""  # extra_args chose a stock stage
        environ = dict(os.environ)
        if args.get("deepspeed") is not None:
            environ["FORCE_TORCHRUN"] = "1"  # as LlamaBoard sets it
        found = check_recipe(recipe, host_arguments.recipe_keys(), environ)
        return str(RecipeError(found)) if found else ""

    def _checked(self, data: dict[Any, Any], do_train: bool) -> dict[Any, Any] | None:
        """Return what the page shows in place of a run with problems; None where there are none to show."""
        if not do_train or self.stage(data) is None:
            return None
        if self.runner._initialize(data, do_train, from_preview=True):
            return None  # LlamaBoard says so itself
        found = self.problems(data)
        if not found:
            return None
        gr.Warning(text("problems", self._get(data, "top.lang") or "en"))
        return {self.runner.manager.get_elem_by_id("train.output_box"): as_markdown(found)}

    def preview(self, data: dict[Any, Any], do_train: bool) -> Iterator[dict[Any, Any]]:
        """Show the command, or what is wrong with it."""
        said = self._checked(data, do_train)
        if said is not None:
            yield said
        elif do_train and self.stage(data) is not None:
            for update in self.stock_preview(data, do_train):
                yield {element: fenced(value) for element, value in update.items()}
        else:
            yield from self.stock_preview(data, do_train)

    def launch(self, data: dict[Any, Any], do_train: bool) -> Iterator[dict[Any, Any]]:
        """Start the run, or show what is wrong with it and start nothing."""
        said = self._checked(data, do_train)
        if said is not None:
            yield said
        else:
            yield from self.stock_launch(data, do_train)

    def monitor(self) -> Iterator[dict[Any, Any]]:
        """Watch the run as LlamaBoard does, and draw beta and accuracy beside the loss."""
        data, do_train = self.runner.running_data, self.runner.do_train
        if not do_train or data is None:
            yield from self.stock_monitor()
            return
        curves = Curves(log_path(self._output(data))) if self.stage(data) is not None else None
        first = {self.viewer: gr.Plot(value=None, visible=False)}
        for update in self.stock_monitor():
            figure = curves.figure_if_new() if curves is not None else None
            yield update | first | ({} if figure is None else {self.viewer: gr.Plot(value=figure, visible=True)})
            first = {}

    def _output(self, data: Mapping[Any, Any]) -> str:
        names = ("top.model_name", "top.finetuning_type", "train.output_dir")
        return contract.webui_api().get_save_dir(*(self._get(data, name) for name in names))


def _reads(read: Callable[[str], Any], said: str) -> bool:
    try:
        read(said)
    except ValueError:
        return False
    return True
