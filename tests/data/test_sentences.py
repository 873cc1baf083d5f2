"""Sentences: Spanish clinical phrases written for these tests, and that nothing but whitespace is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quilate.data.sentences import LANGUAGES, sentences
from quilate.errors import DataError


@pytest.mark.parametrize(
    "expected",
    [
        ["El Dr. García pautó 3,5 mg/dl cada 8 h.", "Alta."],
        ["Avisan a la Dra. M. Núñez y al Sr. Ibáñez.", "Acuden ambos."],
        ["Evitar antiinflamatorios, p. ej. ibuprofeno.", "Control en un mes."],
        ["¿Fiebre?", "No."],
        ["¿Tos?", "¡Mucha!", "Y disnea."],
        ["T.A. 120/80, F.C. 80 lpm.", "Eupneico."],
        ["Tos, fiebre, etc. desde el lunes.", "Sin disnea."],
        ["Dudas... se ingresa.", "Mañana, alta."],
        ["Inicia la 2.ª línea tras el 3.er ciclo.", "Buena tolerancia."],  # sentencex cuts at "2."
        ["Crece E. coli sensible a todo.", "Ceftriaxona 1 g i.v. cada 24 h."],
        ["Líquido con 6 cél./mm3 y proteínas de 31 mg/dl.", "Normal."],
        ["Nódulo de 4,5 cm.", "Peso 67 kg.", "Fiebre de 38 °C.", "Reposo de 5 min.", "Ñu."],  # nor at "cm."
        ["Le puso 5 mg. en vena y 3 mm. Hg de presión."],  # wrong full stops, but no sentences
        ["Terapia V.A.C. en el pie.", "L.V.F. evoluciona bien de lo suyo."],
        ["Adenocarcinoma de colon.", "p53 positivo."],
        ["Adenocarcinoma de colon.", "pT3N0.", "pH 7,33."],  # names in mixed case begin a sentence
        ["Cama nº 3, 2,5 x 3,1 cm aprox. de diámetro.", "Revisión en la habitación n.º 12."],
        ["«Me duele», dijo.", "Se fue a las 8.30 h."],
    ],
)
def test_clinical_phrases(expected: list[str]) -> None:
    assert sentences(" ".join(expected), "es") == expected


def test_missing_space_after_a_full_stop() -> None:
    assert sentences("Tórax sin soplos.Abdomen blando.¿Dolor? No.", "es") == [
        "Tórax sin soplos.",
        "Abdomen blando.",
        "¿Dolor?",
        "No.",
    ]


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r", "\n\n", "\r\n \r\n"])
def test_headings_and_list_entries_end_with_their_line(line_break: str) -> None:
    lines = ["Exploración física", "Buen estado general", "1. Neumonía", "2. Anemia", "a) Ferropénica", "- Fiebre"]
    assert sentences(line_break.join(lines), "es") == lines


def test_hard_wrapped_lines_stay_together() -> None:
    wrapped = "La gammagrafía ósea no\r\nmostró captación en la mano\r\nderecha. Se citó en un mes."
    assert sentences(wrapped, "es") == [
        "La gammagrafía ósea no\r\nmostró captación en la mano\r\nderecha.",
        "Se citó en un mes.",
    ]
    assert sentences("Se observó:\nfibrosis leve", "es") == ["Se observó:", "fibrosis leve"]  # not open: a list begins
    assert sentences("El resultado fue\n\nnegativo", "es") == ["El resultado fue", "negativo"]  # a blank line separates


@pytest.mark.parametrize("text", ["", " \t", "\r\n\n\u00a0"])
def test_whitespace_has_no_sentences(text: str) -> None:
    assert sentences(text, "es") == []


@pytest.mark.parametrize("text", ["Sin punto final", "......", "12,5", "a"])
def test_text_without_a_boundary_is_one_sentence(text: str) -> None:
    assert sentences(f" {text}\n", "es") == [text]


def test_language_without_capitals() -> None:
    assert sentences("これはペンです。それは本です。", "ja") == ["これはペンです。", "それは本です。"]


def test_unsupported_language_is_refused_with_the_supported_ones() -> None:
    with pytest.raises(DataError, match="no rules for sentences in 'eu'") as refused:
        sentences("Kaixo. Zer moduz?", "eu")
    assert all(language in str(refused.value) for language in LANGUAGES)


PARTS = [
    "Dr.",
    "p. ej.",
    "3,5",
    "mg/dl",
    "¿",
    "?",
    "...",
    "…",
    "«",
    "»",
    "1.",
    "2.ª",
    "ñandú",
    "E.",
    "coli",
    "i.v.",
    "No",
]
SPACES = [
    " ",
    "  ",
    "\n",
    "\r\n",
    "\r",
    "\t",
    "\u00a0",
    "\u2028",
    "-",
    "•",
    "😀",
    "fiebre.",
    "Alta",
    "4 cm.",
    ".",
    "(",
    ")",
]
CLINICAL = st.lists(st.sampled_from([*PARTS, *SPACES]), max_size=30).map("".join)


@given(CLINICAL | st.text(st.characters(exclude_categories=["Cs"]), max_size=60), st.sampled_from(["es", "en", "el"]))
def test_nothing_is_lost_but_whitespace(text: str, language: str) -> None:
    found = sentences(text, language)
    assert "".join("".join(found).split()) == "".join(text.split())
    place = 0
    for sentence in found:  # each is a stretch of the text, in order
        assert sentence == sentence.strip() != ""
        place = text.index(sentence, place) + len(sentence)
