"""Documents that hold the development or test items of a task, by the rules of `quilate.tasks.leaks`."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable

from pydantic import Field

from quilate.config import Config
from quilate.tasks.leaks import OVERLAP_SHARE, ngrams, normalize


class BenchmarkConfig(Config):
    """Items that no document may hold, from a table of their own."""

    path: str
    """The table, relative to the recipe's folder."""
    text: str = "text"
    """The column with the item's text, or a Jinja template over the columns."""


class DecontaminateConfig(Config):
    """What the corpus is kept clean of, besides the recipe's own task."""

    against: list[BenchmarkConfig] = Field(default_factory=list)
    """Dev and test items of other tasks. Those of the recipe's task need not be named."""


class HeldOutItems:
    """Judges documents one at a time against all items.

    A document is contaminated if it, or a line of it, is an item (after normalization), or if 70 % of the 13-word
    n-grams of the shorter of the two occur in the other.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        items = sorted({normalize(text) for text in texts} - {""})
        self._whole = frozenset(items)
        grams = [ngrams(item) for item in items]
        self._sizes = [len(own) for own in grams]
        self._holders: dict[int, list[int]] = defaultdict(list)
        for index, own in enumerate(grams):
            for gram in own:
                self._holders[gram].append(index)

    def broken(self, text: str) -> str | None:
        """ "item" if the text holds an item whole, "overlap" if it overlaps with one, or None."""
        units = list(map(normalize, dict.fromkeys((text, *text.split("\n")))))
        if not self._whole.isdisjoint(units):
            return "item"
        for own in map(ngrams, units):
            shared = Counter(item for gram in own for item in self._holders.get(gram, ()))
            for item, count in shared.items():
                if count >= math.ceil(OVERLAP_SHARE * min(len(own), self._sizes[item])):
                    return "overlap"
        return None
