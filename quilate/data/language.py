"""Which language a corpus is in: a check on a sample of its documents, by an identifier that ships its model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quilate.rng import numpy_stream

MIN_CHARACTERS = 60
"""Shorter documents are not judged. py3langid takes a third of Spanish clinical sentences of 20 to 60 characters for
Galician, Aragonese or Extremaduran, and still one in ten of 60 to 100: hence also `SURE`."""

SURE = 0.7
"""Probability from which another language than the declared one is believed. Of 18,000 Spanish clinical sentences of 60
characters or more 0.1 % are taken for another language so; of English medical ones of 60 to 100 characters 93 % are
recognized, above that 98 %. Of Catalan, Portuguese and Galician messages of programs about four fifths are: what is
reported is a lower bound."""

SAMPLE = 1_000  # documents judged, about 1 ms each; the share's standard error is then at most 1.6 points
LOOK_AT = 5_000  # characters judged of one document, from its start; guess


class NotChecked(Exception):
    """The language cannot be told; the message says why."""


@dataclass(frozen=True)
class LanguageCheck:
    """Shares are of the bytes of the documents judged.

    Attributes:
        judged: documents of the sample.
        too_short: documents of the whole corpus that have fewer than `MIN_CHARACTERS` and are never judged.
        other: share that is surely in another language than the declared one.
        unsure: share that looks most like another language, but not surely.
        languages: share of each such other language, largest first.
    """

    judged: int
    too_short: int
    other: float
    unsure: float
    languages: dict[str, float]


def check_language(documents: Sequence[str], language: str) -> LanguageCheck:
    """Judge a sample of the documents, the same one at every call; `language` is an ISO 639 code.

    Raises:
        NotChecked: py3langid is not installed or does not know `language`, or every document is too short.
    """
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise NotChecked("py3langid is not installed (`pip install py3langid`)") from None
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    if language not in identifier.labels:
        raise NotChecked(f"py3langid does not know '{language}' (it knows {', '.join(sorted(identifier.labels))})")
    long_enough = [document for document in documents if len(document) >= MIN_CHARACTERS]
    if not long_enough:
        raise NotChecked(f"no document has {MIN_CHARACTERS} characters")
    order = numpy_stream(0, "language sample").permutation(len(long_enough))
    sample = [long_enough[index] for index in order[:SAMPLE]]
    unsure = 0
    others: dict[str, int] = {}
    for document in sample:
        found, probability = identifier.classify(document[:LOOK_AT])
        size = len(document.encode())
        if found != language and probability >= SURE:
            others[found] = others.get(found, 0) + size
        elif found != language:
            unsure += size
    total = sum(len(document.encode()) for document in sample)
    return LanguageCheck(
        judged=len(sample),
        too_short=len(documents) - len(long_enough),
        other=sum(others.values()) / total,
        unsure=unsure / total,
        languages={name: others[name] / total for name in sorted(others, key=lambda name: (-others[name], name))},
    )
