"""The site is built strictly: what `make docs` runs fails on a broken link, a missing anchor and an unknown name.

The site of the repository itself is built by `make test`; here the same settings build a small one, in a moment.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sphinx")
ROOT = Path(__file__).parents[1]
GOOD = """# Page

[a file](../Makefile) [a heading](index.md#site) [another page](../README.md)

```{eval-rst}
.. autofunction:: ledpo_plugin.common.stats.holm

See :func:`ledpo_plugin.common.stats.holm`.
```
"""
BROKEN = {
    "a broken link": ("(../Makefile)", "(../Makefail)", "target not found: '../Makefail'"),
    "a missing anchor": ("(index.md#site)", "(index.md#cite)", "'cite'"),
    "a page outside of docs/ that is gone": ("(../README.md)", "(../READYOU.md)", "target not found: '../READYOU.md'"),
    "no such function": ("autofunction:: ledpo_plugin.common.stats.holm", "autofunction:: ledpo_plugin.common.stats.ho",
                         "failed to import 'ho' from module 'ledpo_plugin.common.stats'"),
    "a name in a text that is not in the code": (":func:`ledpo_plugin.common.stats.holm`",
                                                 ":func:`ledpo_plugin.common.stats.hulm`",
                                                 "target not found: ledpo_plugin.common.stats.hulm"),
}  # fmt: skip


def command() -> list[str]:
    """What `make docs` runs, here."""
    line = re.search(r"^docs:.*\n\t@\$\(OFFLINE\) \$\(BIN\)/sphinx-build (.*)$", (ROOT / "Makefile").read_text(), re.M)
    return [sys.executable, "-m", "sphinx", *shlex.split(line[1])]


def build(folder: Path, page: str) -> subprocess.CompletedProcess:
    (folder / "docs").mkdir(parents=True)
    shutil.copy(ROOT / "docs" / "conf.py", folder / "docs")
    (folder / "Makefile").write_text("all:\n")
    (folder / "README.md").write_text("# Read me\n")
    (folder / "docs" / "index.md").write_text("# Site\n\n```{toctree}\n../README\npage\n```\n")
    (folder / "docs" / "page.md").write_text(page)
    # No proxy answers there: whoever asks the network fails.
    unreachable = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, **unreachable, "PYTHONPATH": path}
    return subprocess.run(command(), cwd=folder, env=env, capture_output=True, text=True)


def test_make_test_builds_the_site():
    assert re.search(r"^test:.*\bdocs\b", (ROOT / "Makefile").read_text(), re.M)
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith("\nmake test")
    assert "site/" in (ROOT / ".gitignore").read_text().split()
    assert {"-W", "-E"} <= set(command())


def test_a_good_site_is_built_and_needs_nothing_from_elsewhere(tmp_path):
    done = build(tmp_path, GOOD)
    assert done.returncode == 0, done.stderr
    html = (tmp_path / "site/docs/page.html").read_text(encoding="utf-8")
    assert 'id="ledpo_plugin.common.stats.holm"' in html
    for page in (tmp_path / "site").rglob("*.html"):
        assert not re.search(r"(?:src|<link[^>]*href)=.https?:", page.read_text(encoding="utf-8")), page
    for style in (tmp_path / "site").rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*.?https?:", style.read_text(encoding="utf-8")), style
    entrance = (tmp_path / "site/index.html").read_text()
    assert (tmp_path / "site" / re.search(r"url=([^\"]+)", entrance)[1]).is_file()


@pytest.mark.parametrize("fault", BROKEN)
def test_a_planted_fault_fails_the_build(tmp_path, fault):
    good, bad, message = BROKEN[fault]
    assert GOOD.count(good) == 1
    done = build(tmp_path, GOOD.replace(good, bad))
    assert done.returncode != 0
    assert message in done.stderr
