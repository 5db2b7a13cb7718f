"""A report that was written before, taken apart: the sections that cannot be made anew without the runs' files."""

import re
from collections.abc import Mapping
from html import unescape
from pathlib import Path

from ledpo_plugin.common.plain_text import from_markdown

from .blocks import Kept, Section
from .from_markdown import as_html

_SECTION = re.compile(
    r'^<section id="([^"]+)">\n<h2>(.*?)</h2>\n(.*?)\n</section>\n(?=<section id="|</main>)', re.DOTALL | re.MULTILINE
)
_TITLE = re.compile(r"^<h1>(.*?)</h1>$", re.MULTILINE)
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


def earlier(html: Path, markdown: Path, names: Mapping[str, str]) -> tuple[str | None, dict[str, Section]]:
    """Return the title of a report and its sections by name; None and none where it is not there.

    Where the page is gone and the text is not, the sections are those of the text, set as HTML anew.

    Args:
        html: report.html.
        markdown: report.md.
        names: title -> name of the sections that every report may have; others are named after their titles.

    Raises:
        ValueError: the two files do not have the same sections.
    """
    if not markdown.is_file():
        return None, {}
    text = markdown.read_text(encoding="utf-8")
    if not html.is_file():
        return _of_text(text, markdown.parent, names)
    page = html.read_text(encoding="utf-8")
    title = _TITLE.search(page)
    of_page = [(name, unescape(head), body) for name, head, body in _SECTION.findall(page)]
    of_text = _parts(text)
    if [head for _, head, _ in of_page] != [head for head, _ in of_text]:
        raise ValueError(
            f"{html} and {markdown} are not of one report: their sections differ. Take both from where it was written, "
            "or delete both, and the report is written without what only they hold."
        )
    found = {
        name: Section(name, head, [Kept(body, own)])
        for (name, head, body), (_, own) in zip(of_page, of_text, strict=True)
    }
    return unescape(title[1]) if title else None, found


def _of_text(text: str, folder: Path, names: Mapping[str, str]) -> tuple[str | None, dict[str, Section]]:
    found = {}
    for head, own in _parts(text):
        title = from_markdown(head)
        name = names.get(title) or re.sub(r"\W+", "-", title.lower())
        found[name] = Section(name, title, [Kept(as_html(own, folder), own)])
    first = text.split("\n", 1)[0]
    return (from_markdown(first[2:]) if first.startswith("# ") else None), found


def _parts(text: str) -> list[tuple[str, str]]:
    """Return title and text of every section; what looks like a heading inside of a code block is none."""
    found: list[tuple[str, list[str]]] = []
    fence = None
    for line in text.split("\n"):
        run = _FENCE.match(line)
        if fence is None and line.startswith("## "):
            found.append((line[3:], []))
            continue
        if fence is None:
            if run and not (run[1][0] == "`" and "`" in line[run.end() :]):
                fence = run[1]
        elif run and run[1][0] == fence[0] and len(run[1]) >= len(fence) and not line[run.end() :].strip():
            fence = None
        if found:
            found[-1][1].append(line)
    # Sections are set apart by an empty line, which the next one brings along.
    return [(title, "\n".join(lines).removesuffix("\n")) for title, lines in found]
