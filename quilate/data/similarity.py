"""How near texts are to one another: documents by TF-IDF, domains by the words they share (Gururangan et al. 2020)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

FREQUENT = 10_000  # words of a domain that are compared (Gururangan et al. 2020, section 3.1)
QUERIES_AT_ONCE = 64  # against a million documents: a quarter of a gigabyte of similarities
_WORD = re.compile(r"[^\W\d_]+")


def nearest_documents(queries: Sequence[str], documents: Sequence[str], k: int) -> list[int]:
    """The documents that are among the `k` nearest to some query by cosine of TF-IDF vectors, in their order.

    kNN-TAPT of Gururangan et al. (2020, section 4.2), who embed with VAMPIRE, itself made from bags of words. A
    document that shares no word with any query is near none.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, dtype=np.float32)
    rows = vectorizer.fit_transform(documents)
    wanted = vectorizer.transform(queries)
    near: set[int] = set()
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        similar: NDArray[np.float32] = (wanted[start : start + QUERIES_AT_ONCE] @ rows.T).toarray()
        best = np.argsort(-similar, axis=1, kind="stable")[:, :k]
        found = np.take_along_axis(similar, best, axis=1) > 0
        near |= set(best[found].tolist())
    return sorted(near)


@cache
def stop_words(language: str | None) -> frozenset[str]:
    """The function words of a language; none for one without a list."""
    path = files("quilate.data").joinpath("stop_words", f"{language}.txt")
    return frozenset(path.read_text(encoding="utf-8").split()) if path.is_file() else frozenset()


def frequent_words(texts: Iterable[str], language: str | None, most: int = FREQUENT) -> list[str]:
    """The most frequent words, function words left out, the most frequent first; equally frequent ones by name."""
    counts = Counter(word for text in texts for word in _WORD.findall(text.lower()))
    for word in stop_words(language):
        del counts[word]
    return sorted(counts, key=lambda word: (-counts[word], word))[:most]


def vocabulary_overlap(a: Sequence[str], b: Sequence[str]) -> float:
    """The share of frequent words that two domains have in common.

    Args:
        a, b: from `frequent_words`; of the longer list only as many are compared as the shorter has.
    """
    size = min(len(a), len(b))
    return len(set(a[:size]) & set(b[:size])) / size if size else 0.0
