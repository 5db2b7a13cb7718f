"""Both READMEs say what is: generated tables, paths, commands, versions; and both say the same."""

import json
import os
import re
import shlex
from pathlib import Path

import pytest
import yaml

from ledpo_plugin.cli import build_parser
from ledpo_plugin.cli.tables import CHINESE, TABLES, refresh
from ledpo_plugin.host import arguments as host_arguments
from ledpo_plugin.host import contract
from ledpo_plugin.recipes.check import check_recipe, resolve_recipe

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "README_zh.md")
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in READMES}

# What a command that is only named, as in "`ledpo run`", would be given.
NEEDED = {
    "validate": ["x.yaml"], "beta": ["run"], "run": ["folder"], "status": ["folder"], "report": ["folder"],
    "eval": ["winrate", "x.json"], "eval annotate": ["x.json", "--folder", "x"], "eval agree": [],
}  # fmt: skip
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
every_readme = pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)


def code(text: str) -> list[str]:
    """Everything set as code: the blocks, and the spans outside of them, a line break in a span being a space."""
    spans = re.findall(r"`([^`]+)`", prose(text))
    return [body for _, body in FENCED.findall(text)] + [" ".join(span.split()) for span in spans]


def prose(text: str) -> str:
    return FENCED.sub("", text)


def headings(text: str) -> list[int]:
    return [len(marks) for marks in re.findall(r"^(#+) \S", prose(text), re.MULTILINE)]


def tables(text: str) -> list[tuple[int, int]]:
    """Rows and columns of each table."""
    found = re.findall(r"(?:^\|.*\|\n)+", prose(text), re.MULTILINE)
    return [(table.count("\n"), len(re.findall(r"(?<!\\)\|", table.splitlines()[0])) - 1) for table in found]


def mapped(text: str) -> list[str]:
    """The paths in the map of the tree."""
    block = re.search(r"<!-- map -->\n(.*?)<!-- /map -->", text, re.DOTALL)
    return re.findall(r"^\| `([^`]+)` \|", block.group(1), re.MULTILINE)


# --- Tables ----------------------------------------------------------------------------------------------------------


@every_readme
def test_generated_tables_are_up_to_date(text):
    assert refresh(text) == text, "run `python -m ledpo_plugin.cli.tables README.md README_zh.md`"
    assert re.findall(r"<!-- table: (\w+)", text) == list(TABLES)


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("name", TABLES)
def test_every_row_has_as_many_cells_as_the_heading(name, lang):
    lines = TABLES[name](lang).splitlines()
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert [line for line in lines if re.search(r"\| *\|", line)] == [], "an empty cell"


def test_every_chinese_word_is_used():
    whole = "".join(table("zh") for table in TABLES.values())
    assert [word for word in CHINESE.values() if word not in whole] == []


@pytest.mark.parametrize(
    "text, message",
    [
        ("<!-- table: loses -->\n<!-- /table -->", "Unknown table 'loses'. Did you mean 'losses'"),
        ("<!-- table: losses fr -->\n<!-- /table -->", "Unknown language 'fr'"),
        ("<!-- table: losses -->\nno end", "has no '<!-- /table -->'"),
    ],
)
def test_wrong_markers_are_refused(text, message):
    with pytest.raises((KeyError, ValueError), match=re.escape(message)):
        refresh(text)


def test_refresh_changes_only_what_stands_between_markers():
    text = "before | x\n<!-- table: stages -->\nold\n<!-- /table -->\nafter\n"
    fresh = refresh(text)
    assert fresh.startswith("before | x\n<!-- table: stages -->\n| Stage |")
    assert fresh.endswith(" |\n<!-- /table -->\nafter\n")
    assert refresh(fresh) == fresh


# --- The two languages -----------------------------------------------------------------------------------------------


def test_both_languages_have_the_same_structure():
    english, chinese = TEXTS.values()
    assert headings(english) == headings(chinese)
    assert FENCED.findall(english) == FENCED.findall(chinese)
    assert tables(english) == tables(chinese)
    assert mapped(english) == mapped(chinese)
    assert sorted(set(code(english))) == sorted(set(code(chinese)))
    for marks in (r"^- ", r"^\d+\. ", r"^\*\*"):
        assert len(re.findall(marks, english, re.MULTILINE)) == len(re.findall(marks, chinese, re.MULTILINE))


# --- What is named exists --------------------------------------------------------------------------------------------


@every_readme
def test_the_map_names_what_exists_and_every_module(text):
    named = mapped(text)
    assert len(set(named)) == len(named)
    assert [path for path in named if not (ROOT / path).exists()] == []
    assert [path for path in named if path.endswith("/") != (ROOT / path).is_dir()] == []
    folders = tuple(path for path in named if path.endswith("/"))
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "ledpo_plugin").rglob("*.py")}
    assert [path for path in sorted(modules) if path not in named and not path.startswith(folders)] == []


@every_readme
def test_other_paths_and_links_exist(text):
    paths = [span for span in code(text) if re.fullmatch(r"(?:ledpo_plugin|tests|yaml_recipes)/[\w./-]*", span)]
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", prose(text)) if "://" not in link]
    assert len(links) >= 4
    assert [path for path in (*paths, *links) if not (ROOT / path).exists()] == []


@every_readme
def test_every_make_target_exists(text):
    targets = {target for piece in code(text) for target in re.findall(r"\bmake ([a-z][\w-]*)", piece)}
    assert {"quickstart", "test"} <= targets
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


@every_readme
def test_every_ledpo_command_exists(text):
    parser = build_parser()
    lines = [line for piece in code(text) for line in piece.splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines if re.match(r"ledpo [a-z]", line)]
    assert {"validate", "beta", "doctor", "quickstart"} <= {words[1] for words in commands}
    for words in commands:
        arguments = [word for word in words[1:] if word != "..."]
        needed = NEEDED.get(" ".join(words[1:]), [])
        assert parser.parse_args(arguments + needed).command == words[1]


@every_readme
def test_every_environment_variable_is_read_somewhere(text):
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "ledpo_plugin").rglob("*.py"))
    names = set(re.findall(r"\bLEDPO_[A-Z_]+", text))
    assert len(names) >= 2
    assert [name for name in names if name not in sources] == []


@every_readme
def test_versions_are_those_of_the_package_and_the_constraints(text):
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [span for span in code(text) if re.fullmatch(r"[\w-]+==[\w.]+", span)]
    assert len(pinned) >= 4
    assert [span for span in pinned if span not in constraints] == []
    requirement = f"llamafactory{','.join(sorted(map(str, contract.TESTED), reverse=True))}"
    assert requirement in code(text)
    assert f'"{requirement}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


# --- The recipe ------------------------------------------------------------------------------------------------------


def test_the_recipe_is_good(tmp_path, monkeypatch):
    """In a stand-in for a checkout of LLaMA-Factory: its registry defines the data set, the model is a hub name."""
    block, _ = [body for language, body in FENCED.findall(TEXTS["README.md"]) if language == "yaml"]
    recipe = yaml.safe_load(block)
    assert len(block.splitlines()) == len(recipe) == 10
    data = tmp_path / recipe["dataset_dir"]
    data.mkdir()
    entry = {"file_name": "pairs.json", "ranking": True, "columns": {"chosen": "chosen", "rejected": "rejected"}}
    (data / "dataset_info.json").write_text(json.dumps({recipe["dataset"]: entry}))
    (data / "pairs.json").write_text("[]")
    monkeypatch.chdir(tmp_path)
    keys = host_arguments.recipe_keys()
    assert check_recipe(recipe, keys, os.environ) == []
    resolved = resolve_recipe(recipe)
    assert check_recipe(resolved, keys, os.environ) == []
    assert (resolved["pref_loss"], resolved["beta_mode"]) == ("sigmoid", "head")


def test_the_recipe_of_rollouts_is_good():
    _, block = [body for language, body in FENCED.findall(TEXTS["README.md"]) if language == "yaml"]
    recipe = yaml.safe_load(block)
    assert check_recipe(recipe, host_arguments.recipe_keys(), {}, with_files=False) == []
    resolved = resolve_recipe(recipe)
    assert (resolved["advantage_estimator"], resolved["kl_control"], resolved["top_p"]) == ("gae", "fixed", 1.0)


@every_readme
def test_the_performance_tables_are_the_measured_ones(text):
    """Rows are copied from docs/performance.md, which benchmarks/speed.py writes; none is typed."""
    measured = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8").splitlines()
    section = re.split(r"^## (?:Performance|性能)$", text, flags=re.MULTILINE)[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert len(rows) > 8
    assert [row for row in rows if row not in measured] == []
