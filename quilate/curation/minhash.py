"""Near-duplicates by MinHash and banding (Broder 1997; Leskovec, Rajaraman and Ullman, chapter 3).

A document is its set of runs of five words, in lower case, without punctuation and with every number as 0. The chance
that two documents with Jaccard similarity s share a band is 1 - (1 - s^rows)^bands. Documents that share one are taken
for duplicates, directly or through others; the first of each group stays.
"""

from __future__ import annotations

import hashlib
import re

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from quilate.config import Config
from quilate.curation.hashing import Hashes, hash_of, run_hashes
from quilate.rng import numpy_stream
from quilate.tasks.leaks import normalize

_NUMBER = re.compile(r"(?<!\w)\d+(?!\w)")
_ROWS_AT_ONCE = 4096  # guess: runs hashed at once, 4 MB with 112 hashes


class MinHashConfig(Config):
    """How alike near-duplicates are. With 14 bands of 8 a pair of similarity 0.72 is found with probability 0.64, of
    0.8 with 0.92, of 0.5 with 0.05."""

    words: int = Field(default=5, ge=1)
    """Words in a run."""
    bands: int = Field(default=14, ge=1)
    """Bands; more of them find less similar pairs."""
    rows: int = Field(default=8, ge=1)
    """Hashes in a band; more of them find only more similar pairs."""


def shingles(text: str, length: int) -> Hashes:
    """The set of a text's runs of words, as hashes; of a shorter text one hash of it all."""
    words = _NUMBER.sub("0", normalize(text)).split()
    if len(words) < length:
        return np.array([hash_of(" ".join(words))], np.uint64)
    return np.unique(run_hashes(words, length))


class MinHasher:
    """Signatures of documents."""

    def __init__(self, config: MinHashConfig) -> None:
        self._config = config
        draw = numpy_stream(0, "minhash")
        size = config.bands * config.rows
        self._factors = draw.integers(0, 2**64, size, np.uint64) | np.uint64(1)
        self._shifts = draw.integers(0, 2**64, size, np.uint64)

    def signature(self, text: str) -> NDArray[np.uint32]:
        """The least value of every hash function over the text's runs; shape (bands * rows)."""
        runs = shingles(text, self._config.words)
        least = np.full(len(self._factors), 2**32 - 1, np.uint32)
        with np.errstate(over="ignore"):
            for start in range(0, len(runs), _ROWS_AT_ONCE):
                values = runs[start : start + _ROWS_AT_ONCE, None] * self._factors + self._shifts
                least = np.minimum(least, (values >> np.uint64(32)).astype(np.uint32).min(axis=0))
        return least

    def bands(self, text: str) -> Hashes:
        """One hash a band; shape (bands)."""
        rows = self.signature(text).reshape(self._config.bands, -1)
        digests = (hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows)
        return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def first_of_each_group(bands: Hashes) -> NDArray[np.int64]:
    """For each document the first one of its group; itself if it has no duplicate before it.

    Args:
        bands: shape (documents, bands). One column is sorted at a time.
    """
    parent = np.arange(len(bands), dtype=np.int64)

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = int(parent[index])
        return index

    for band in range(bands.shape[1]):
        column = np.ascontiguousarray(bands[:, band])
        order = np.argsort(column, kind="stable")
        same = np.flatnonzero(column[order[1:]] == column[order[:-1]])
        for one, other in zip(order[same].tolist(), order[same + 1].tolist(), strict=True):
            low, high = sorted((root(one), root(other)))
            parent[high] = low
    return np.array([root(index) for index in range(len(bands))], np.int64)
