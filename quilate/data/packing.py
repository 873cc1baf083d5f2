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
    """Documents laid end to end.

    Attributes:
        input_ids: [1, T] int64.
        position_ids: [1, T] int64, from 0 in every document.
        lengths: the documents' lengths, in order; they sum to T.
        source_positions: [S], where in T the hidden state stands that predicts each target.
        targets: [S] int64.
        ids: the documents' ids, in order.
    """

    input_ids: Tensor
    position_ids: Tensor
    lengths: tuple[int, ...]
    source_positions: Tensor
    targets: Tensor
    ids: tuple[str, ...]

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
