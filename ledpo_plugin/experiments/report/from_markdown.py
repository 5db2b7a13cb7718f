"""The Markdown of a report as HTML again, for the sections of which nothing else is left.

It reads what `report.md.j2` writes and no more. Every text is escaped; pictures are the plots beside the report.
"""

import re
from collections.abc import Iterator
from html import escape, unescape
from pathlib import Path

PLOTS = "plots"  # the folder of pictures, beside report.md

_FENCE = re.compile(r"(`{3,}|~{3,})\w*$")
_IMAGE = re.compile(rf"!\[.*\]\(({PLOTS}/[\w.-]+\.svg)\)$")
_MARK = re.compile(r"\\(.)|(\*\*)", re.DOTALL)


def as_html(text: str, folder: Path) -> str:
    """Return a section of report.md as HTML.

    Args:
        text: the section, without its heading.
        folder: where report.md is. A picture that is not there is left out; its caption stays.
    """
    blocks = list(_blocks(text.split("\n")))
    made = []
    while blocks:
        block = blocks.pop(0)
        picture = _IMAGE.match(block[0])
        if picture:
            file = folder / picture[1]
            caption = _inline(" ".join(blocks.pop(0))) if blocks else ""
            svg = file.read_text(encoding="utf-8") if file.is_file() else ""
            made.append(f'<div class="plots">\n<figure>\n{svg}\n<figcaption>{caption}</figcaption>\n</figure>\n</div>')
        else:
            made.append(_block(block))
    return "\n".join(made)


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    """Yield the paragraphs, tables, lists, code blocks and single tags of a text, each as its lines."""
    block: list[str] = []
    fence = None
    for line in lines:
        opened = _FENCE.match(line)
        if fence is not None:
            block.append(line)
            if line == fence:
                yield block
                block, fence = [], None
        elif opened or not line or line.startswith(("<details>", "</details>")):
            if block:
                yield block
            block = [line] if line else []
            fence = opened[1] if opened else None
            if line and not opened:
                yield block
                block = []
        else:
            block.append(line)
    if block:
        yield block


def _block(lines: list[str]) -> str:
    first = lines[0]
    if _FENCE.match(first):
        return f'<pre dir="auto">{escape(chr(10).join(lines[1:-1]))}</pre>'
    folded = re.fullmatch(r"<details><summary>(.*)</summary>", first)
    if folded:
        return f"<details>\n<summary>{_inline(folded[1])}</summary>"
    if first == "</details>":
        return first
    if first.startswith("### "):
        return f"<h3>{_inline(first[4:])}</h3>"
    if first.startswith("|") and len(lines) > 1:
        return _table(lines)
    if first.startswith("- "):
        return "<ul>\n" + "\n".join(f"<li>{_inline(line[2:])}</li>" for line in lines) + "\n</ul>"
    return f"<p>{_inline(' '.join(lines))}</p>"


def _table(lines: list[str]) -> str:
    head, marks, *rows = ([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines)
    kinds = ["number" if mark.endswith(":") else "words" for mark in marks]

    def row(cells: list[str], tag: str) -> str:
        pairs = zip(cells, kinds, strict=False)
        return "<tr>" + "".join(f'<{tag} class="{kind}">{_inline(cell)}</{tag}>' for cell, kind in pairs) + "</tr>"

    above = f"<thead>{row(head, 'th')}</thead>\n" if any(head) else ""
    body = "\n".join(row(cells, "td") for cells in rows)
    return f'<div class="table" tabindex="0">\n<table>\n{above}<tbody>\n{body}\n</tbody>\n</table>\n</div>'


def _inline(text: str) -> str:
    """Return a line as HTML: what is escaped in it as it reads, what stands between two pairs of asterisks strong."""
    strong = False

    def one(found: re.Match[str]) -> str:
        nonlocal strong
        if found[1]:
            return escape(found[1])
        strong = not strong
        return "<strong>" if strong else "</strong>"

    made = _MARK.sub(one, escape(unescape(text), quote=False))
    return made + "</strong>" * strong
