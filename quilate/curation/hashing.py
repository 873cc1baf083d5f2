"""64-bit hashes of words and of runs of words, the same in every process."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_BASE = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio, odd, so that it has an inverse modulo 2^64
_INVERSE = pow(_BASE, -1, 2**64)


@lru_cache(maxsize=2**18)  # about 30 MB; the words of running text repeat
def hash_of(text: str) -> int:
    """The first 64 bits of BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def run_hashes(words: Sequence[str], length: int) -> Hashes:
    """The hash of every run of `length` words, in order: sum of hash(word i) * base^i over the run, modulo 2^64.

    Of running sums, so its cost does not grow with `length` (Karp and Rabin 1987). Two different runs among n have
    one hash with probability of about n^2 / 2^65: 3 % for the whole of a billion words.
    """
    count = len(words) - length + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    ids = np.fromiter(map(hash_of, words), np.uint64, len(words))
    with np.errstate(over="ignore"):
        powers = _powers(_BASE, len(words))
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(ids * powers, dtype=np.uint64)])
        result: Hashes = (sums[length:] - sums[:-length]) * _powers(_INVERSE, count)
    return result


def _powers(base: int, count: int) -> Hashes:
    factors = np.full(count, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)
