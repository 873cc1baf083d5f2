"""Passages that stand in the corpus more than once (Lee et al. 2021, arXiv:2107.06499), all but the first taken out.

Every run of 50 tokens that occurred before, anywhere, is found by its hash, which finds the same passages as a suffix
array cut at 50: a passage of n >= 50 tokens is n - 49 such runs one after another. Hashes are written to disk in
parts by value and each part is sorted in memory, so memory stays bounded and disk takes 16 bytes a token.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from quilate.config import Config
from quilate.curation import words
from quilate.curation.hashing import run_hashes
from quilate.files import make_folder

_PARTS = 64
_BUFFERED = 2**15  # runs kept of each part before they are written: 32 MB in all
_RECORD = np.dtype([("hash", "<u8"), ("position", "<u8")])


class SubstringConfig(Config):
    """Which repeated passages are cut."""

    tokens: int = Field(default=50, ge=10)
    """Shortest passage that is cut, in words and punctuation marks (RefinedWeb's 50, there of a GPT-2 tokenizer)."""
    min_characters: int = Field(default=20, ge=0)
    """A document of which less is left is dropped (Lee et al.)."""


class RepeatedRuns:
    """Finds the runs that occurred before. Positions count tokens over all documents, in the order they were added."""

    def __init__(self, folder: Path, length: int) -> None:
        self._folder = make_folder(folder)
        self._length = length
        self._pending: list[list[NDArray[np.void]]] = [[] for _ in range(_PARTS)]
        self._waiting = [0] * _PARTS
        self.size = 0

    def add(self, text: str) -> None:
        """Add the next document."""
        tokens = words.tokens(text)
        hashes = run_hashes(tokens, self._length)
        records = np.empty(len(hashes), _RECORD)
        records["hash"] = hashes
        records["position"] = self.size + np.arange(len(hashes), dtype=np.uint64)
        self.size += len(tokens)
        parts = (hashes >> np.uint64(58)).astype(np.int64)  # 64 parts
        order = np.argsort(parts, kind="stable")
        borders = np.searchsorted(parts[order], np.arange(_PARTS + 1))
        for part in np.unique(parts).tolist():
            self._pending[part].append(records[order[borders[part] : borders[part + 1]]])
            self._waiting[part] += int(borders[part + 1] - borders[part])
            if self._waiting[part] >= _BUFFERED:
                self._write(part)

    def _write(self, part: int) -> None:
        with (self._folder / f"{part:02d}").open("ab") as file:
            for records in self._pending[part]:
                file.write(records.tobytes())
        self._pending[part], self._waiting[part] = [], 0

    def repeated(self) -> NDArray[np.bool_]:
        """For every position whether the run that begins there occurred before; the files are then removed."""
        result = np.zeros(self.size, np.bool_)
        for part in range(_PARTS):
            self._write(part)
            records = np.fromfile(self._folder / f"{part:02d}", _RECORD)
            order = np.argsort(records["hash"], kind="stable")
            hashes, positions = records["hash"][order], records["position"][order]
            result[positions[1:][hashes[1:] == hashes[:-1]]] = True
        shutil.rmtree(self._folder)
        return result


def cut(text: str, repeated: Sequence[bool] | NDArray[np.bool_], length: int) -> tuple[str, int]:
    """The text without its repeated passages, and how many there were.

    Args:
        repeated: for every token whether the run of `length` that begins there occurred before.
    """
    begins = np.flatnonzero(np.asarray(repeated))
    if not len(begins):
        return text, 0
    spans = words.spans(text)
    breaks = np.flatnonzero(np.diff(begins) > length)  # passages that touch are one
    first, last = begins[np.r_[0, breaks + 1]], begins[np.r_[breaks, len(begins) - 1]] + length - 1
    parts: list[str] = []
    position = 0
    for begin, end in zip(first.tolist(), last.tolist(), strict=True):
        parts.append(text[position : spans[begin][0]])
        position = spans[end][1]
    parts.append(text[position:])
    kept = [part.strip() for part in parts if part.strip()]
    return "\n".join(kept), len(first)
