"""How the plugin enters LlamaBoard: what is wrapped, and what happens where that cannot be done.

The two functions of `llamafactory.webui.interface` that build the train tab and the footer are wrapped: the first adds
stages, an accordion and curves (`train_tab`), the second, which is called after the last tab, adds the tab
"Experiments". Whatever goes wrong in between is printed, and the UI is then the stock one.
"""

import gc
import importlib.util
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

from ledpo_plugin import readiness
from ledpo_plugin.host import contract

EXPERIMENTS = "ledpo_plugin.webui.experiments"
TAB = "experiments"  # the prefix of that tab's elements in the UI's manager


def install() -> None:
    """Wrap the web UI's builders, once; print what differs where the web UI is not the expected one."""
    ui = contract.webui_api().interface if not (found := contract.webui_mismatches()) else None
    if ui is None:
        _complain("the web UI is not the one it was made for", found)
        return
    if hasattr(ui.create_train_tab, "ledpo_original"):
        return
    engines: list[Any] = []
    ui.create_train_tab = _train_tab(ui.create_train_tab, engines)
    ui.create_footer = _footer(ui.create_footer, engines)


def _train_tab(original: Callable, engines: list[Any]) -> Callable:
    @wraps(original)
    def create_train_tab(engine):
        engines[:] = [engine]
        try:
            readiness.require_supported(to_run=False)  # Preview and Start look at the rest
            from ledpo_plugin.webui.train_tab import Extension

            extension = Extension(engine)
        except Exception as error:  # the stock UI must go on working
            _complain("the LEDPO stages could not be added", [f"{type(error).__name__}: {error}"])
            return original(engine)
        elements = extension.build(original)
        try:
            extension.attach(elements)
        except Exception as error:
            extension.withdraw(elements)
            _complain("the LEDPO stages could not be added", [f"{type(error).__name__}: {error}"])
        return elements | extension.elements

    create_train_tab.ledpo_original = original
    return create_train_tab


def _footer(original: Callable, engines: list[Any]) -> Callable:
    @wraps(original)
    def create_footer():
        for engine in engines:
            if not engine.demo_mode:
                _add_experiments(engine)
        # A million objects of imported libraries live as long as the UI. With what the plugin adds, the next full
        # collection, 0.3 s for finding nothing among them, would fall between here and the first page.
        gc.freeze()
        return original()

    create_footer.ledpo_original = original
    return create_footer


def _add_experiments(engine: Any) -> None:
    """Add the tab "Experiments" after the stock tabs; without it where it cannot be built."""
    if importlib.util.find_spec(EXPERIMENTS) is None:
        return
    import gradio as gr

    tab = None
    try:
        from ledpo_plugin.webui.experiments import EXPERIMENT_LOCALES, create_experiments_tab

        with gr.Tab("Experiments") as tab:
            elements = create_experiments_tab(engine)
        contract.webui_api().LOCALES.update(EXPERIMENT_LOCALES)
        engine.manager.add_elems(TAB, elements)
    except Exception as error:  # the stock UI must go on working
        if tab is not None:
            tab.unrender()
        _complain("the tab Experiments could not be built", [f"{type(error).__name__}: {error}"])


def _complain(what: str, details: list[str]) -> None:
    lines = "\n".join(f"  - {line}" for line in details)
    print(
        f"ledpo-plugin: {what}, so LLaMA-Factory's stock web UI is shown. See `ledpo doctor`.\n{lines}",
        file=sys.stderr,
        flush=True,
    )
