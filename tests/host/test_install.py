"""Installing the plugin must not harm LLaMA-Factory: its version is left alone, and stock stages run whatever fails."""

import json
import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
from conftest import cli, series, write_recipe
from packaging.requirements import Requirement

from ledpo_plugin import readiness
from ledpo_plugin.autoload import patches
from ledpo_plugin.host import contract
from ledpo_plugin.host.supported import HOST_RANGE

ROOT = Path(__file__).parents[2]
BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            raise ImportError("no such thing here: " + name)
        return None

sys.meta_path.insert(0, Blocked())
"""


def _without(folder: Path, name: str) -> dict[str, str]:
    """Return an environment in whose processes importing `name` fails, as on a host that lacks what it needs."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(BLOCK.format(name=name))
    before = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(folder), *([before] if before else [])])}


def test_the_range_stands_in_one_place_and_the_texts_say_the_same():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = next(Requirement(line) for line in project["dependencies"] if line.startswith("llamafactory"))
    assert wanted.specifier == Requirement(f"llamafactory{HOST_RANGE}").specifier
    for page in ("README.md", "README_zh.md", "docs/host.md", "docs/zh/host.md"):
        found = re.findall(r"llamafactory([<>=!~][^`' ]*)", (ROOT / page).read_text())
        assert found, page
        assert set(found) == {HOST_RANGE}, page
    for path in (ROOT / "ledpo_plugin").rglob("*.py"):
        if path.name != "supported.py":
            assert not re.search(r"llamafactory[<>]=?\d", path.read_text()), path


@pytest.mark.parametrize(
    "version,inside", [("0.9.5", True), ("0.9.6.dev0", True), ("0.9.6", True), ("0.9.4", False), ("0.9.7.dev0", False)]
)
def test_a_git_checkout_is_inside_the_range(monkeypatch, version, inside):
    monkeypatch.setattr(contract, "host_version", lambda: version)
    assert (not any("outside the tested range" in line for line in readiness.mismatches(to_run=False))) is inside


def test_pip_leaves_an_installed_git_checkout_alone(tmp_path):
    """The real pip, with every other dependency at hand: nothing but the plugin is to be installed."""
    venv.create(tmp_path / "env", with_pip=True)
    site = next((tmp_path / "env").glob("lib/python*/site-packages"))
    (site / "host.pth").write_text(next(p for p in sys.path if p.endswith("site-packages")) + "\n")
    info = site / "llamafactory-0.9.6.dev0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llamafactory\nVersion: 0.9.6.dev0\n")
    (info / "RECORD").write_text("")
    (info / "INSTALLER").write_text("pip\n")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    wheel = next(tmp_path.glob("*.whl"))
    pip = [str(tmp_path / "env" / "bin" / "python"), "-m", "pip", "install", "--no-index", "--dry-run", "--quiet"]
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [*pip, "--report", "-", str(wheel)], capture_output=True, text=True, check=False, cwd=tmp_path, env=environ
    )
    assert done.returncode == 0, done.stderr
    assert [item["metadata"]["name"] for item in json.loads(done.stdout)["install"]] == ["ledpo-plugin"]


# pair_attention is imported by what checks recipes, and asks transformers for a module that older ones lack;
# workflow by runs alone; hparams by ledpo_plugin.host.contract itself.
@pytest.mark.parametrize("missing", ["modeling.pair_attention", "workflow", "hparams"])
def test_an_import_that_fails_takes_no_stock_stage_down_and_refuses_ours_with_the_reason(tiny, tmp_path, missing):
    environ = _without(tmp_path / "site", f"ledpo_plugin.{missing}")
    stock = tiny.recipe(tmp_path / "stock", stage="dpo", max_steps=1)
    done = cli("train", write_recipe(tmp_path / "stock.yaml", stock), env=environ)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(series(tmp_path / "stock", "loss")) == 1

    ours = tiny.recipe(tmp_path / "ours", max_steps=1)
    done = cli("train", write_recipe(tmp_path / "ours.yaml", ours), env=environ)
    assert done.returncode != 0
    assert f"no such thing here: ledpo_plugin.{missing}" in done.stderr
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("missing", ["workflow", "hparams"])
def test_doctor_imports_what_a_run_imports(tmp_path, missing):
    environ = os.environ | _without(tmp_path / "site", f"ledpo_plugin.{missing}")
    command = [sys.executable, "-c", "import sys; from ledpo_plugin.cli import main; sys.exit(main(['doctor']))"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, cwd=tmp_path)
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert f"no such thing here: ledpo_plugin.{missing}" in said
    assert "will NOT run" in said


def test_a_stage_on_the_command_line_is_known_without_the_plugin_s_reader(monkeypatch):
    monkeypatch.setitem(sys.modules, "ledpo_plugin.recipes.check", None)
    assert patches._as_recipe(["--output_dir", "x", "--stage", "ledpo"]) == {"stage": "ledpo"}
    assert patches._as_recipe(["--stage=ledpo_ppo"]) == {"stage": "ledpo_ppo"}
    with pytest.raises(ImportError):
        patches._as_recipe(["--stage", "dpo"])
