"""Entities written as a list and read back: what is lost is counted."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import save_directory, tiny_llama

from quilate.inference.scorer import load_scorer
from quilate.inference.written_spans import WrittenTagger, read_back, written
from quilate.tasks.extraction import Span

LABELS = ["FECHA", "LUGAR", "PERSONA"]
TEXT = "El 29 de febrero, Íñigo Larrañaga avisó desde la Peña; Íñigo volvió a la Peña."


def span(words: str, label: str, start: int = 0) -> Span:
    place = TEXT.index(words, start)
    return Span(place, place + len(words), label)


def test_a_list_by_hand() -> None:
    spans = [span("29 de febrero", "FECHA"), span("la Peña", "LUGAR", 60), span("Íñigo Larrañaga", "PERSONA")]
    said = written(TEXT, sorted(spans), "es")
    assert said == "FECHA: 29 de febrero | PERSONA: Íñigo Larrañaga | LUGAR: la Peña"
    assert written(TEXT, [], "es") == "ninguna" and written(TEXT, [], "en") == "none"
    # The list does not say which of two equal places is meant: the first after the entry before it.
    assert read_back(said, TEXT, LABELS, "es")[0] == (
        span("29 de febrero", "FECHA"), span("Íñigo Larrañaga", "PERSONA"), span("la Peña", "LUGAR"),
    )  # fmt: skip
    both = " LUGAR: la Peña | LUGAR: la Peña"
    assert read_back(both, TEXT, LABELS, "es") == ((span("la Peña", "LUGAR"), span("la Peña", "LUGAR", 60)), 0)


@pytest.mark.parametrize(
    ("said", "lost"),
    [
        ("ninguna", 0),
        ("", 1),
        ("PERSONA: Nadie", 1),
        ("RARO: la Peña", 1),
        ("la Peña", 1),
        ("LUGAR: ", 1),
        ("A | B", 2),
    ],
)
def test_what_means_no_span_is_counted(said: str, lost: int) -> None:
    assert read_back(said, TEXT, LABELS, "es") == ((), lost)


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_answer_gives_spans_of_the_text(said: str, text: str) -> None:
    spans, _ = read_back(said, text, ["A", "B"], "es")
    assert all(0 <= s.start < s.end <= len(text) for s in spans)
    assert all(a.end <= b.start for a, b in pairwise(spans))


def test_a_tagger_asks_a_model_and_counts(tmp_path: Path) -> None:
    base = save_directory(tiny_llama(), tmp_path / "model")
    settings = {"language": "es", "max_new_tokens": 6, "max_item_tokens": 20, "precision": "fp32"}
    tagger = WrittenTagger(base, LABELS, **settings)
    found = tagger.find([TEXT, "ñ"])
    assert len(found.spans) == 2
    assert found.counts["documents cut"] == 1
    assert found.counts["written entries that mean no span"] + sum(map(len, found.spans)) >= 1  # a random model
    tagger.save(tmp_path / "scorer")
    again = load_scorer(tmp_path / "scorer").find([TEXT, "ñ"])
    assert (again.spans, again.counts) == (found.spans, found.counts)
