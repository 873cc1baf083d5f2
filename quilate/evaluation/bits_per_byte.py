"""How well a model predicts a text, in a unit that does not depend on its tokenizer.

A causal model: bits per UTF-8 byte. A masked model predicts only masked tokens, so its loss in nats per masked token is
given instead, and is comparable only between models with the same tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quilate import faults
from quilate.data.packing import Example, pack, split_by_tokens
from quilate.engine.language_modelling import LanguageModellingLoss

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class TextLoss:
    """`nats` summed over `predicted` tokens of texts that have `bytes` UTF-8 bytes."""

    nats: float
    predicted: int
    bytes: int

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.bytes

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.predicted


def windows(tokens: Sequence[int], opening: int, window: int) -> list[Example]:
    """Cover a document with overlapping windows so that every token is predicted once.

    Each window starts with the `opening` token; in all but the first, the first half is context only, so that no token
    is judged with less than half a window before it.
    """
    half = window // 2
    examples = []
    start = judged = 0
    while judged < len(tokens):
        piece = list(tokens[start : start + window - 1])
        supervised = np.zeros(len(piece) + 1, dtype=bool)
        supervised[1 + judged - start :] = True
        examples.append(Example(str(start), np.array([opening, *piece], dtype=np.int64), supervised))
        judged = start + len(piece)
        start = max(start + 1, judged - half)
    return examples


@torch.no_grad()
def text_loss(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[str],
    *,
    window: int,
    check_stop: Callable[[], None] = lambda: None,
) -> TextLoss:
    """The loss of a causal model over documents, each judged by itself, its end not predicted.

    Args:
        window: tokens the model sees at once; at most its context.
        check_stop: called between batches; may raise to leave.
    """
    opening = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    encoded = tokenizer(list(documents), add_special_tokens=False).input_ids
    examples = [example for tokens in encoded for example in windows(tokens, opening, window)]
    return TextLoss(*sum_loss(model, examples, check_stop), bytes=sum(len(d.encode()) for d in documents))


@torch.no_grad()
def sum_loss(
    model: PreTrainedModel, examples: Sequence[Example], check_stop: Callable[[], None] = lambda: None
) -> tuple[float, int]:
    """The loss in nats summed over the examples' supervised tokens, and how many these are."""
    loss = LanguageModellingLoss(model)
    training = model.training
    model.eval()
    nats, predicted = 0.0, 0
    for part in split_by_tokens(examples, BATCH_TOKENS):
        faults.at("evaluate.batch")
        check_stop()
        batch = pack(part)
        nats += float(loss(batch))
        predicted += batch.supervised_tokens
    model.train(training)
    return nats, predicted


@torch.no_grad()
def masked_loss(
    model: PreTrainedModel,
    examples: list[Example],
    *,
    bytes_of_text: int,
    check_stop: Callable[[], None] = lambda: None,
) -> TextLoss:
    """The loss of a masked model over examples whose masks are already drawn.

    Draw them once and use them before and after: other masks would be other questions.
    """
    return TextLoss(*sum_loss(model, examples, check_stop), bytes=bytes_of_text)
