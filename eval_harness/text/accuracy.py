"""Whether a calculation came out right: the last number of an answer against that of the right one."""

import re
from decimal import Decimal

# Thousands may be separated by commas; a full stop at the end of a sentence is none of the number.
_NUMBER = re.compile(r"(?<![\w.])[-\N{MINUS SIGN}]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\d])")


def final_number(text: str) -> Decimal | None:
    """Return the last number of a text, None if it has none: 1,250.5 of "That makes 1,250.5 mL."."""
    found = _NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "").replace("\N{MINUS SIGN}", "-")) if found else None


def numeric_accuracy(output: str, answer: str) -> float:
    """Return 1 if the output's last number is the answer's to as many decimals as the answer has, else 0.

    Raises:
        ValueError: the answer has no number.
    """
    right = final_number(answer)
    if right is None:
        raise ValueError(f"The right answer {answer[:80]!r} has no number to compare with. Give one that ends in it.")
    given = final_number(output)
    if given is None:
        return 0.0
    half = Decimal(1).scaleb(right.as_tuple().exponent) / 2
    return float(abs(given - right) < half or given == right)
