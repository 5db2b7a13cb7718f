"""`ledpo beta RUN --prompts FILE`: beta(x) of prompts, by a trained run."""

from collections.abc import Sequence
from typing import Any


def table(rows: Sequence[dict[str, Any]], width: int = 80) -> str:
    """Return the rows as a table, highest beta first; control characters of prompts are escaped."""
    lines = ["      beta  prompt"]
    for row in sorted(rows, key=lambda item: -item["beta"]):
        text = " ".join(row["prompt"].split())
        text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
        lines.append(f"{row['beta']:10.4g}  {text if len(text) <= width else text[: width - 1] + '…'}")
    return "\n".join(lines)
