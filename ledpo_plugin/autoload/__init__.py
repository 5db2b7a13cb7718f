"""Runs at every start of the interpreter: waits, at no cost, for LLaMA-Factory to be imported.

LLaMA-Factory has no plugin entry point, and it trains in processes of its own (torchrun workers, trainings started
by the web UI, Ray workers), which a patch in a parent process never reaches. So this module is named in a `.pth`
file (and, for Python 3.15 and later, where `.pth` files stop running code, in a `.start` file). It imports nothing
that the interpreter has not loaded already.
"""

import sys

# After one of these is executed, `patches` is told; it decides what to patch.
WATCHED = frozenset({"llamafactory.train.tuner", "llamafactory.v1.launcher", "llamafactory.webui.interface"})


class _Watcher:
    """A finder that finds nothing itself: it lets the others find a watched module, then follows its execution."""

    def find_spec(self, name, path=None, target=None):
        if name not in WATCHED:
            return None
        for finder in sys.meta_path:
            if finder is self:
                continue
            find_spec = getattr(finder, "find_spec", None)
            spec = find_spec(name, path, target) if find_spec else None
            if spec is not None:
                if spec.loader is not None and hasattr(spec.loader, "exec_module"):
                    _tell_after_execution(spec.loader)
                return spec
        return None


def _tell_after_execution(loader) -> None:
    execute = loader.exec_module

    def exec_module(module):
        execute(module)
        try:
            from .patches import on_host_module

            on_host_module(module)
        except Exception as error:  # the host must go on working; its stock stages do not need the plugin
            print(
                f"ledpo-plugin could not be set up ({type(error).__name__}: {error}); the LEDPO stages are not "
                "available in this process, stock stages are not affected. See `ledpo doctor`.",
                file=sys.stderr,
            )

    loader.exec_module = exec_module


def arm() -> None:
    """Start watching, once; `LEDPO_PLUGIN_DISABLE=1` keeps the plugin out of this process."""
    import os

    if os.environ.get("LEDPO_PLUGIN_DISABLE", "") not in ("", "0"):
        return
    if not any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watcher())


def armed() -> bool:
    """Return whether this process is watching for LLaMA-Factory."""
    return any(isinstance(finder, _Watcher) for finder in sys.meta_path)
