"""Whether the plugin's stages can run here: the host is as expected, and what a run imports can be."""

from collections.abc import Mapping
from typing import Any

from ledpo_plugin.host.arguments import recipe_keys
from ledpo_plugin.host.contract import ALLOW_UNTESTED, TESTED, HostMismatch, host_mismatches, host_version, imported
from ledpo_plugin.host.supported import INSTALL_HOST


def host_keys() -> Mapping[str, Any]:
    """Return every recipe key of the host and the plugin; refuse a host that does not fit."""
    require_supported()
    return recipe_keys()


# Modules of the plugin that a run imports once its recipe was taken; they bring in all others of a training.
RUN_MODULES = (
    "ledpo_plugin.recipes.check",
    "ledpo_plugin.common.checkpoints",
    "ledpo_plugin.training.live_log",
    "ledpo_plugin.workflow",
)


def mismatches(to_run: bool = True) -> list[str]:
    """Return why the plugin's stages cannot run here; empty if they can. It raises nothing.

    Args:
        to_run: whether what a run imports is imported, too; False where nothing is to run yet (the web UI's start).
    """
    found = host_mismatches()
    if to_run and host_version() is not None:
        found += [why for _, why in map(imported, RUN_MODULES) if why]
    return list(dict.fromkeys(found))


def require_supported(to_run: bool = True) -> None:
    """Do nothing if the plugin's stages can run here; `to_run` as for `mismatches`.

    Raises:
        HostMismatch: they cannot; the message names the installed version, the tested range and what to do.
    """
    found = mismatches(to_run)
    if found:
        raise HostMismatch(
            f"The LEDPO stages cannot run with the installed LLaMA-Factory {host_version()} (tested: {TESTED}). "
            "Stock stages are not affected.\n"
            + "\n".join(f"  - {line}" for line in found)
            + f"\nWhat to do: {INSTALL_HOST}, or install the ledpo-plugin release made for your version; where a "
            "module cannot be imported, install what it misses, in the version that LLaMA-Factory asks for. "
            f"{ALLOW_UNTESTED}=1 skips the version check alone (not the checks of the internals). "
            "LEDPO_PLUGIN_DISABLE=1 switches the plugin off."
        )
