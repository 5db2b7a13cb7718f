"""The site: `make docs` builds the Markdown files of this repository, strictly and without a network.

Why Sphinx with MyST: a link means the same here as where the files are read one by one, with ARCHITECTURE.md, recipes
and scripts outside of docs/ as well; every link, anchor and Python name is checked; and pages, fonts, search and
scripts come from the build alone, so that the site opens from disk. Material for MkDocs is no longer developed, and
Zensical, its successor, is an alpha that refuses links out of its folder.
"""

import re
from pathlib import Path

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

project = "LEDPO"
author = copyright = "the LEDPO authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

# The source folder is the root of the repository.
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md", "yaml_recipes/README.md"]
exclude_patterns = [".*", "runs", "site", "dist", "build"]

html_theme = "furo"
html_title = "LEDPO"
html_copy_source = False
html_show_sphinx = False

myst_heading_anchors = 4  # as on GitHub: `page.md#a-heading`
myst_enable_extensions = ["tasklist"]

autodoc_member_order = "bysource"
autodoc_mock_imports = ["accelerate", "peft", "transformers"]  # slow to import, and nothing shown here is of them
autodoc_typehints = "signature"
napoleon_google_docstring = True

# Every Python name must be known, but for those of other packages, whose documentation is on the network.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!ledpo_plugin\b|eval_harness\b).*")]

_CODE = re.compile(r"(`[^`]+`)")


def _as_text(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Take docstrings as they are written: plain text with `code`, in which |y|, x* and y_w are no markup."""
    for number, line in enumerate(lines):
        parts = _CODE.split(line)
        parts[::2] = [re.sub(r"([\\*|]|_(?!\w))", r"\\\1", part) for part in parts[::2]]
        parts[1::2] = [f"`{part}`" for part in parts[1::2]]
        lines[number] = "".join(parts)


def _entrance(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.name == "html":
        page = f'<!DOCTYPE html><meta http-equiv="refresh" content="0; url={root_doc}.html"><title>LEDPO</title>\n'
        (Path(app.outdir) / "index.html").write_text(page, encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Hook the two functions above in; GitHub draws Mermaid, here it is shown as text, as its script is not local."""
    app.add_lexer("mermaid", TextLexer)
    app.connect("autodoc-process-docstring", _as_text, priority=400)  # before napoleon
    app.connect("build-finished", _entrance)
