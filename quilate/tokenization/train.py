"""Train a tokenizer on a corpus, and say how well a tokenizer fits one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from quilate.errors import DataError

END = "<|endoftext|>"
MASK = "<|mask|>"
PAD = "<|pad|>"


def train_byte_level_bpe(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE (Radford et al. 2019): every text can be written in it, so nothing is ever unknown.

    Pad and end are different tokens: where they are one, masking the padding masks the end and it is never learned.

    Raises:
        DataError: the texts are too few for so large a vocabulary.
    """
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, PAD, MASK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    return _trained(models.BPE(), trainer, texts, vocabulary)


def train_byte_level_unigram(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A unigram language model over bytes (Kudo 2018): of all cuts of a word it takes the most probable.

    Its pieces follow endings and stems better than merges do (Bostrom & Durrett 2020). The alphabet is the bytes', as
    in `train_byte_level_bpe`, so here too nothing is unknown and every text comes back as it was.

    Raises:
        DataError: the texts are too few for so large a vocabulary.
    """
    trainer = trainers.UnigramTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, PAD, MASK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained = _trained(models.Unigram(), trainer, texts, vocabulary)
    described = json.loads(trained.backend_tokenizer.to_str())
    special = len(trainer.special_tokens)
    described["model"]["vocab"][special:] = _repeatable(described["model"]["vocab"][special:])
    return _wrapped(Tokenizer.from_str(json.dumps(described)))


def _repeatable(scored: Sequence[tuple[str, float]]) -> list[list[str | float]]:
    """Nearly the same at every training: the library lists pieces of equal score in any order, gives bytes that no text
    has scores that rise by 0.0001 from the lowest in any order, and adds up its sums in any order, which may still
    tip the choice between pieces that are about equally good."""
    lowest = round(min(score for _, score in scored), 6)
    unseen = lowest + 0.0001 * len(pre_tokenizers.ByteLevel.alphabet())
    rounded = [(lowest if len(piece) == 1 and score <= unseen else round(score, 6), piece) for piece, score in scored]
    return [[piece, score] for score, piece in sorted(rounded, key=lambda entry: (-entry[0], entry[1]))]


TRAINERS = {"bpe": train_byte_level_bpe, "unigram": train_byte_level_unigram}


def _trained(model: models.Model, trainer: Any, texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() < vocabulary:
        raise DataError(
            f"the texts give only {tokenizer.get_vocab_size()} tokens, {vocabulary} were asked for",
            hint=f"lower the vocabulary to {tokenizer.get_vocab_size()} or less, or give more text",
        )
    return _wrapped(tokenizer)


def _wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, mask_token=MASK)


@dataclass(frozen=True)
class Fit:
    """How a tokenizer fits a text: `unknown` counts tokens that stand for something it cannot write."""

    words: int
    bytes: int
    tokens: int
    unknown: int

    @property
    def tokens_per_word(self) -> float:
        return self.tokens / max(1, self.words)

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / max(1, self.tokens)

    def as_json(self) -> dict[str, float]:
        """The counts, and the ratios rounded."""
        return {
            "words": self.words,
            "bytes": self.bytes,
            "tokens": self.tokens,
            "unknown": self.unknown,
            "tokens_per_word": round(self.tokens_per_word, 4),
            "bytes_per_token": round(self.bytes_per_token, 4),
        }


def measure_fit(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Fit:
    """Count words (runs without white space), UTF-8 bytes, tokens and unknown tokens."""
    encoded = tokenizer(list(texts), add_special_tokens=False).input_ids if texts else []
    unknown_id = tokenizer.unk_token_id
    return Fit(
        words=sum(len(text.split()) for text in texts),
        bytes=sum(len(text.encode()) for text in texts),
        tokens=sum(map(len, encoded)),
        unknown=sum(token == unknown_id for tokens in encoded for token in tokens) if unknown_id is not None else 0,
    )
