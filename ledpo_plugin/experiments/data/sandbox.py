"""Run small generated functions against their tests: few builtins, no imports, and an end to every loop."""

import ast
import sys
from collections.abc import Sequence
from typing import Any

MAX_STEPS = 20_000  # executed lines; the tasks need a few hundred. Unlike a clock, it gives the same verdict everywhere
BUILTINS = (
    abs, all, any, bool, chr, dict, divmod, enumerate, float, int, len, list, max, min, ord, print, range, reversed,
    round, set, sorted, str, sum, tuple, zip,
)  # fmt: skip


class UnsafeCode(ValueError):
    """The source asks for more than the sandbox gives: an import, or a name that starts with an underscore."""


class TooManySteps(RuntimeError):
    """The function did not come to an end."""


def passes(source: str, tests: Sequence[str]) -> list[bool]:
    """Return for each test, an expression over the functions of `source`, whether it holds.

    A test during which the function raises, or executes more than MAX_STEPS lines, does not hold.

    Raises:
        UnsafeCode: `source` or a test would leave the sandbox.
        SyntaxError: `source` or a test is not Python.
    """
    names: dict[str, Any] = {"__builtins__": {call.__name__: call for call in BUILTINS} | {"print": _say_nothing}}
    _limited(_compiled(source, "exec"), names)
    return [_holds(_compiled(test, "eval"), names) for test in tests]


def _say_nothing(*_: Any) -> None:
    """Stand in for print: what generated code says is not for the terminal."""


def _compiled(source: str, mode: str) -> Any:
    tree = ast.parse(source, mode=mode)
    for node in ast.walk(tree):
        named = getattr(node, "id", None) or getattr(node, "attr", None) or ""
        if isinstance(node, (ast.Import, ast.ImportFrom)) or named.startswith("_") or named in ("format", "format_map"):
            raise UnsafeCode(f"Not run: {ast.unparse(node)!r} is not for generated code. In:\n{source}")
    return compile(tree, "<generated>", mode)


def _holds(test: Any, names: dict[str, Any]) -> bool:
    try:
        return bool(_limited(test, names))
    except Exception:  # whatever a wrong function raises, it has failed its test
        return False


def _limited(code: Any, names: dict[str, Any]) -> Any:
    """Evaluate compiled code, counting the lines it executes."""
    steps = 0

    def count(frame: Any, event: str, _: Any) -> Any:
        nonlocal steps
        steps += event == "line"
        if steps > MAX_STEPS:
            raise TooManySteps(f"more than {MAX_STEPS} lines executed")
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        return eval(code, names)
    finally:
        sys.settrace(before)
