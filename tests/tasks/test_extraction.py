"""Documents with spans by character offsets: checked, resolved where they overlap, turned into tags and back."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny_tokenizer

from quilate.config import validate
from quilate.errors import ConfigError, DataError
from quilate.tasks.bio import spans_of, tag_names, tags_of
from quilate.tasks.extraction import Document, ExtractionConfig, ExtractionTask, Span, without_overlaps
from quilate.tasks.kinds import load_task
from quilate.tasks.prepare import prepare
from quilate.tokenization.windows import placed_tokens


def config(**keys: Any) -> ExtractionConfig:
    split = {"train": None, "dev": 2, "test": 4}
    value = {"kind": "extraction", "name": "t", "text": "texto", "spans": "e", "split": split, **keys}
    return validate(ExtractionConfig, value, source="t")


def row(n: int, **keys: Any) -> dict[str, Any]:
    """An "Íñigo" from 1 to 6 and a number after it; the text begins with a space, which counts."""
    text = f" Íñigo pagó {n} euros."
    spans = [
        {"start": 1, "end": 6, "label": "PER", "text": "Íñigo"},
        {"start": 12, "end": 12 + len(str(n)), "label": "N"},
    ]
    return {"texto": text, "e": spans} | keys


ROWS = [row(n) for n in range(10, 22)]


def prepared(rows: list[dict[str, Any]], **keys: Any) -> ExtractionTask:
    task = prepare(config(**keys), {"all": rows}, {})
    assert isinstance(task, ExtractionTask)
    return task


def test_offsets_count_characters_of_the_text_as_it_stands(tmp_path: Path) -> None:
    task = prepared(ROWS)
    for document in [*task.train, *task.dev, *task.test]:
        assert [document.text[s.start : s.end] for s in document.spans if s.label == "PER"] == ["Íñigo"]
        assert [document.text[s.start : s.end].isdigit() for s in document.spans if s.label == "N"] == [True]
    assert task.labels == task.trained_labels == ["N", "PER"]
    task.save(tmp_path / "t")
    assert load_task(tmp_path / "t") == task


@pytest.mark.parametrize(
    ("span", "problem"),
    [
        ({"start": 1, "end": 99, "label": "PER"}, "does not fit its text"),
        ({"start": 6, "end": 6, "label": "PER"}, "does not fit its text"),
        ({"start": -1, "end": 3, "label": "PER"}, "does not fit its text"),
        ({"start": True, "end": 3, "label": "PER"}, "does not fit its text"),
        ({"start": 1, "end": 6, "label": ""}, "has no label"),
        ({"start": 1, "end": 6}, "keys start, end and label"),
        ({"start": 2, "end": 7, "label": "PER", "text": "Íñigo"}, "not what stands there"),
        ([1, 6, "PER"], "keys start, end and label"),
    ],
)
def test_a_wrong_span_stops_and_names_its_row_but_not_its_text(span: Any, problem: str) -> None:
    with pytest.raises(DataError, match=problem) as caught:
        prepared([*ROWS, row(30, e=[span])])
    assert "all:13" in str(caught.value)
    assert "pagó" not in str(caught.value)


def test_a_text_is_a_column_and_spans_a_list() -> None:
    with pytest.raises(ConfigError, match="a template would shift"):
        config(text="{{ texto }}")
    with pytest.raises(DataError, match="holds str, not a list"):
        prepared([*ROWS, row(30, e="[]")])
    with pytest.raises(DataError, match="no training item has anything under 'e'"):
        prepared([row(n, e=None) for n in range(10, 22)])


def test_of_overlapping_spans_the_longest_is_learned_and_the_rest_warned_of() -> None:
    whole, inside, beside = Span(0, 10, "ORG"), Span(4, 10, "PER"), Span(10, 12, "PER")
    assert without_overlaps([inside, beside, whole]) == (whole, beside)
    assert without_overlaps([Span(0, 4, "B"), Span(2, 6, "A")]) == (Span(0, 4, "B"),)  # equally long: the first
    nested = [row(n, e=[*row(n)["e"], {"start": 1, "end": 11, "label": "X"}]) for n in range(10, 22)]
    task = prepared(nested)
    found = {w["values"]["split"]: w["values"] for w in task.report["warnings"] if w["code"] == "overlapping_spans"}
    assert found["test"]["count"] == 4
    assert found["test"]["of"] == 12
    assert all(len(document.spans) == 3 for document in task.test)  # all of them are still to be found


def test_labels_that_train_lacks_are_warned_of_and_stay_to_be_found() -> None:
    rare = row(40, e=[{"start": 1, "end": 6, "label": "RARO"}])
    task = prepare(config(), {"train": ROWS[:8], "dev": ROWS[8:10], "test": [*ROWS[10:], row(23), rare]}, {})
    assert isinstance(task, ExtractionTask)
    assert task.labels == ["N", "PER", "RARO"]
    assert task.trained_labels == ["N", "PER"]
    warned = next(w for w in task.report["warnings"] if w["code"] == "unseen_span_labels")
    assert warned["values"] == {"split": "test", "count": 1, "names": ["RARO"]}


def test_tags_of_a_spanish_sentence_by_hand() -> None:
    """Offsets as a word tokenizer gives them: Ana | Núñez | , | vive | en | León."""
    starts, ends = np.array([0, 4, 9, 11, 16, 19]), np.array([3, 9, 10, 15, 18, 23])
    spans = [Span(0, 9, "PER"), Span(19, 23, "LUG")]
    labels = ["LUG", "PER"]
    tags = tags_of(spans, starts, ends, labels)
    assert [tag_names(labels)[t] for t in tags] == ["B-PER", "I-PER", "O", "O", "O", "B-LUG"]
    assert spans_of(tags, starts, ends, labels) == tuple(spans)


def test_an_inside_tag_that_continues_nothing_begins_an_entity() -> None:
    names = tag_names(["A", "B"])
    tags = np.array([names.index(n) for n in ("I-A", "I-A", "I-B", "O", "I-A", "B-A")])
    starts = np.arange(6) * 2
    assert spans_of(tags, starts, starts + 1, ["A", "B"]) == (
        Span(0, 3, "A"), Span(4, 5, "B"), Span(8, 9, "A"), Span(10, 11, "A"),
    )  # fmt: skip


def test_white_space_tokens_interrupt_no_entity() -> None:
    starts, ends = np.array([0, 5, 7]), np.array([5, 5, 12])
    tags = tags_of([Span(0, 12, "PER")], starts, ends, ["PER"])
    assert tags.tolist() == [1, 0, 2]
    assert spans_of(tags, starts, ends, ["PER"]) == (Span(0, 12, "PER"),)


WORDS = st.lists(st.sampled_from(["Íñigo", "año", "de", "León", "ñu", "2026", "—", "camión"]), min_size=1, max_size=12)


@settings(deadline=None)
@given(WORDS, st.data())
def test_spans_on_word_borders_survive_any_byte_level_tokens(words: list[str], data: st.DataObject) -> None:
    text = " ".join(words)
    places = np.cumsum([0, *(len(word) + 1 for word in words)])
    cuts = sorted(set(data.draw(st.lists(st.integers(0, len(words)), max_size=6))))
    spans = [Span(int(places[a]), int(places[b]) - 1, "AB"[a % 2]) for a, b in itertools.pairwise(cuts)]
    placed = placed_tokens(tiny_tokenizer_once(), text)
    tags = tags_of(spans, placed.starts, placed.ends, ["A", "B"])
    assert spans_of(tags, placed.starts, placed.ends, ["A", "B"]) == tuple(spans)


_TOKENIZER: list[Any] = []


def tiny_tokenizer_once() -> Any:
    if not _TOKENIZER:
        _TOKENIZER.append(tiny_tokenizer())
    return _TOKENIZER[0]


def test_tokens_know_where_they_stand_without_their_white_space() -> None:
    text = "  La señora\n\nÚrsula — llegó 🙂."
    placed = placed_tokens(tiny_tokenizer_once(), text)
    assert all(text[s:e] == text[s:e].strip() for s, e in zip(placed.starts, placed.ends, strict=True))
    covered = {c for s, e in zip(placed.starts, placed.ends, strict=True) for c in range(s, e)}
    assert covered == {c for c, character in enumerate(text) if not character.isspace()}


def test_a_document_is_its_own_group_unless_told() -> None:
    rows = [row(n, paciente=n // 3) for n in range(10, 22)]
    assert len({d.group for d in prepared(rows).train}) == 6
    groups = {name: {d.group for d in getattr(prepared(rows, group="paciente"), name)} for name in ("train", "test")}
    assert not groups["train"] & groups["test"]
    assert isinstance(prepared(rows).train[0], Document)
