"""Train a tokenizer on a corpus, and say how well a tokenizer fits one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, PAD, MASK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() < vocabulary:
        raise DataError(
            f"the texts give only {tokenizer.get_vocab_size()} tokens, {vocabulary} were asked for",
            hint=f"lower the vocabulary to {tokenizer.get_vocab_size()} or less, or give more text",
        )
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
