"""Which versions of LLaMA-Factory the plugin is for: stated here; `pyproject.toml` and the documents are held to it.

It imports the standard library alone, so that it can be read where nothing else can be imported.
"""

from collections.abc import Mapping

HOST_RANGE = ">=0.9.5,<0.9.7"  # with pre-releases: a git checkout of 0.9.6.dev0 is inside
INSTALL_HOST = f"pip install 'llamafactory{HOST_RANGE}'"


def is_plugin_recipe(raw: object) -> bool:
    """Whether the recipe asks for one of the plugin's stages, however it is spelled; no error whatever it is."""
    stage = raw.get("stage") if isinstance(raw, Mapping) else None
    return isinstance(stage, str) and stage.strip().lower().startswith("ledpo")
