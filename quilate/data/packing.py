"""Packing: many documents side by side in one row of tokens, none of them seeing another.

Shapes: T tokens in the batch, S supervised positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Example:
    """One tokenized document.

    For a causal model `answers` is None and `supervised[i]` says that token i is a target, predicted from the tokens
    before it; token 0 has nothing before it and is never a target. For a masked model `answers[i]` is what stood where
    `tokens[i]` now stands, and `supervised[i]` says that it is to be predicted there.
    """

    id: str
    tokens: np.ndarray
    supervised: np.ndarray
    answers: np.ndarray | None = None

    def __post_init__(self) -> None:
        assert self.tokens.shape == self.supervised.shape and self.supervised.dtype == bool

    @property
    def supervised_tokens(self) -> int:
        return len(self.targets()[0])

    def targets(self) -> tuple[np.ndarray, np.ndarray]:
        """The positions that predict, and what each is to predict."""
        if self.answers is None:
            where = np.flatnonzero(self.supervised[1:]) + 1
            return where - 1, self.tokens[where]
        where = np.flatnonzero(self.supervised)
        return where, self.answers[where]


@dataclass(frozen=True)
class PackedBatch:
    """Documents laid end to end, or such that share what they begin with.

    Attributes:
        input_ids: [1, T] int64.
        position_ids: [1, T] int64, from 0 in every document.
        lengths: the documents' lengths, in order; they sum to T, where no two share tokens.
        source_positions: [S], where in T the hidden state stands that predicts each target.
        targets: [S] int64.
        ids: the documents' ids, in order.
        places: [sum of lengths] int64, where in T each token of each document stands; None where they share none.
    """

    input_ids: Tensor
    position_ids: Tensor
    lengths: tuple[int, ...]
    source_positions: Tensor
    targets: Tensor
    ids: tuple[str, ...]
    places: Tensor | None = None

    @property
    def tokens(self) -> int:
        return self.input_ids.shape[1]

    @property
    def supervised_tokens(self) -> int:
        return self.targets.shape[0]

    @property
    def weight(self) -> int:
        return self.supervised_tokens

    def to(self, device: torch.device) -> PackedBatch:
        moved = (t.to(device, non_blocking=True) for t in (self.input_ids, self.position_ids))
        input_ids, position_ids = moved
        return PackedBatch(
            input_ids,
            position_ids,
            self.lengths,
            self.source_positions.to(device, non_blocking=True),
            self.targets.to(device, non_blocking=True),
            self.ids,
            None if self.places is None else self.places.to(device, non_blocking=True),
        )


def pack(examples: Sequence[Example]) -> PackedBatch:
    """Lay documents end to end, longest first (attention then runs on groups of nearly equal length)."""
    ordered = sorted(examples, key=lambda e: -len(e.tokens))
    lengths = tuple(len(e.tokens) for e in ordered)
    starts = np.cumsum((0, *lengths[:-1]))
    positions = np.concatenate([np.arange(n) for n in lengths])
    targets, sources = [], []
    for start, example in zip(starts, ordered, strict=True):
        positions_in_document, answers = example.targets()
        targets.append(answers)
        sources.append(start + positions_in_document)
    return PackedBatch(
        input_ids=torch.from_numpy(np.concatenate([e.tokens for e in ordered]).astype(np.int64))[None],
        position_ids=torch.from_numpy(positions.astype(np.int64))[None],
        lengths=lengths,
        source_positions=torch.from_numpy(np.concatenate(sources).astype(np.int64)),
        targets=torch.from_numpy(np.concatenate(targets).astype(np.int64)),
        ids=tuple(e.id for e in ordered),
    )


def pack_shared(examples: Sequence[Example]) -> PackedBatch:
    """Lay documents of a causal model end to end, longest first; what several of them begin with before their first
    target, the same tokens in all, stands there once.

    A prompt that was continued many times is computed once for all that followed; `position_ids` go on from it.
    """
    ordered = sorted(examples, key=lambda e: -len(e.tokens))
    openings: dict[bytes, int] = {}  # the place of its first token
    tokens, positions, places, targets, sources = [], [], [], [], []
    total = 0
    for example in ordered:
        opening = _opening(example)
        known = openings.setdefault(opening.tobytes(), total)
        first = len(opening) if known != total else 0
        tokens.append(example.tokens[first:])
        positions.append(np.arange(first, len(example.tokens)))
        place = np.concatenate([np.arange(known, known + first), total + np.arange(len(example.tokens) - first)])
        total += len(example.tokens) - first
        positions_in_document, answers = example.targets()
        places.append(place)
        targets.append(answers)
        sources.append(place[positions_in_document])
    row = (np.concatenate(part).astype(np.int64) for part in (tokens, positions, sources, targets, places))
    input_ids, position_ids, source_positions, answered, placed = map(torch.from_numpy, row)
    return PackedBatch(
        input_ids=input_ids[None],
        position_ids=position_ids[None],
        lengths=tuple(len(e.tokens) for e in ordered),
        source_positions=source_positions,
        targets=answered,
        ids=tuple(e.id for e in ordered),
        places=placed if len(placed) > total else None,
    )


def _opening(example: Example) -> np.ndarray:
    """The tokens before the first target."""
    return example.tokens[: int(example.supervised.argmax())]


def split_shared(examples: Sequence[Example], max_tokens: int) -> list[list[Example]]:
    """As `split_by_tokens` for `pack_shared`: documents that begin alike stay together, and a shared beginning counts
    once in every micro-batch."""
    alike: dict[bytes, list[Example]] = {}
    for example in sorted(examples, key=lambda e: -len(e.tokens)):
        alike.setdefault(_opening(example).tobytes(), []).append(example)
    parts: list[list[Example]] = [[]]
    room = max_tokens
    for group in alike.values():
        shared = len(_opening(group[0]))
        due = shared  # unless it already stands in this micro-batch
        for example in group:
            if parts[-1] and len(example.tokens) - shared + due > room:
                parts.append([])
                room, due = max_tokens, shared
            parts[-1].append(example)
            room -= len(example.tokens) - shared + due
            due = 0
    return parts


def split_by_tokens(examples: Sequence[Example], max_tokens: int) -> list[list[Example]]:
    """Divide one optimizer step's documents into micro-batches of at most `max_tokens`, similar lengths together.

    A single document longer than `max_tokens` gets a micro-batch of its own.
    """
    parts: list[list[Example]] = [[]]
    room = max_tokens
    for example in sorted(examples, key=lambda e: -len(e.tokens)):
        if parts[-1] and len(example.tokens) > room:
            parts.append([])
            room = max_tokens
        parts[-1].append(example)
        room -= len(example.tokens)
    return parts
