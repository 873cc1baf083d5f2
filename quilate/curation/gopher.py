"""Gopher's rules on repetition and quality (Rae et al. 2021, arXiv:2112.11446, appendix A.1.1 and table A1)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from pydantic import Field, model_validator

from quilate.config import Config
from quilate.curation.words import is_word, tokens

# The eight most frequent words of CORPES/CREA for Spanish; Gopher's own eight for English.
STOP_WORDS = {
    "es": ["de", "la", "que", "el", "en", "y", "a", "los"],
    "en": ["the", "be", "to", "of", "and", "that", "have", "with"],
}


class RepetitionConfig(Config):
    """Documents that repeat themselves; the thresholds are table A1's."""

    duplicate_lines: float = Field(default=0.30, ge=0, le=1)
    """Largest share of lines that stood before in the document."""
    duplicate_paragraphs: float = Field(default=0.30, ge=0, le=1)
    """Largest share of paragraphs that stood before."""
    duplicate_line_characters: float = Field(default=0.20, ge=0, le=1)
    """Largest share of characters in such lines."""
    duplicate_paragraph_characters: float = Field(default=0.20, ge=0, le=1)
    """Largest share of characters in such paragraphs."""
    top_ngrams: list[float] = Field(default=[0.20, 0.18, 0.16])
    """Largest share of characters in the most frequent sequence of 2, 3, 4 tokens."""
    duplicate_ngrams: list[float] = Field(default=[0.15, 0.14, 0.13, 0.12, 0.11, 0.10])
    """Largest share of characters in sequences of 5, 6, 7, 8, 9, 10 tokens that stood before."""


class QualityConfig(Config):
    """Documents that are not running text."""

    min_words: int = Field(default=50, ge=0)
    """Fewest words of a document."""
    max_words: int = Field(default=100_000, ge=1)
    """Most words of a document."""
    min_word_length: float = Field(default=3, ge=0)
    """Least mean length of its words."""
    max_word_length: float = Field(default=10, ge=1)
    """Largest mean length of its words."""
    max_symbols: float = Field(default=0.1, ge=0)
    """Most hash signs, or ellipses, to a token."""
    max_bullet_lines: float = Field(default=0.9, ge=0, le=1)
    """Largest share of lines that begin with a bullet."""
    max_ellipsis_lines: float = Field(default=0.3, ge=0, le=1)
    """Largest share of lines that end in an ellipsis."""
    min_alphabetic: float = Field(default=0.8, ge=0, le=1)
    """Least share of tokens, punctuation marks not counted, that have a letter in them."""
    min_stop_words: int = Field(default=2, ge=0)
    """How many different stop words must occur."""
    stop_words: list[str] | None = None
    """The stop words; of Spanish and English they are known."""

    @model_validator(mode="after")
    def _reachable(self) -> QualityConfig:
        if self.stop_words is not None and len(set(self.stop_words)) < self.min_stop_words:
            raise ValueError("`min_stop_words` asks for more stop words than `stop_words` has")
        return self


def _duplicates(parts: Sequence[str]) -> tuple[int, int]:
    """How many parts stood before, and their characters."""
    seen: set[str] = set()
    count = characters = 0
    for part in parts:
        if part in seen:
            count += 1
            characters += len(part)
        else:
            seen.add(part)
    return count, characters


def _repeated_ngram_characters(words: Sequence[str], n: int) -> int:
    """Characters in n-grams that stood before, none counted twice (they are taken from left to right)."""
    seen: set[tuple[str, ...]] = set()
    characters = position = 0
    while position <= len(words) - n:
        gram = tuple(words[position : position + n])
        if gram in seen:
            characters += sum(map(len, gram))
            position += n
        else:
            seen.add(gram)
            position += 1
    return characters


def repetition(text: str, config: RepetitionConfig) -> str | None:
    """The rule on repetition that the text breaks first, or None."""
    for name, pattern, share, characters_share in (
        ("paragraph", r"\n{2,}", config.duplicate_paragraphs, config.duplicate_paragraph_characters),
        ("line", r"\n+", config.duplicate_lines, config.duplicate_line_characters),
    ):
        parts = re.split(pattern, text.strip())
        count, characters = _duplicates(parts)
        if count > share * len(parts):
            return f"duplicate {name}s"
        if characters > characters_share * len(text):
            return f"duplicate {name} characters"
    words = tokens(text)
    for n, share in enumerate(config.top_ngrams, start=2):
        grams = Counter(zip(*(words[i:] for i in range(n)), strict=False))
        if not grams:
            break
        top, times = grams.most_common(1)[0]
        if times > 1 and times * (sum(map(len, top)) + n - 1) > share * len(text):
            return f"most frequent {n}-gram"
    for n, share in enumerate(config.duplicate_ngrams, start=5):
        if _repeated_ngram_characters(words, n) > share * len(text):
            return f"duplicate {n}-grams"
    return None


def quality(text: str, config: QualityConfig, stop_words: frozenset[str]) -> str | None:
    """The rule on quality that the text breaks first, or None.

    Args:
        stop_words: in lower case.
    """
    found = tokens(text)
    words = [token for token in found if is_word(token)]
    lines = text.splitlines() or [""]
    mean_length = sum(map(len, words)) / max(1, len(words))
    symbols = config.max_symbols * len(found)
    bullets = sum(line.lstrip().startswith(("•", "-", "*", "·")) for line in lines)
    trailing = sum(line.rstrip().endswith(("...", "…")) for line in lines)
    alphabetic = sum(any(map(str.isalpha, word)) for word in words)
    checks = {
        "too few words": len(words) < config.min_words,
        "too many words": len(words) > config.max_words,
        "words too short": mean_length < config.min_word_length,
        "words too long": mean_length > config.max_word_length,
        "hash signs": text.count("#") > symbols,
        "ellipses": text.count("...") + text.count("…") > symbols,
        "bullet lines": bullets > config.max_bullet_lines * len(lines),
        "lines ending in an ellipsis": trailing > config.max_ellipsis_lines * len(lines),
        "words without letters": alphabetic < config.min_alphabetic * len(words),
        "stop words": config.min_stop_words > 0
        and len(stop_words.intersection(map(str.lower, words))) < config.min_stop_words,
    }
    return next((rule for rule, broken in checks.items() if broken), None)
