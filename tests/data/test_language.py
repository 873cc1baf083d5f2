"""The language of a corpus: shares against mixtures whose languages are known."""

from __future__ import annotations

import sys
from itertools import pairwise

import pytest
from support import SENTENCES

from quilate.data import language
from quilate.data.language import LOOK_AT, MIN_CHARACTERS, NotChecked, check_language

SPANISH = [f"{a} {b}" for a, b in pairwise(SENTENCES)]
ENGLISH = [
    "The patient was admitted with fever, cough and shortness of breath that had started three days earlier.",
    "Laboratory tests showed a high white cell count, and the chest radiograph an infiltrate in the right lung.",
    "Treatment with intravenous antibiotics was started, and she was discharged home without symptoms a week later.",
]


def size(documents: list[str]) -> int:
    return sum(len(document.encode()) for document in documents)


def test_spanish_with_accents_is_spanish() -> None:
    found = check_language(SPANISH, "es")
    assert found.judged == len(SPANISH) > 5
    assert (found.other, found.languages, found.too_short) == (0, {}, 0)


def test_share_is_of_the_bytes_of_what_was_judged() -> None:
    short = ["Alta.", "Sin fiebre.", "x" * (MIN_CHARACTERS - 1)]
    found = check_language([*SPANISH, *ENGLISH, *short], "es")
    assert found.other == pytest.approx(size(ENGLISH) / size(SPANISH + ENGLISH))
    assert found.languages == {"en": found.other}
    assert found.too_short == 3
    turned = check_language([*SPANISH, *ENGLISH], "en")
    assert turned.languages == {"es": turned.other}
    assert turned.other > 0.6
    assert turned.other + turned.unsure == pytest.approx(size(SPANISH) / size(SPANISH + ENGLISH))


def test_large_corpus_is_sampled_the_same_way_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "SAMPLE", 20)
    documents = (SPANISH[:3] + ENGLISH) * 50
    found = check_language(documents, "es")
    assert found.judged == 20
    assert found == check_language(documents, "es")
    assert 0.2 < found.other < 0.8  # the truth is about a half; alternating documents are no trap


def test_only_the_beginning_of_a_long_document_is_judged() -> None:
    long = " ".join(SPANISH * (LOOK_AT // size(SPANISH) + 1))[:LOOK_AT] + " ".join(ENGLISH * 500)
    assert check_language([long], "es").other == 0


def test_what_cannot_be_checked_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotChecked, match="no document has 60 characters"):
        check_language(["Alta.", "Sin fiebre."], "es")
    with pytest.raises(NotChecked, match=r"does not know 'nah' \(it knows .*, es, "):
        check_language(SPANISH, "nah")
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)  # as if it were not installed
    with pytest.raises(NotChecked, match="py3langid is not installed"):
        check_language(SPANISH, "es")
