"""LlamaBoard's configuration files with the form in them, readable by a LlamaBoard that knows nothing of it.

LlamaBoard puts every value of a file into the element of that name and breaks on a name it does not know. So the form
is written below the stock part, as a YAML comment: one file, whole when it is copied, and read without the plugin as
if the form were not there.
"""

import json
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from ledpo_plugin.host import contract
from ledpo_plugin.stages import STAGES
from ledpo_plugin.webui.keys import form_keys
from ledpo_plugin.webui.words import PREFIX

MARK = "# ledpo-plugin: "
_OURS = f"train.{PREFIX}"


def keep_apart(runner_module: Any) -> None:
    """Let LlamaBoard write and read its configuration files through `write` and `read`, once."""
    if hasattr(runner_module.save_args, "ledpo_original"):
        return
    save, load = runner_module.save_args, runner_module.load_args

    @wraps(save)
    def save_args(config_path, config_dict):
        write(save, config_path, config_dict)

    @wraps(load)
    def load_args(config_path):
        return read(load, config_path)

    save_args.ledpo_original, load_args.ledpo_original = save, load
    runner_module.save_args, runner_module.load_args = save_args, load_args


def write(save: Callable, path: str, values: Mapping[str, Any]) -> None:
    """Save a configuration as LlamaBoard does, and the form below it if the stage is one of the plugin's."""
    ours = {name: value for name, value in values.items() if name.startswith(_OURS)}
    save(path, {name: value for name, value in values.items() if name not in ours})
    if contract.webui_api().TRAINING_STAGES.get(values.get("train.training_stage")) in STAGES:
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{MARK}{json.dumps(ours)}\n")


def read(load: Callable, path: str) -> dict[str, Any] | None:
    """Load a configuration as LlamaBoard does, and the form if there is one; None where there is no file."""
    values = load(path)
    if not isinstance(values, dict):
        return values
    with open(path, encoding="utf-8") as file:
        lines = [line.removeprefix(MARK) for line in file if line.startswith(MARK)]
    for line in lines[-1:]:
        try:
            ours = json.loads(line)
        except ValueError:
            continue  # somebody edited the comment; the stock part is still good
        if isinstance(ours, dict):
            values |= {name: value for name, value in ours.items() if name in _known()}
    return values


def _known() -> frozenset[str]:
    return frozenset(_OURS + name for name in form_keys())
