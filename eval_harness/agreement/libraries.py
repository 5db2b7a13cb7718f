"""The statistics libraries that only an evaluation needs: imported when they are used."""

import importlib
from types import ModuleType


def library(name: str, use: str) -> ModuleType:
    """Return a library of the `eval` extra.

    Raises:
        ImportError: it is not installed; the message says for what it is needed and how to install it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{use} needs the library {name!r}, which cannot be imported here ({error}). "
            "Install it: pip install 'ledpo-plugin[eval]'."
        ) from error
