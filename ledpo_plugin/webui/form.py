"""The accordion "LEDPO": one widget per recipe key, shown only where the key acts."""

from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr

from ledpo_plugin.recipes.reading import recommended
from ledpo_plugin.webui.datasets import choices_of
from ledpo_plugin.webui.keys import AUTO, DECIDING, SECTIONS, Key, acting, entered, form_keys, understood
from ledpo_plugin.webui.words import PREFIX, info, label, locales, text

_WIDTH = 240  # pixels; narrower widgets go to the next line
_SAID = (*DECIDING, "pref_beta")  # what the values depend on that are filled in


def _widget(key: Key) -> Any:
    words = {"label": label(key.name, "en"), "info": info(key, "en"), "min_width": _WIDTH, "interactive": True}
    words["elem_id"] = PREFIX + key.name
    if key.widget == "checkbox":
        return gr.Checkbox(value=key.default, **words)
    if key.widget == "dropdown":
        auto = [("auto", AUTO)] if key.default == AUTO else []
        choices = [*auto, *key.choices]
        return gr.Dropdown(choices=choices, value=key.default, allow_custom_value=key.several, **words)
    if key.widget == "datasets":
        return gr.Dropdown(choices=[], value=[], multiselect=True, allow_custom_value=True, **words)
    if key.widget == "slider":
        return gr.Slider(minimum=key.low, maximum=key.high, step=key.step, value=key.default, **words)
    if key.widget == "number":
        # No bounds: the check of the recipe says what is wrong, and why. Without a placeholder an empty field shows 0.
        return gr.Number(value=key.default, placeholder="auto", **words)
    return gr.Textbox(value=key.default, **words)


class Form:
    """The accordion's elements; made inside of the Blocks they belong to."""

    def __init__(self) -> None:
        self.widgets: dict[str, Any] = {}
        self.sections: dict[str, Any] = {}
        keys, told = form_keys(), locales()
        with gr.Accordion(text("accordion", "en"), open=True, visible=False, elem_id="ledpo_accordion") as accordion:
            for section in SECTIONS:
                title = told[f"{PREFIX}section_{section}"]["en"]["value"]
                self.sections[section] = gr.Markdown(title)
                with gr.Row():
                    for name, key in keys.items():
                        if key.section == section:
                            self.widgets[name] = _widget(key)
            self.note = gr.Markdown(elem_id="ledpo_note")
        self.accordion = accordion

    @property
    def elements(self) -> dict[str, Any]:
        """Return every element by the name it has in the UI's manager."""
        named = {PREFIX + name: widget for name, widget in self.widgets.items()}
        named |= {f"{PREFIX}section_{name}": title for name, title in self.sections.items()}
        return named | {f"{PREFIX}accordion": self.accordion, f"{PREFIX}note": self.note}

    def values(self, data: Mapping[Any, Any]) -> dict[str, Any]:
        """Return what the form says, by key, from the values of all elements."""
        return {name: data[widget] for name, widget in self.widgets.items()}

    def recipe(self, stage: str, data: Mapping[Any, Any]) -> dict[str, Any]:
        """Return what the form says as recipe keys of the stage."""
        return entered(stage, self.values(data))

    def connect(self, engine: Any, elements: Mapping[str, Any], stages: Mapping[str, str]) -> None:
        """Let the accordion follow stage, loss, beta mode and language.

        Args:
            engine: LlamaBoard's engine, which knows the elements at the top.
            elements: the train tab's elements by name.
            stages: LlamaBoard's stages, by title.
        """
        top = engine.manager.get_elem_by_id
        stage, folder = elements["training_stage"], elements["dataset_dir"]
        lang, kind = top("top.lang"), top("top.finetuning_type")
        deciding = [self.widgets[name] for name in DECIDING]
        shown = [self.accordion, elements["rlhf_tab"], *self.sections.values(), *self.widgets.values()]
        quiet = {"queue": False, "show_progress": "hidden", "api_name": False}

        def show(title: str, *values: Any) -> list[dict[str, Any]]:
            acts = acting(stages.get(title), dict(zip(DECIDING, values, strict=True)))
            here = {form_keys()[key].section for key in acts}
            visible = [bool(acts), not acts, *(section in here for section in self.sections)]
            return [gr.update(visible=yes) for yes in (*visible, *(key in acts for key in self.widgets))]

        def describe(lang: str, kind: str, title: str, *values: Any) -> str:
            said = dict(zip(_SAID, values, strict=True))
            return "  \n".join(filled_in(lang or "en", kind, stages.get(title), said))

        choice = [stage, *deciding]
        gr.on([item.change for item in choice], show, choice, shown, **quiet)
        sources = [lang, kind, stage, *(self.widgets[name] for name in _SAID)]
        gr.on([item.change for item in sources], describe, sources, [self.note], **quiet)
        for name, widget in self.widgets.items():
            if form_keys()[name].widget == "datasets":
                self._list(widget, folder, "prompts" if name == "prompt_dataset" else "instructions")

    def _list(self, widget: Any, folder: Any, kind: str) -> None:
        def listed(place: str) -> Any:
            return gr.Dropdown(choices=choices_of(place, kind))

        widget.focus(listed, [folder], [widget], queue=False, api_name=False)


def filled_in(lang: str, finetuning_type: str, stage: str | None, said: Mapping[str, Any]) -> Iterator[str]:
    """Yield, as Markdown, what the plugin fills in where a form with these values leaves it out."""
    from ledpo_plugin.recipes.check import added_values, resolve_recipe  # not needed to show the page

    found, loss, mode = understood(stage, said)
    if found is None or loss is None or mode is None:
        return
    recipe = {"stage": stage, "finetuning_type": finetuning_type, **entered(stage, said)}
    try:
        added = added_values(recipe, resolve_recipe(recipe))
    except (KeyError, TypeError, ValueError):  # half-typed values; the check of the recipe names them
        return
    wanted = [name for name in added if form_keys().get(name) and form_keys()[name].default in (None, AUTO, "")]
    if wanted:
        values = ", ".join(f"`{name}: {added[name]}`" for name in wanted)
        yield f"{text('filled', lang)}: {values}."
    rate = recommended(recipe, loss, mode).get("learning_rate")
    if rate is not None:
        yield text("rate", lang).format(f"`{rate:g}`")
