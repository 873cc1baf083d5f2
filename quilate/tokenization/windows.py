"""Documents longer than a model's context: tokens with their place in the text, and windows that overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from transformers import PreTrainedTokenizerBase

from quilate.errors import ModelError

OVERLAP_SHARE = 0.25  # guess: an entity and its surroundings are far shorter than a quarter of a window


@dataclass(frozen=True)
class PlacedTokens:
    """A text's tokens, without special ones. Shapes: T tokens.

    Attributes:
        ids: [T] int64.
        starts, ends: [T] character offsets without the white space that a token may carry; equal for a token that is
            nothing else.
    """

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def placed_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> PlacedTokens:
    """Tokenize a text, however long, and say where each token stands.

    Raises:
        ModelError: the tokenizer is not a fast one, and so does not know.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            f"{type(tokenizer).__name__} does not say where its tokens stand in the text",
            hint="use a model with a tokenizer.json (a fast tokenizer)",
        )
    encoded = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
    )
    starts, ends = [], []
    for start, end in encoded["offset_mapping"]:
        word = text[start:end]
        left = len(word) - len(word.lstrip())
        starts.append(start + left if word.strip() else start)
        ends.append(start + left + len(word.strip()) if word.strip() else start)
    return PlacedTokens(np.array(encoded["input_ids"], dtype=np.int64), np.array(starts, int), np.array(ends, int))


@dataclass(frozen=True)
class Window:
    """Tokens [start, stop) are read; what is said of those in [own_start, own_stop) counts. The windows of a document
    own each of its tokens once."""

    start: int
    stop: int
    own_start: int
    own_stop: int


def windows(length: int, size: int, *, both_sides: bool) -> list[Window]:
    """Cover `length` tokens by windows of at most `size`, neighbours sharing at least `OVERLAP_SHARE` of it.

    A token that two windows share belongs to the one that shows it more context: with `both_sides` (masked models) the
    one whose border is further away; else (causal models, which see the left only) the earlier one.
    """
    step = max(1, size - int(size * OVERLAP_SHARE))
    starts = [*range(0, max(length - size, 0), step), max(length - size, 0)]
    stops = [min(start + size, length) for start in starts]
    borders = [0]
    for stop, following in zip(stops, starts[1:], strict=False):
        borders.append((following + stop) // 2 if both_sides else stop)
    borders.append(length)
    read = zip(starts, stops, strict=True)
    return [Window(*tokens, *own) for tokens, own in zip(read, pairwise(borders), strict=True)]


@dataclass(frozen=True)
class Piece:
    """What a model reads of a text at once, and the share of the text's tokens that is its own; shares sum to 1."""

    tokens: list[int]
    share: float


def pieces(tokens: Sequence[int], opening: Sequence[int], size: int) -> list[Piece]:
    """A text of any length as pieces of at most `size` tokens, each beginning as the text does.

    Args:
        tokens: the whole text's, `opening` first.
        opening: what the tokenizer puts before every text.
    """
    if len(tokens) <= size:
        return [Piece(list(tokens), 1.0)]
    own = tokens[len(opening) :]
    found = windows(len(own), max(1, size - len(opening)), both_sides=False)
    return [Piece([*opening, *own[w.start : w.stop]], (w.own_stop - w.own_start) / len(own)) for w in found]
