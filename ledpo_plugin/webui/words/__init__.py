"""What the accordion says, in the five languages of LlamaBoard; one JSON file per language.

English help is the keys' own (`ledpo_plugin.hparams`). A key without a label falls back to its name, one without help
to the English help, so that a new key is shown before anybody has translated it.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from ledpo_plugin.common.lookup import lookup
from ledpo_plugin.webui.keys import SECTIONS, Key, form_keys

LANGUAGES = ("en", "ru", "zh", "ko", "ja")
PREFIX = "ledpo_"  # of the elements' names: the UI finds an element's words by its name alone


@cache
def _words() -> dict[str, dict[str, Any]]:
    folder = Path(__file__).parent
    return {lang: json.loads((folder / f"{lang}.json").read_text(encoding="utf-8")) for lang in LANGUAGES}


def text(name: str, lang: str) -> str:
    """Return a sentence or title in a language.

    Raises:
        KeyError: the language or the text is unknown.
    """
    return lookup(lookup(_words(), "language", lang)["texts"], "text", name)


def label(name: str, lang: str) -> str:
    """Return a key's label in a language, else in English, else its name."""
    words = _words()
    return (words[lang]["keys"].get(name) or words["en"]["keys"].get(name) or {}).get("label", name)


def info(key: Key, lang: str) -> str:
    """Return what stands under a key's label: its name, its help and its bounds."""
    said = _words()[lang]["keys"].get(key.name, {}).get("info", key.help)
    return f"`{key.name}`: {said}" + (f" ({key.limits})" if key.limits else "")


@cache
def locales() -> dict[str, dict[str, dict[str, str]]]:
    """Return the words of every element of the accordion, as LlamaBoard keeps them: by element, then language."""
    words = _words()
    found = {
        PREFIX + name: {lang: {"label": label(name, lang), "info": info(key, lang)} for lang in LANGUAGES}
        for name, key in form_keys().items()
    }
    for section in SECTIONS:
        found[f"{PREFIX}section_{section}"] = {
            lang: {"value": f"**{words[lang]['sections'][section]}**"} for lang in LANGUAGES
        }
    for name in ("accordion", "viewer"):
        found[PREFIX + name] = {lang: {"label": text(name, lang)} for lang in LANGUAGES}
    return found
