"""The documents say what is: generated tables, links, paths, commands, versions; and both languages say the same."""

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
TEXTS = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "yaml_recipes" / "README.md"])
}
# Reports and the changelog say what was when they were written.
PRESENT = [name for name in TEXTS if not name.startswith("docs/results/") and name != "CHANGELOG.md"]
# English page -> its Chinese one.
PAIRS = {
    "README.md": "README_zh.md",
    "CONTRIBUTING.md": "docs/zh/contributing.md",
    **{f"docs/{path.name}": f"docs/zh/{path.name}" for path in sorted((ROOT / "docs/zh").glob("*.md"))},
}
PAIRS.pop("docs/contributing.md")
MAPS = ("docs/map.md", "docs/zh/map.md")

# What a command that is only named, as in "`ledpo run`", would be given.
NEEDED = {
    "validate": ["x.yaml"], "beta": ["run"], "run": ["folder"], "status": ["folder"], "report": ["folder"],
    "eval": ["winrate", "x.json"], "eval judge": ["x", "--reference", "x", "--judge", "x", "--folder", "x"],
    "eval annotate": ["x.json", "--folder", "x"], "eval agree": [],
}  # fmt: skip
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
every_document = pytest.mark.parametrize("name", PRESENT)
every_pair = pytest.mark.parametrize("english, chinese", PAIRS.items(), ids=PAIRS)
every_map = pytest.mark.parametrize("name", MAPS)
both_languages = pytest.mark.parametrize("folder", ["docs", "docs/zh"])


def of_language(folder: str, *pages: str) -> str:
    """The README and some pages of one language."""
    readme = "README.md" if folder == "docs" else "README_zh.md"
    return "\n".join(TEXTS[name] for name in (readme, *(f"{folder}/{page}" for page in pages)))


def code(text: str) -> list[str]:
    """Everything set as code: the blocks, and the spans outside of them, a line break in a span being a space."""
    spans = re.findall(r"`([^`]+)`", prose(text))
    return [body for _, body in FENCED.findall(text)] + [" ".join(span.split()) for span in spans]


def prose(text: str) -> str:
    return FENCED.sub("", text)


def headings(text: str) -> list[int]:
    return [len(marks) for marks in re.findall(r"^(#+) \S", prose(text), re.MULTILINE)]


def anchors(text: str) -> set[str]:
    """What GitHub, and the site, call each heading in an address."""
    found: list[str] = []
    for heading in re.findall(r"^#+ +(.+?)\s*$", prose(text), re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", shown).replace(" ", "-")
        again = sum(1 for other in found if other == slug or re.fullmatch(rf"{re.escape(slug)}-\d+", other))
        found.append(f"{slug}-{again}" if again else slug)
    return set(found)


def links(text: str) -> list[str]:
    """Every link to something in this repository."""
    plain = re.sub(r"`[^`]*`", "", prose(text))
    return [link for link in re.findall(r"(?<!\\)\]\(([^)\s]+)\)", plain) if "://" not in link]


def broken(name: str, texts: dict[str, str]) -> list[str]:
    """The links of a document that lead nowhere."""
    found = []
    for link in links(texts[name]):
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        if not target.exists() or (
            anchor and anchor not in anchors(texts.get(os.path.relpath(target, ROOT), target.read_text("utf-8")))
        ):
            found.append(link)
    return found


def tables(text: str) -> list[tuple[int, int]]:
    """Rows and columns of each table."""
    found = re.findall(r"(?:^\|.*\|\n)+", prose(text), re.MULTILINE)
    return [(table.count("\n"), len(re.findall(r"(?<!\\)\|", table.splitlines()[0])) - 1) for table in found]


def mapped(text: str) -> list[str]:
    """The paths in the map of the tree."""
    block = re.search(r"<!-- map -->\n(.*?)<!-- /map -->", text, re.DOTALL)
    return re.findall(r"^\| `([^`]+)` \|", block.group(1), re.MULTILINE)


# --- Tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, text in TEXTS.items() if "<!-- table: " in text])
def test_generated_tables_are_up_to_date(name):
    assert refresh(TEXTS[name]) == TEXTS[name], "run `make tables`"


@pytest.mark.parametrize("lang", ["", " zh"])
def test_every_table_stands_in_one_document(lang):
    names = [name for text in TEXTS.values() for name in re.findall(rf"^<!-- table: (\w+){lang} -->$", text, re.M)]
    assert sorted(name for name in names if name in TABLES) == sorted(TABLES)


def test_make_tables_writes_every_document_with_a_table():
    rule = re.search(r"^tables:.*\n\t@.* -m ledpo_plugin\.cli\.tables (.*)$", (ROOT / "Makefile").read_text(), re.M)
    written = {str(path.relative_to(ROOT)) for pattern in rule[1].split() for path in ROOT.glob(pattern)}
    assert {name for name, text in TEXTS.items() if "<!-- table: " in text} - written == set()


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


@every_pair
def test_both_languages_have_the_same_structure(english, chinese):
    english, chinese = TEXTS[english], TEXTS[chinese]
    assert headings(english) == headings(chinese)
    assert FENCED.findall(english) == FENCED.findall(chinese)
    assert tables(english) == tables(chinese)
    assert sorted(set(code(english))) == sorted(set(code(chinese)))
    for marks in (r"^- ", r"^\d+\. ", r"^\*\*"):
        assert len(re.findall(marks, english, re.MULTILINE)) == len(re.findall(marks, chinese, re.MULTILINE))


def test_every_guide_is_there_in_chinese_and_both_maps_are_one():
    guides = {"guide", "data", "webui", "experiments", "rewards", "evaluate", "losses", "betas", "keys", "findings"}
    assert {f"docs/{name}.md" for name in guides} <= set(PAIRS)
    assert [name for name in TEXTS if name.startswith("docs/zh/") and name not in (*PAIRS.values(), *MAPS)] == []
    english, chinese = (mapped(TEXTS[name]) for name in MAPS)
    assert english == chinese


# --- Length, links ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["README.md", "README_zh.md"])
def test_the_readme_is_read_in_one_go(name):
    assert len(TEXTS[name].splitlines()) <= 230
    assert len(links(TEXTS[name])) >= 4


@pytest.mark.parametrize("name", TEXTS)
def test_every_link_leads_somewhere(name):
    assert broken(name, TEXTS) == []


def test_a_broken_link_is_seen():
    """Files, anchors in other files, anchors in its own; a good one of each, and what is no link."""
    text = (
        "# A b\n\n[x](docs/losses.md) [x](no.md) [x](docs/losses.md#table) [x](docs/losses.md#no) [x](#a-b) [x](#c)\n"
    )
    texts = {**TEXTS, "README.md": text + "`[x](code.md)` [x](https://example.org/a)\n```text\n[x](fence.md)\n```\n"}
    assert broken("README.md", texts) == ["no.md", "docs/losses.md#no", "#c"]


# --- What is named exists --------------------------------------------------------------------------------------------


@every_map
def test_the_map_names_what_exists_and_every_module(name):
    named = mapped(TEXTS[name])
    assert len(set(named)) == len(named)
    assert [path for path in named if not (ROOT / path).exists()] == []
    assert [path for path in named if path.endswith("/") != (ROOT / path).is_dir()] == []
    folders = tuple(path for path in named if path.endswith("/"))
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "ledpo_plugin").rglob("*.py")}
    assert [path for path in sorted(modules) if path not in named and not path.startswith(folders)] == []


@every_document
def test_other_paths_exist(name):
    paths = [span for span in code(TEXTS[name]) if re.fullmatch(r"(?:ledpo_plugin|tests|yaml_recipes)/[\w./-]*", span)]
    assert [path for path in paths if not (ROOT / path).exists()] == []


@every_document
def test_every_make_target_exists(name):
    targets = {target for piece in code(TEXTS[name]) for target in re.findall(r"\bmake ([a-z][\w-]*)", piece)}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


@both_languages
def test_the_readme_names_both_make_targets(folder):
    text = of_language(folder)
    assert {"quickstart", "test"} <= {target for piece in code(text) for target in re.findall(r"\bmake (\w+)", piece)}


@every_document
def test_every_ledpo_command_exists(name):
    parser = build_parser()
    for words in commands(TEXTS[name]):
        arguments = [word for word in words[1:] if word != "..."]
        needed = NEEDED.get(" ".join(words[1:]), [])
        assert parser.parse_args(arguments + needed).command == words[1]


@both_languages
def test_the_usual_ledpo_commands_are_named(folder):
    named = {words[1] for words in commands(of_language(folder, "guide.md"))}
    assert {"validate", "beta", "doctor", "quickstart"} <= named


def commands(text: str) -> list[list[str]]:
    lines = [line for piece in code(text) for line in piece.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if re.match(r"ledpo [a-z]", line)]


@both_languages
def test_every_environment_variable_is_read_somewhere(folder):
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "ledpo_plugin").rglob("*.py"))
    pages = [path.name for path in (ROOT / folder).glob("*.md")]
    names = set(re.findall(r"\bLEDPO_[A-Z_]+", of_language(folder, *pages)))
    assert len(names) >= 2
    assert [name for name in names if name not in sources] == []


@both_languages
def test_versions_are_those_of_the_package_and_the_constraints(folder):
    text = of_language(folder, "host.md")
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
    (block,) = [body for language, body in FENCED.findall(TEXTS["README.md"]) if language == "yaml"]
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
    (block,) = [body for language, body in FENCED.findall(TEXTS["docs/rewards.md"]) if language == "yaml"]
    recipe = yaml.safe_load(block)
    assert check_recipe(recipe, host_arguments.recipe_keys(), {}, with_files=False) == []
    resolved = resolve_recipe(recipe)
    assert (resolved["advantage_estimator"], resolved["kl_control"], resolved["top_p"]) == ("gae", "fixed", 1.0)


@pytest.mark.parametrize("name, title", [("docs/findings.md", "Speed"), ("docs/zh/findings.md", "速度")])
def test_the_performance_tables_are_the_measured_ones(name, title):
    """Rows are copied from docs/performance.md, which benchmarks/speed.py writes; none is typed."""
    measured = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8").splitlines()
    section = re.split(rf"^## {title}$", TEXTS[name], flags=re.MULTILINE)[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert len(rows) > 8
    assert [row for row in rows if row not in measured] == []


@pytest.mark.parametrize("name", ["README.md", "README_zh.md"])
def test_the_ratios_of_the_readme_are_measured_ones(name):
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    measured = set(re.findall(r"\| ([\d.]+ x) \| (?:NOT )?reached", text))
    claimed = set(re.findall(r"[\d.]+ x\b", TEXTS[name]))
    assert len(claimed) >= 3
    assert claimed - measured == set()
