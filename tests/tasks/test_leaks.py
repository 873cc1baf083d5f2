"""Leak detection against a brute-force oracle, and the choices normalization makes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quilate.tasks.labels import Item
from quilate.tasks.leaks import NGRAM_WORDS, find_leaks, ngrams, normalize, overlapping_pairs


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Dolor torácico.", "dolor  TORÁCICO", True),
        ("a\u0301rea", "área", True),  # composed and decomposed accents
        ("año", "ano", False),  # accents and ñ carry meaning
        ("¿Fiebre?", "fiebre\n", True),
        ("grado 2", "grado 3", False),
        ("+++", "---", False),  # without any word, the marks are the text
        ("Straße", "STRASSE", True),
    ],
)
def test_normalization(one: str, other: str, same: bool) -> None:
    assert (normalize(one) == normalize(other)) is same


def brute_force(texts: list[str]) -> set[tuple[int, int]]:
    def grams(text: str) -> set[str]:
        words = text.split()
        return {" ".join(words[i : i + 13]) for i in range(len(words) - 12)}

    sets = [grams(text) for text in texts]
    return {
        (min(i, j), max(i, j))
        for i, a in enumerate(sets)
        for j, b in enumerate(sets)
        if i != j and a and b and len(a & b) >= 0.7 * min(len(a), len(b)) - 1e-9
    }


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_overlap_agrees_with_brute_force(seed: int) -> None:
    draw = random.Random(seed)
    source = [f"palabra{draw.randrange(200)}" for _ in range(300)]
    texts = []
    for _ in range(25):
        start, length = draw.randrange(200), draw.randrange(5, 60)
        words = source[start : start + length]
        if draw.random() < 0.5:
            words[draw.randrange(len(words))] = "ñandú"
        texts.append(" ".join(words))
    found = {(min(pair), max(pair)) for pair in overlapping_pairs([ngrams(text) for text in texts])}
    assert found == brute_force(texts)


def item(identity: str, text: str, group: str = "") -> Item:
    return Item(identity, text, "x", group or identity)


def test_kinds_of_leak_are_told_apart() -> None:
    note = " ".join(f"palabra{n}" for n in range(40))
    formula = (
        " ".join(f"palabra{n}" for n in range(NGRAM_WORDS)) + " y luego " + " ".join(f"otra{n}" for n in range(40))
    )
    train = [item("a", "Fiebre alta"), item("b", note), item("c", "tos", "paciente 7"), item("d", "nada")]
    test = [
        item("t1", "fiebre, ALTA"),
        item("t2", note + " y algo más"),
        item("t3", "disnea", "paciente 7"),
        item("t4", formula),
        item("t5", "limpio"),
    ]
    found = find_leaks(train, test)
    assert found.exact == {"t1"}
    assert found.overlap == {"t2"}
    assert found.group == {"t3"}
    assert found.items == {"t1", "t2", "t3"}
    assert found.earlier == {"a", "b", "c"}
    assert found.counts() == {"items": 3, "exact": 1, "overlap": 1, "group": 1, "any_ngram": 2, "of": 5}
    assert not find_leaks([train[3]], test).items


def test_a_long_exact_copy_counts_as_exact_only() -> None:
    note = " ".join(f"palabra{n}" for n in range(40))
    found = find_leaks([item("a", note)], [item("t", note.upper() + ".")])
    assert (found.exact, found.overlap) == ({"t"}, frozenset())
    assert not find_leaks([], [item("t", note)]).items
