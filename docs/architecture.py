"""The floors of the code, read from its imports: `python docs/architecture.py` writes them into ARCHITECTURE.md.

`FLOORS` is the order that tests/test_floors.py holds the imports to. Imports are read, not made: those within functions
and those for type checkers count like all others.
"""

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("ledpo_plugin", "eval_harness")

# From the ground up: each imports only what stands above it in this list.
FLOORS = (
    "ledpo_plugin.common",
    "ledpo_plugin.facts",
    "ledpo_plugin.hparams",
    "ledpo_plugin.stages",
    "ledpo_plugin.losses",
    "ledpo_plugin.betas",
    "ledpo_plugin.host",
    "ledpo_plugin.modeling",
    "ledpo_plugin.data",
    "ledpo_plugin.reference",
    "ledpo_plugin.rewards",
    "ledpo_plugin.training",
    "ledpo_plugin.rl",
    "ledpo_plugin.recipes",
    "ledpo_plugin.checked_against",
    "ledpo_plugin.workflow",
    "ledpo_plugin.readiness",
    "eval_harness.text",
    "eval_harness.agreement",
    "eval_harness.annotation",
    "eval_harness.data",
    "eval_harness.generation",
    "eval_harness.judging",
    "eval_harness.tasks",
    "eval_harness.command",
    "ledpo_plugin.quickstart",
    "ledpo_plugin.experiments.data",
    "ledpo_plugin.experiments.processes",
    "ledpo_plugin.experiments.definition",
    "ledpo_plugin.experiments.results",
    "ledpo_plugin.experiments.measuring",
    "ledpo_plugin.experiments.report",
    "ledpo_plugin.experiments.studies",
    "ledpo_plugin.experiments.reading",
    "ledpo_plugin.experiments.reporting",
    "ledpo_plugin.experiments.running",
    "ledpo_plugin.webui",
    "ledpo_plugin.autoload",
    "ledpo_plugin.cli",
)
GROUPS = ("experiments", "eval_harness")  # drawn in a frame
# Packages that only hold others: the docstring and, of the first, the version are all there is in them.
BARE = ("ledpo_plugin", "ledpo_plugin.experiments", "eval_harness")


@dataclass(frozen=True)
class Import:
    """A module that imports another one, and the line where it does."""

    importer: str
    imported: str
    line: int


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Return every module of the packages with its file."""
    found = {}
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(files: Mapping[str, Path]) -> Iterator[Import]:
    """Yield what each of the modules imports of the others, wherever in the file it does."""
    for module, path in files.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for name in _named(node, package):
                # A name that is no module is one within a module, or not of these packages.
                imported = name if name in files else name.rpartition(".")[0]
                if imported in files and imported != module:
                    yield Import(module, imported, node.lineno)


def _named(node: ast.AST, package: str) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    source = node.module or ""
    if node.level:
        above = package.split(".")[: len(package.split(".")) - node.level + 1]
        source = ".".join([*above, *([node.module] if node.module else [])])
    return [f"{source}.{alias.name}" for alias in node.names]


def floor_of(module: str) -> str:
    """Return the floor that a module stands on.

    Raises:
        KeyError: it stands on none.
    """
    if module in BARE:
        return module
    for floor in FLOORS:
        if module == floor or module.startswith(f"{floor}."):
            return floor
    raise KeyError(f"{module} stands on no floor. Put it into a package, or add a floor to docs/architecture.py.")


def arrows(root: Path = ROOT) -> dict[str, set[str]]:
    """Return for each floor those that it imports, the bare packages left out."""
    found: dict[str, set[str]] = {floor: set() for floor in FLOORS}
    for one in imports(modules(root)):
        importer, imported = floor_of(one.importer), floor_of(one.imported)
        if importer != imported and imported not in BARE:
            found[importer].add(imported)
    return found


def reduced(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Return a graph without the arrows that a longer way says already; it should have no circle."""
    below: dict[str, set[str]] = {}

    def everything_below(floor: str) -> set[str]:
        if floor not in below:
            below[floor] = set()  # until it is known: so that a circle ends
            below[floor] = set().union(*(everything_below(other) | {other} for other in graph[floor]), set())
        return below[floor]

    return {
        floor: {one for one in graph[floor] if not any(one in everything_below(o) for o in graph[floor] - {one})}
        for floor in graph
    }


def _short(floor: str) -> str:
    return floor.removeprefix("ledpo_plugin.")


def drawing(graph: Mapping[str, set[str]]) -> str:
    """Return the graph as Mermaid draws it, the roof on top; an arrow points at what is imported.

    Arrows that follow from others are left out.
    """
    lines = ["```mermaid", "flowchart TD"]
    for group in GROUPS:
        inside = [floor for floor in reversed(FLOORS) if _short(floor).startswith(f"{group}.")]
        nodes = "; ".join(f'{_node(floor)}["{_short(floor).removeprefix(f"{group}.")}"]' for floor in inside)
        lines += [f"  subgraph {group}", f"    {nodes}", "  end"]
    importers: dict[frozenset[str], list[str]] = {}
    for floor, below in reduced(graph).items():
        importers.setdefault(frozenset(below), []).insert(0, floor)
    for below, above in reversed(importers.items()):
        if below:
            lines.append(f"  {_listed(above)} --> {_listed(below)}")
    return "\n".join([*lines, "```"])


def _listed(floors: Iterable[str]) -> str:
    return " & ".join(_node(floor) for floor in reversed(FLOORS) if floor in floors)


def _node(floor: str) -> str:
    return _short(floor).replace(".", "_")


def table(root: Path = ROOT) -> str:
    """Return the floors from the roof down, each with the first sentence of its docstring."""
    files = modules(root)
    rows = [f"| `{_short(floor)}` | {_says(files[floor])} |" for floor in reversed(FLOORS)]
    return "\n".join(["| Floor | What it is |", "| --- | --- |", *rows])


def _says(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


def refreshed(text: str, root: Path = ROOT) -> str:
    """Return ARCHITECTURE.md with its generated parts as the code is now.

    Raises:
        ValueError: a mark is missing.
    """
    for name, body in (("floors", table(root)), ("imports", drawing(arrows(root)))):
        text, count = re.subn(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)",
            lambda m, b=body: m[1] + b + "\n" + m[2],
            text,
            flags=re.DOTALL,
        )
        if count != 1:
            raise ValueError(f"ARCHITECTURE.md needs one '<!-- {name} -->' with its '<!-- /{name} -->'.")
    return text


def main() -> int:
    """Write the generated parts of ARCHITECTURE.md."""
    path = ROOT / "ARCHITECTURE.md"
    path.write_text(refreshed(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
