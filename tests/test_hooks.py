"""The hooks before a commit: each one that reads files refuses a bad one, and runs from .venv without a download."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
HOOKS = {
    hook["id"]: hook
    for repository in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    for hook in repository["hooks"]
}
# Hook -> the name of a file, a good content, a bad one.
FILES = {
    "trailing-whitespace": ("a.md", "a\n", "a \n"),
    "end-of-file": ("a.md", "a\n", "a"),
    "yaml": ("a.yaml", "a: !tag [1]\n", "a: [1\n"),
    "spelling": ("a.md", "the separate\n", "the " + "sep" + "erate\n"),
}


def test_nothing_is_downloaded():
    text = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repository["repo"] for repository in text["repos"]] == ["local"]
    assert {hook["language"] for hook in HOOKS.values()} == {"system"}
    assert {*FILES, "large-files"} <= set(HOOKS)


@pytest.mark.parametrize("name", FILES)
def test_a_hook_refuses_a_bad_file_and_passes_a_good_one(tmp_path, name):
    file, good, bad = FILES[name]
    program, *options = shlex.split(HOOKS[name]["entry"])
    command = [str(Path(sys.executable).parent / Path(program).name), *options, str(tmp_path / file)]
    for content, status in ((good, 0), (bad, 1)):
        (tmp_path / file).write_text(content)
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert bool(done.returncode) == bool(status), done.stdout + done.stderr


def test_large_files_are_refused_above_what_the_largest_one_has(tmp_path):
    program, *options = shlex.split(HOOKS["large-files"]["entry"])
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "a.bin").write_bytes(b"0" * 800_000)
    subprocess.run(["git", "add", "a.bin"], cwd=tmp_path, check=True)
    command = [str(Path(sys.executable).parent / Path(program).name), *options, "a.bin"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "a.bin" in done.stdout
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout: what is tracked is not known")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    sizes = [(ROOT / path).stat().st_size for path in filter(None, tracked.stdout.split("\0"))]
    assert max(sizes) < 700 * 1024
    assert sum(sizes) < 15_000_000, "a checkout is to stay under 15 MB"
