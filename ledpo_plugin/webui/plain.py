"""Text of unknown origin in a Markdown element: it stays text."""

import re

_HARMLESS = " .,;()'\n"


def as_markdown(text: str) -> str:
    """Return Markdown that shows a text as it is: no markup, HTML, link or formula in it acts; lines stay lines.

    Signs that could mean something are written as character references, which Markdown and HTML show and never obey.
    Numbered lines stay a list.
    """
    lines = [line.rstrip() for line in text.splitlines()]
    return "\n\n".join(_line(line) for line in lines if line)


def _line(line: str) -> str:
    numbered = re.match(r"\d+\. ", line)
    start = numbered.group() if numbered else ""
    rest = line.removeprefix(start)
    if not start and rest[:1] in " -":
        rest = "\u2022 " + rest.lstrip(" -")
    return start + "".join(char if char.isalnum() or char in _HARMLESS else f"&#{ord(char)};" for char in rest)


def fenced(markdown: str) -> str:
    """Return a block of code, as LlamaBoard makes it, in a fence that nothing in it can close."""
    opening, _, rest = markdown.partition("\n")
    body, _, closing = rest.rpartition("\n")
    if not opening.startswith("```") or closing != "```":
        return markdown
    longest = max((len(run) for run in re.findall(r"`+", body)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{opening.lstrip('`')}\n{body}\n{fence}"
