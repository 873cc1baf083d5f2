"""Documents through a token classifier, window by window: one tag a token.

Shapes: T tokens of a document, D hidden size, G tags.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quilate.inference.features import by_length
from quilate.models.encoder import DocumentEncoder
from quilate.models.heads import divide
from quilate.models.load import context_length, reads_both_sides
from quilate.tokenization.segments import opening_tokens
from quilate.tokenization.windows import PlacedTokens, Window, placed_tokens, windows


@dataclass(frozen=True)
class TaggedDocument:
    """`tags`, `starts`, `ends` are [T]; `tokens_read` counts those that several windows show as often."""

    tags: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    windows: int
    tokens_read: int


@dataclass(frozen=True)
class WindowPlan:
    """How documents go through a model: `opening` tokens, then a window of at most `size` of the document's own."""

    opening: list[int]
    size: int
    both_sides: bool

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> WindowPlan:
        """The plan for a model, the same in training and in use."""
        opening = opening_tokens(tokenizer)
        context = context_length(model) - divide(model).first_position
        size = max(1, min(max_tokens, context) - len(opening))
        return cls(opening, size, reads_both_sides(model))

    def windows(self, length: int) -> list[Window]:
        return windows(length, self.size, both_sides=self.both_sides)

    def tokens(self, document: PlacedTokens, window: Window) -> list[int]:
        """What the model reads of a window."""
        return [*self.opening, *document.ids[window.start : window.stop].tolist()]


@torch.inference_mode()
def tag_documents(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    max_tokens: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[TaggedDocument]:
    """The likeliest tag of every token; each token is judged in the window that shows it most context.

    Args:
        max_tokens: the longest window, opening tokens included; never more than the model's context.
        on_progress: called with documents done, as a share of the windows, and in total.
    """
    encoder = DocumentEncoder(model)
    plan = WindowPlan.of(model, tokenizer, max_tokens)
    documents = [placed_tokens(tokenizer, text) for text in texts]
    tags = [np.zeros(len(document), dtype=np.int64) for document in documents]
    planned = [plan.windows(len(document)) if len(document) else [] for document in documents]
    jobs = [(index, window) for index, found in enumerate(planned) for window in found]
    rows = [plan.tokens(documents[index], window) for index, window in jobs]
    done = 0
    for batch in by_length([len(row) for row in rows]):
        lengths = [len(rows[job]) for job in batch]
        tokens = torch.tensor([token for job in batch for token in rows[job]], device=encoder.device)[None]
        positions = torch.cat([torch.arange(length) for length in lengths])[None].to(encoder.device)
        hidden = encoder(tokens, positions, lengths)
        best = encoder.divided.head(encoder.divided.transform(hidden)).argmax(-1).cpu().numpy()
        for job, answer in zip(batch, np.split(best, np.cumsum(lengths)[:-1]), strict=True):
            index, window = jobs[job]
            own = answer[len(plan.opening) :][window.own_start - window.start : window.own_stop - window.start]
            tags[index][window.own_start : window.own_stop] = own
        done += len(batch)
        on_progress(math.ceil(len(texts) * done / len(jobs)), len(texts))
    return [
        TaggedDocument(own, d.starts, d.ends, len(found), sum(len(plan.opening) + w.stop - w.start for w in found))
        for own, d, found in zip(tags, documents, planned, strict=True)
    ]
