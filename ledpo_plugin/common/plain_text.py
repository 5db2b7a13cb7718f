"""Text that others wrote (models, logs, data sets) made safe to show: nothing in it acts, everything in it is seen."""

import re
from html import unescape

# Direction of text, invisible marks, and line separators that only some programs break lines at.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)
_FENCE = re.compile("`+|~+")
_MARKED = re.compile(r"[\\`*\[\]|~$]|(?<!\w)_|_(?!\w)")


def visible(text: str) -> str:
    """Return the text with control characters, bidi overrides and other hidden characters written as [U+202E]."""
    return _HIDDEN.sub(lambda found: f"[U+{ord(found[0]):04X}]", text.replace("\r\n", "\n"))


def shortened(text: str, limit: int) -> str:
    """Return at most `limit` characters of the text, and how many were left out."""
    return text if len(text) <= limit else f"{text[:limit]} […{len(text) - limit:,} more characters]"


def fenced(text: str) -> str:
    """Return the text as a Markdown code block that nothing in it can end."""
    text = visible(text)
    longest = max((len(found) for found in _FENCE.findall(text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def from_markdown(line: str) -> str:
    """Return what a line that `markdown` wrote says."""
    return unescape(re.sub(r"\\(.)", r"\1", line))


def markdown(text: str) -> str:
    """Return the text as one line of Markdown in which nothing is markup: for paragraphs and cells of tables."""
    line = " ".join(visible(text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = _MARKED.sub(lambda found: "\\" + found[0], line)
    line = re.sub(r"^([#=]|[-+](?= ))", r"\\\1", line)
    return re.sub(r"^(\d+)([.)])(?= |$)", r"\1\\\2", line)
