"""Texts as vectors: the hidden states of a frozen model, pooled to one vector a text."""

from __future__ import annotations

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

Pooling = Literal["last", "mean"]

BATCH_TOKENS = 512  # as in label scoring


@dataclass(frozen=True)
class Features:
    """`vectors` [texts, D] fp32; `truncated` texts were cut in the middle; `tokens` were read in all, with
    about `flops` floating-point operations."""

    vectors: np.ndarray
    truncated: int
    tokens: int
    flops: float


@torch.inference_mode()
def encode(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    pooling: Pooling,
    max_tokens: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Features:
    """One vector a text: the last token's hidden state, or the mean over all tokens; computed in fp32 from the model's
    last hidden states.

    Args:
        pooling: "last" for a causal model, whose last token alone has seen the whole text; "mean" suits masked ones.
        max_tokens: longer texts are cut in the middle, and counted; never more than the model's context.
        on_progress: called with texts done and in total.
    """
    encoder = DocumentEncoder(model)
    limit = min(max_tokens, context_length(model) - encoder.divided.first_position)
    cut = [shorten(tokens, limit) for tokens in prompt_tokens(tokenizer, texts)]
    # A text without any token is read as the tokenizer's opening or end: it has a vector too, the same for all such.
    blank = opening_tokens(tokenizer) or [int(tokenizer.eos_token_id or 0)]
    sequences = [tokens or blank for tokens, _ in cut]
    vectors = np.empty((len(texts), int(encoder.divided.head.in_features)), dtype=np.float32)
    done = 0
    for rows in by_length([len(tokens) for tokens in sequences]):
        lengths = [len(sequences[row]) for row in rows]
        tokens = torch.tensor([token for row in rows for token in sequences[row]])[None]
        positions = torch.cat([torch.arange(length) for length in lengths])[None]
        hidden = encoder(tokens.to(encoder.device), positions.to(encoder.device), lengths)
        vectors[rows] = _pool(hidden.float(), lengths, pooling).cpu().numpy()
        done += len(rows)
        on_progress(done, len(texts))
    read = sum(map(len, sequences))
    parameters = sum(p.numel() for p in encoder.divided.body.parameters())
    return Features(vectors, sum(was_cut for _, was_cut in cut), read, flops=2.0 * parameters * read)


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
