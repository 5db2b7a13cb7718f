"""The house has floors: a package imports only what stands below it, and no file takes part in a circle."""

import ast
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

from architecture import BARE, FLOORS, Import, floor_of, imports, modules, reduced, refreshed  # noqa: E402

MOST_MODULES = 20  # in a folder
FILES = modules()
IMPORTS = list(imports(FILES))
# Started as a process of its own by what the command itself imports.
PROCESSES = ("ledpo_plugin.cli",)


def upward(found):
    """The imports of what stands on the importer's floor or above, those within a floor aside."""
    heights = {floor: height for height, floor in enumerate(FLOORS)} | dict.fromkeys(BARE, -1)
    return [
        one
        for one in found
        if heights[floor_of(one.imported)] > heights[floor_of(one.importer)]
        or (one.importer in BARE and one.imported not in BARE)
    ]


def circle(found):
    """The modules of one circle of imports, in their order; None where there is none."""
    below = {}
    for one in found:
        below.setdefault(one.importer, []).append(one.imported)
    done, way = set(), []

    def visit(module):
        if module in way:
            return [*way[way.index(module) :], module]
        if module in done:
            return None
        way.append(module)
        ring = next(filter(None, map(visit, below.get(module, ()))), None)
        way.pop()
        done.add(module)
        return ring

    return next(filter(None, map(visit, list(below))), None)


def test_every_module_stands_on_a_floor_and_every_floor_holds_one():
    assert {floor_of(module) for module in FILES} == {*FLOORS, *BARE}


def test_imports_go_down():
    assert len(IMPORTS) > 1000
    assert upward(IMPORTS) == [], "an import of what stands above; the floors are FLOORS in docs/architecture.py"


def test_no_files_import_each_other_in_a_circle():
    assert circle(IMPORTS) is None


def test_no_folder_is_a_drawer():
    counts = Counter(path.parent.relative_to(ROOT) for path in FILES.values())
    assert {str(folder): count for folder, count in counts.items() if count > MOST_MODULES} == {}


def test_a_module_that_is_named_as_text_stands_no_higher():
    """Tables of names to import later, and commands of processes: ways by which a floor could reach upward unseen."""
    named = [
        Import(module, node.value, node.lineno)
        for module, path in FILES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in FILES and node.value not in (*BARE, *PROCESSES)
    ]
    assert {one.imported for one in named} >= {"ledpo_plugin.workflow", "ledpo_plugin.experiments.running.worker"}
    assert upward(named) == []


def test_the_architecture_document_is_current():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    assert refreshed(text) == text, "run `make architecture`"
    assert len(text.splitlines()) <= 130


# --- The reader itself -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line, source",
    [
        (1, "from ledpo_plugin.cli import main"),
        (1, "import ledpo_plugin.cli"),
        (1, "from ledpo_plugin import cli"),
        (1, "from .. import cli"),
        (1, "from ..cli import main"),
        (2, "def f():\n    from ledpo_plugin.cli import main"),
        (3, "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ledpo_plugin.cli import main"),
        (2, "try:\n    import ledpo_plugin.cli as cli\nexcept ImportError:\n    cli = None"),
    ],
)
def test_an_import_of_the_roof_by_the_ground_is_seen_however_it_is_written(tmp_path, line, source):
    for name, text in (("cli/__init__", "def main(): ..."), ("common/__init__", ""), ("common/files", source)):
        path = tmp_path / "ledpo_plugin" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = list(imports(modules(tmp_path)))
    assert upward(found) == [Import("ledpo_plugin.common.files", "ledpo_plugin.cli", line)]


def test_a_circle_is_found():
    chain = [Import("a", "b", 1), Import("b", "c", 1), Import("b", "d", 1)]
    assert circle(chain) is None
    assert circle([*chain, Import("d", "a", 1)]) == ["a", "b", "d", "a"]


def test_what_follows_from_other_arrows_is_not_drawn():
    assert reduced({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": {"b"}, "b": {"c"}, "c": set()}


# --- Sizes, and what is private ---------------------------------------------------------------------------------------

LONGEST_CLASS, LONGEST_FUNCTION = 250, 80  # lines
# (module, name) -> why a private name of somebody else's is used there.
ALLOWED = {
    ("ledpo_plugin.host.arguments", "_TRAIN_ARGS"): "LLaMA-Factory parses recipes by this tuple and has no setter",
    ("ledpo_plugin.modeling.fused_lora", "_forward_hooks"): "torch does not say otherwise whether a module has hooks",
    ("ledpo_plugin.modeling.fused_lora", "_forward_pre_hooks"): "as above",
    ("ledpo_plugin.modeling.fused_lora", "_backward_hooks"): "as above",
    ("ledpo_plugin.experiments.processes", "_exit"): "os._exit is documented: a fork must not run its parent's exit",
    ("ledpo_plugin.experiments.processes", "_shutdown"): "a fork ends its threads as an interpreter does",
    ("ledpo_plugin.experiments.processes", "_run_exitfuncs"): "a fork runs what libraries left for the end",
    ("ledpo_plugin.losses._common", "_asdict"): "NamedTuple's documented method",
    ("ledpo_plugin.webui.running", "_parse_train_args"): "LlamaBoard's runner; `webui_mismatches` checks its signature",
    ("ledpo_plugin.webui.running", "_preview"): "as above",
    ("ledpo_plugin.webui.running", "_launch"): "as above",
    ("ledpo_plugin.webui.running", "_initialize"): "as above",
}


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def is_own(value):
    """Whether an attribute is asked of `self`, `cls` or `super()`."""
    if isinstance(value, ast.Call):
        value = value.func
        return isinstance(value, ast.Name) and value.id == "super"
    return isinstance(value, ast.Name) and value.id in ("self", "cls")


def defined_names(tree):
    """The names that a file gives to functions, classes, variables and attributes of its own objects."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node.value):
            names.add(node.attr)
    return names


def foreign_private_names(tree):
    """The private names, in order, that a file uses of objects and modules of other files."""
    defined = defined_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if not is_own(node.value) and node.attr not in defined:
                yield node.attr
        elif isinstance(node, ast.ImportFrom):
            # A module may have a private name within its package: it is the package that is imported from then.
            yield from (alias.name for alias in node.names if is_private(alias.name) and node.module)


def too_long(tree):
    """The classes and functions, with their lines, that are longer than they may be."""
    for node in ast.walk(tree):
        limit = {ast.ClassDef: LONGEST_CLASS, ast.FunctionDef: LONGEST_FUNCTION}.get(type(node))
        limit = LONGEST_FUNCTION if isinstance(node, ast.AsyncFunctionDef) else limit
        if limit is not None and node.end_lineno - node.lineno + 1 > limit:
            yield node.name, node.end_lineno - node.lineno + 1


def trees():
    return {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in FILES.items()}


def test_no_private_name_is_used_from_outside_its_file():
    used = {(module, name) for module, tree in trees().items() for name in foreign_private_names(tree)}
    assert used - set(ALLOWED) == set(), "ask for what is needed by a public name, or give a reason in ALLOWED"
    assert set(ALLOWED) - used == set(), "allowed and not used any more"


def test_no_class_and_no_function_is_too_long():
    long = {(module, *item) for module, tree in trees().items() for item in too_long(tree)}
    assert {item for item in long if item[:2] != ("ledpo_plugin.hparams", "LedpoArguments")} == set()
    benchmarks = sorted((ROOT / "benchmarks").rglob("*.py"))
    assert [item for path in benchmarks for item in too_long(ast.parse(path.read_text(encoding="utf-8")))] == []


@pytest.mark.parametrize(
    "source, names",
    [
        ("trainer._reference()", ["_reference"]),
        ("self.trainer._reference()", ["_reference"]),
        ("self._reference()\nsuper()._reference()", []),
        ("def _reference(): ...\nother._reference()", []),
        ("from .trainer import _split", ["_split"]),
        ("from . import _split", []),
        ("x.__dict__", []),
    ],
)
def test_a_private_name_of_another_file_is_seen(source, names):
    assert list(foreign_private_names(ast.parse(source))) == names


def test_a_long_function_and_a_long_class_are_seen():
    function = "def f():\n" + "    x = 1\n" * LONGEST_FUNCTION
    assert list(too_long(ast.parse(function))) == [("f", LONGEST_FUNCTION + 1)]
    assert list(too_long(ast.parse("class C:\n" + "    x = 1\n" * LONGEST_CLASS))) == [("C", LONGEST_CLASS + 1)]
