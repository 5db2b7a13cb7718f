"""In which order an annotator sees the items, and which output on which side: shuffled, and the same every time."""

import hashlib
import hmac
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from .items import Item


@dataclass(frozen=True)
class Shown:
    """An item as one annotator sees it.

    `token` stands for it on the page. It tells nothing of the generators, and differs by annotator and by side: what
    is judged under one token can mean nothing else.
    """

    token: str
    item: Item
    left: str

    @property
    def right(self) -> str:
        """The generator of the output on the right."""
        return next(name for name in self.item.generators if name != self.left)

    @property
    def texts(self) -> tuple[str, str]:
        """The outputs, left and right."""
        return self.item.output_of(self.left), self.item.output_of(self.right)

    def winner(self, choice: str) -> str | None:
        """Return the generator that "left" or "right" stands for, None for "tie"."""
        return {"left": self.left, "right": self.right, "tie": None}[choice]


def assign(items: Iterable[Item], annotator: str, seed: int) -> tuple[Shown, ...]:
    """Return all items in one annotator's order, with sides.

    The order of `items` does not matter. Of every two generators, each is on the left in half of their items (by one
    more or less if their number is odd), so that a liking for one side favours nobody.
    """
    pairs: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for item in items:
        pairs[tuple(sorted(item.generators))].append(item)
    shown = []
    for generators, together in pairs.items():
        together.sort(key=lambda item: _mark(seed, annotator, "side", item.id))
        odd_one = int(_mark(seed, annotator, "odd", *generators), 16) % 2
        for number, item in enumerate(together):
            left = generators[(number + odd_one) % 2]
            shown.append(Shown(_mark(seed, annotator, "token", item.id, left)[:32], item, left))
    return tuple(sorted(shown, key=lambda one: _mark(seed, annotator, "order", one.item.id)))


def _mark(seed: int, *parts: str) -> str:
    # Keyed by the seed: who knows the outputs' names but not the seed cannot work out the sides.
    text = "\0".join(parts).encode("utf-8", "surrogatepass")
    return hmac.new(str(seed).encode(), text, hashlib.sha256).hexdigest()
