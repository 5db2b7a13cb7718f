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
    assert len(text.splitlines()) <= 120


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
