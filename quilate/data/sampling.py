"""A part of many examples."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def draw(found: Sequence[T], limit: int | None, content: Callable[[T], str]) -> list[T]:
    """At most `limit` of them (None for all), in the order that they had.

    Which ones is drawn from their content and not from their places: a file sorted by source, length or date gives no
    other part than the same file shuffled, and a row more changes at most one of those drawn.
    """
    if limit is None or len(found) <= limit:
        return list(found)
    places = sorted(range(len(found)), key=lambda place: hashlib.sha256(content(found[place]).encode()).digest())
    return [found[place] for place in sorted(places[:limit])]
