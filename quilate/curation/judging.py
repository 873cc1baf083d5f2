"""What is done to documents one at a time, a chunk of them at once, so that several processes can share it (`crew`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from quilate.curation.config import CurateConfig
from quilate.curation.decontaminate import HeldOutItems
from quilate.curation.documents import Document, Raw, Refused
from quilate.curation.extraction import Extractor
from quilate.curation.filtering import DocumentRules, count
from quilate.curation.hashing import hash_of
from quilate.curation.minhash import MinHasher
from quilate.curation.personal import PersonalDataConfig, Recognizer, Redactor
from quilate.curation.tally import Tally

_CHUNK_BYTES = 2**18  # guess: a tenth of a second's work
_CHUNK_DOCUMENTS = 64

T = TypeVar("T")


def chunks(items: Iterable[T], size_of: Callable[[T], int]) -> Iterator[list[T]]:
    """The items, in their order, in lists worth a process's while; one that is large stands alone."""
    chunk: list[T] = []
    size = 0
    for item in items:
        chunk.append(item)
        size += size_of(item)
        if size >= _CHUNK_BYTES or len(chunk) == _CHUNK_DOCUMENTS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


@dataclass(frozen=True)
class Judged:
    """Of a chunk: the documents that pass, the numbers, and what was set aside, by place and reason. `hashes` has a row
    a document: id, address (0 for none), then the bands of MinHash."""

    documents: list[Document]
    hashes: NDArray[np.uint64]
    tally: Tally
    refused: list[tuple[str, str]]


Judge = Callable[[tuple[str, Sequence[Raw | Refused]]], Judged]


def hash_columns(config: CurateConfig) -> int:
    """The width of `Judged.hashes`."""
    return 2 + (config.near_duplicates.bands if config.near_duplicates is not None else 0)


@contextmanager
def judging(config: CurateConfig, base: Path) -> Iterator[Judge]:
    """The rules that look at one document alone, on a source's name and documents of it.

    Args:
        base: the folder that relative paths of the config start from.
    """
    rules = DocumentRules(config, base)
    hasher = MinHasher(config.near_duplicates) if config.near_duplicates is not None else None

    def hashes_of(document: Document) -> NDArray[np.uint64]:
        own = [hash_of(document.id), hash_of(document.url) if document.url else 0]
        bands = hasher.bands(document.text) if hasher is not None else np.empty(0, np.uint64)
        return np.concatenate([np.array(own, np.uint64), bands])

    with Extractor(config.limits) as extractor:

        def judge(question: tuple[str, Sequence[Raw | Refused]]) -> Judged:
            source, items = question
            tally = Tally()
            refused: list[tuple[str, str]] = []
            documents: list[Document] = []
            for item in items:
                if isinstance(item, Refused):
                    tally.refused[item.reason] += 1
                    refused.append((item.place, item.reason))
                    continue
                before = tally.refused.copy()
                document = rules.pass_through(item, source, extractor, tally)
                refused += [(item.place, reason) for reason in tally.refused - before]
                if document is not None:
                    documents.append(document)
            hashes = np.array(list(map(hashes_of, documents)), np.uint64).reshape(-1, hash_columns(config))
            return Judged(documents, hashes, tally, refused)

        yield judge


@dataclass(frozen=True)
class Cleaned:
    """Of a chunk: each text as it may leave, or None, and the numbers."""

    texts: list[str | None]
    tally: Tally = field(default_factory=Tally)


@contextmanager
def cleaning(
    items: HeldOutItems | None, personal: PersonalDataConfig | None, recognizers: Sequence[Recognizer] = ()
) -> Iterator[Callable[[Sequence[str]], Cleaned]]:
    """The last two steps, on texts: held against the test items, cleared of personal data."""
    redactor = Redactor(personal, recognizers) if personal is not None else None

    def clean(text: str, tally: Tally) -> str | None:
        size = len(text.encode())
        if items is not None:
            rule = items.broken(text)
            if not count(tally, "decontaminate", size, rule, size):
                return None
        if redactor is None:
            return text
        redacted = redactor.redact(text)
        tally.steps["personal_data"].changed.update(redacted.found)
        goes_on = count(tally, "personal_data", size, redacted.drop, len(redacted.text.encode()))
        return redacted.text if goes_on else None

    def clean_all(chunk: Sequence[str]) -> Cleaned:
        tally = Tally()
        return Cleaned([clean(text, tally) for text in chunk], tally)

    yield clean_all
