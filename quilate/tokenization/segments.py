"""Prompts and answers as tokens, the same in training and in scoring: a model is asked in the tokens it was taught."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

# Tokens kept at the end of an item that is cut: the template's closing words ("Capítulo:") must survive (guess).
KEPT_END = 32


def opening_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before any text, such as BOS; nothing for SmolLM2. What it puts after one is left out."""
    with_special = list(tokenizer("x", add_special_tokens=True).input_ids)
    plain = list(tokenizer("x", add_special_tokens=False).input_ids)
    starts = (i for i in range(len(with_special)) if with_special[i : i + len(plain)] == plain)
    return with_special[: next(starts, 0)]


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Each prompt's tokens, after the tokenizer's own opening."""
    opening = opening_tokens(tokenizer)
    return [opening + tokens for tokens in plain_tokens(tokenizer, prompts)]


def answer_tokens(tokenizer: PreTrainedTokenizerBase, answers: Sequence[str], *, start: str = " ") -> list[list[int]]:
    """The tokens of each answer as it follows a prompt: after one space, or what else it starts with."""
    return plain_tokens(tokenizer, [f"{start}{answer}" for answer in answers])


def plain_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Each text's tokens and nothing around them; special tokens written in a user's text stay ordinary text."""
    if not texts:
        return []
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # a tokenizer in Python
        encoded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True).input_ids
        return [list(tokens) for tokens in encoded]
    # By the library itself: the tokenizer's own call also keeps each token's place in the text, a third of the time.
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]


def common_prefix_length(sequences: Sequence[list[int]]) -> int:
    """How many tokens all sequences begin with, leaving each at least one token of its own."""
    if not sequences:
        return 0
    first, last = min(sequences), max(sequences)  # the two furthest apart in order differ first
    limit = min(map(len, sequences)) - 1
    return next((i for i in range(limit) if first[i] != last[i]), max(0, limit))


def shorten(tokens: list[int], limit: int) -> tuple[list[int], bool]:
    """Cut a too long item in its middle: its beginning and its last `KEPT_END` tokens stay.

    Returns:
        At most `limit` tokens, and whether something was cut (the caller counts it).

    Raises:
        ValueError: `limit` leaves no room at all.
    """
    if len(tokens) <= limit:
        return tokens, False
    if limit < 1:
        raise ValueError("no room is left for the item")
    end = min(KEPT_END, limit // 2)
    return tokens[: limit - end] + tokens[len(tokens) - end :], True
