"""Taggers: whatever finds labelled spans in documents. A dictionary of phrases, or a token classifier."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from quilate.files import make_folder, write_json
from quilate.inference.scorer import ProgressCallback, movable, silent
from quilate.models.precision import Precision, compute_dtype
from quilate.tasks.extraction import Span

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from quilate.inference.tagging import TaggedDocument

_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Found:
    """The spans of each document, in order; `windowed` documents were read in more than one window; `tokens` were
    computed, 0 for what is no language model; `counts` is what else befell the documents, `cost` what an endpoint
    charged."""

    spans: list[tuple[Span, ...]]
    windowed: int
    tokens: int
    counts: dict[str, int] = field(default_factory=dict)
    cost: float = 0.0


class Tagger(Protocol):
    """Finds spans."""

    labels: list[str]

    def find(self, texts: Sequence[str], on_progress: ProgressCallback = silent) -> Found: ...

    def save(self, folder: Path) -> None: ...


@dataclass(frozen=True)
class Word:
    """A word or punctuation mark, casefolded, and where it stands."""

    text: str
    start: int
    end: int


def words_of(text: str) -> list[Word]:
    """The words of a text: runs of letters, digits and underscores; every other mark but white space by itself."""
    return [Word(match[0].casefold(), match.start(), match.end()) for match in _WORD.finditer(text)]


Phrase = tuple[str, ...]


class GazetteerTagger:
    """Every phrase of a dictionary, wherever it stands: the longest one that begins at a word, from left to right.

    Args:
        phrases: casefolded words -> label.
    """

    def __init__(self, labels: list[str], phrases: Mapping[Phrase, str]) -> None:
        self.labels, self.phrases = labels, dict(phrases)
        self._longest = max(map(len, self.phrases), default=0)

    def find(self, texts: Sequence[str], on_progress: ProgressCallback = silent) -> Found:
        spans = [tuple(self._matches(words_of(text))) for text in texts]
        on_progress(len(texts), len(texts))
        return Found(spans, windowed=0, tokens=0)

    def _matches(self, words: list[Word]) -> Iterator[Span]:
        place = 0
        while place < len(words):
            for size in range(min(self._longest, len(words) - place), 0, -1):
                phrase = tuple(word.text for word in words[place : place + size])
                if phrase in self.phrases:
                    yield Span(words[place].start, words[place + size - 1].end, self.phrases[phrase])
                    place += size
                    break
            else:
                place += 1

    def save(self, folder: Path) -> None:
        make_folder(folder)
        listed = [[*phrase, label] for phrase, label in sorted(self.phrases.items())]
        write_json(folder / "scorer.json", {"kind": "gazetteer", "labels": self.labels, "phrases": listed})

    @classmethod
    def load(cls, folder: Path, saved: dict[str, Any]) -> GazetteerTagger:
        return cls(saved["labels"], {tuple(words): label for *words, label in saved["phrases"]})


class ModelTagger:
    """A token classifier, causal or masked. Documents longer than a window are read in several.

    Args:
        model: its directory, as `quilate.models.load.load_token_classifier` reads it.
        labels: the entities' labels, in the order of its tags.
        max_item_tokens: the longest window; never more than the model's context.
    """

    def __init__(self, model: Path, labels: list[str], *, max_item_tokens: int, precision: Precision = "auto") -> None:
        self.model_path, self.labels = model, labels
        self._settings = {"labels": labels, "max_item_tokens": max_item_tokens, "precision": precision}
        self._max_item_tokens, self._precision = max_item_tokens, precision
        self._loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None

    def tag(self, texts: Sequence[str], on_progress: ProgressCallback = silent) -> list[TaggedDocument]:
        """The tag of every token."""
        # Here, not above: transformers takes seconds to import, and the gazetteer does without it.
        from quilate.inference.tagging import tag_documents
        from quilate.models.load import load_token_classifier, load_tokenizer

        if self._loaded is None:
            model = load_token_classifier(self.model_path, dtype=compute_dtype(self._precision))
            self._loaded = model, load_tokenizer(self.model_path)
        model, tokenizer = self._loaded
        return tag_documents(model, tokenizer, texts, max_tokens=self._max_item_tokens, on_progress=on_progress)

    def find(self, texts: Sequence[str], on_progress: ProgressCallback = silent) -> Found:
        from quilate.tasks.bio import spans_of

        tagged = self.tag(texts, on_progress)
        return Found(
            [spans_of(document.tags, document.starts, document.ends, self.labels) for document in tagged],
            windowed=sum(document.windows > 1 for document in tagged),
            tokens=sum(document.tokens_read for document in tagged),
        )

    def save(self, folder: Path) -> None:
        make_folder(folder)
        saved = {"kind": "tagger", "model": movable(self.model_path, folder)}
        write_json(folder / "scorer.json", saved | self._settings)

    @classmethod
    def load(cls, folder: Path, saved: dict[str, Any]) -> ModelTagger:
        fields = {k: v for k, v in saved.items() if k not in ("kind", "model")}
        return cls(folder / saved["model"], **fields)
