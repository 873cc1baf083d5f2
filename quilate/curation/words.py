"""Words as every rule of curation counts them."""

from __future__ import annotations

import re

_TOKEN = re.compile(r"\w+(?:['’\-]\w+)*|[^\w\s]")


def tokens(text: str) -> list[str]:
    """Words (`vía`, `anti-HBc`, `d'Hebron`) and single punctuation marks, in order; spacing is lost."""
    return _TOKEN.findall(text)


def spans(text: str) -> list[tuple[int, int]]:
    """Where each of `tokens(text)` begins and ends."""
    return [match.span() for match in _TOKEN.finditer(text)]


def is_word(token: str) -> bool:
    """Whether a token is a word, not a punctuation mark."""
    return token[0].isalnum() or token[0] == "_"
