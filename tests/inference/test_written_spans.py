"""Entities written as a list and read back: what is lost is counted."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import save_directory, tiny_llama, tiny_tokenizer

from quilate.config import validate
from quilate.inference.scorer import load_scorer
from quilate.inference.written_spans import WrittenTagger, read_back, written
from quilate.phases.examples import list_examples
from quilate.tasks.extraction import Document, ExtractionConfig, ExtractionTask, Span

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


def test_a_list_to_learn_holds_what_its_prompt_shows(tmp_path: Path) -> None:
    """Else the model learns to name what it cannot have read."""
    words = [f"palabra{n}" for n in range(120)]
    text = " ".join(words)
    named = [Span(text.index(w), text.index(w) + len(w), "LUGAR") for w in (words[1], words[60], words[118])]
    short = Document("1", "Íñigo vino", "", "g1", (Span(0, 5, "PERSONA"),))
    config = validate(ExtractionConfig, {"kind": "extraction", "name": "t", "text": "t", "spans": "s"}, source="t")
    task = ExtractionTask(
        config, ["LUGAR", "PERSONA"], [Document("0", text, "", "g0", tuple(named)), short], [], [], {}
    )
    tokenizer = tiny_tokenizer()
    made = list_examples(task, tokenizer, max_item_tokens=120, context=256)
    said = [tokenizer.decode(e.tokens[e.supervised]) for e in made.examples]
    assert words[60] not in tokenizer.decode(made.examples[0].tokens)
    assert said[0].startswith(f" LUGAR: {words[1]} | LUGAR: {words[118]}") and said[1].startswith(" PERSONA: Íñigo")
    assert (made.counts["prompts cut"], made.counts["spans in what is cut"]) == (1, 1)
    whole = list_examples(task, tokenizer, max_item_tokens=4_000, context=4_096)
    assert (whole.counts["prompts cut"], whole.counts["spans in what is cut"]) == (0, 0)
