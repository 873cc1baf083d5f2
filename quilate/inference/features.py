"""Texts as vectors: the hidden states of a frozen model, pooled to one vector a text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quilate.models.encoder import DocumentEncoder
from quilate.models.load import context_length
from quilate.tokenization.segments import opening_tokens, prompt_tokens, shorten
from quilate.tokenization.windows import Piece, pieces

Pooling = Literal["last", "mean"]
Long = Literal["cut", "windows"]

BATCH_TOKENS = 512  # as in label scoring


@dataclass(frozen=True)
class Features:
    """`vectors` [texts, D] fp32; `truncated` texts were cut in the middle, `windowed` ones read in several windows;
    `tokens` were read in all, with about `flops` floating-point operations."""

    vectors: np.ndarray
    truncated: int
    windowed: int
    tokens: int
    flops: float

    def counts(self) -> dict[str, int]:
        """What is shown beside the truncated ones."""
        return {"texts in several windows": self.windowed} if self.windowed else {}


@torch.inference_mode()
def encode(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    pooling: Pooling,
    max_tokens: int,
    long: Long = "cut",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Features:
    """One vector a text: the last token's hidden state, or the mean over all tokens; computed in fp32 from the model's
    last hidden states.

    Args:
        pooling: "last" for a causal model, whose last token alone has seen the whole text; "mean" suits masked ones.
        max_tokens: the most read at once; never more than the model's context.
        long: what becomes of longer texts: `cut` in their middle, or read in overlapping `windows` whose vectors are
            averaged, each weighing as much as what it alone shows. Both are counted.
        on_progress: called with texts done, as a share of the windows, and in total.
    """
    encoder = DocumentEncoder(model)
    limit = min(max_tokens, context_length(model) - encoder.divided.first_position)
    texts_tokens, truncated = prompt_tokens(tokenizer, texts), 0
    if long == "cut":
        cut = [shorten(tokens, limit) for tokens in texts_tokens]
        texts_tokens, truncated = [tokens for tokens, _ in cut], sum(was_cut for _, was_cut in cut)
    # A text without any token is read as the tokenizer's opening or end: it has a vector too, the same for all such.
    opening = opening_tokens(tokenizer)
    blank = opening or [int(tokenizer.eos_token_id or 0)]
    parts = [pieces(tokens or blank, opening, limit) for tokens in texts_tokens]
    owners = [(row, piece) for row, found in enumerate(parts) for piece in found]
    vectors = np.zeros((len(texts), int(encoder.divided.head.in_features)), dtype=np.float32)
    done = 0
    for batch in by_length([len(piece.tokens) for _, piece in owners]):
        pooled = _vectors(encoder, [owners[place][1] for place in batch], pooling)
        for place, vector in zip(batch, pooled, strict=True):
            row, piece = owners[place]
            vectors[row] += np.float32(piece.share) * vector
        done += len(batch)
        on_progress(math.ceil(len(texts) * done / len(owners)), len(texts))
    read = sum(len(piece.tokens) for _, piece in owners)
    parameters = sum(p.numel() for p in encoder.divided.body.parameters())
    windowed = sum(len(found) > 1 for found in parts)
    return Features(vectors, truncated, windowed, read, flops=2.0 * parameters * read)


def _vectors(encoder: DocumentEncoder, batch: Sequence[Piece], pooling: Pooling) -> np.ndarray:
    """[pieces, D] fp32."""
    lengths = [len(piece.tokens) for piece in batch]
    tokens = torch.tensor([token for piece in batch for token in piece.tokens])[None]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    hidden = encoder(tokens.to(encoder.device), positions.to(encoder.device), lengths)
    vectors: np.ndarray = _pool(hidden.float(), lengths, pooling).cpu().numpy()
    return vectors


def by_length(lengths: list[int]) -> list[list[int]]:
    """Rows by length, longest first, at most `BATCH_TOKENS` a batch (or one longer text)."""
    batches: list[list[int]] = []
    room = 0
    for row in sorted(range(len(lengths)), key=lambda r: -lengths[r]):
        if lengths[row] > room:
            batches.append([])
            room = BATCH_TOKENS
        batches[-1].append(row)
        room -= lengths[row]
    return batches


def _pool(hidden: Tensor, lengths: list[int], pooling: Pooling) -> Tensor:
    """[documents, D] from hidden states [T, D]."""
    counts = torch.tensor(lengths, device=hidden.device)
    if pooling == "last":
        return hidden[counts.cumsum(0) - 1]
    document = torch.repeat_interleave(torch.arange(len(lengths), device=hidden.device), counts)
    total = torch.zeros(len(lengths), hidden.shape[1], device=hidden.device).index_add_(0, document, hidden)
    return total / counts[:, None]
