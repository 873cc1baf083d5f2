"""The rules on one document: hand-computed cases, and datatrove's own filters on the same words."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, get_args

import pytest
from support import SENTENCES

from quilate.curation import gopher, words
from quilate.curation.gopher import STOP_WORDS, QualityConfig, RepetitionConfig
from quilate.curation.languages import Identifier, LanguageConfig
from quilate.curation.linewise import LineConfig, correct_lines, line_rule
from quilate.curation.personal import PersonalDataConfig, PersonalType, Redactor
from quilate.curation.urls import UrlConfig, UrlRules
from quilate.errors import ConfigError

SPANISH = frozenset(STOP_WORDS["es"])


def damaged(seed: int) -> str:
    """A text with lines, words or marks repeated, so that every rule is met by some seed."""
    draw = random.Random(seed)
    parts = draw.sample(SENTENCES, 8)
    match seed % 8:
        case 0:
            parts += draw.choices(parts, k=draw.randint(1, 8))
        case 1:
            parts += [" ".join(draw.choices(["jarabe", "píldora", "y"], k=60))]
        case 2:
            parts += ["#" * draw.randint(1, 40)]
        case 3:
            parts = [f"- {part}..." for part in parts]
        case 4:
            parts += [" ".join(str(draw.randint(0, 99)) for _ in range(draw.randint(5, 200)))]
        case 5:
            parts = parts[: draw.randint(1, 4)]
        case 6:
            parts += [parts[0].split(",")[0]] * draw.randint(1, 9)
        case _:
            parts = [part.replace(" de ", " ") for part in parts]
    # «¡» is a word to datatrove, whose list of marks lacks it.
    return draw.choice(["\n", "\n\n", " "]).join(parts).replace("¡", "")


@pytest.mark.parametrize("kind", ["repetition", "quality"])
def test_gopher_judges_as_datatrove_does(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the same words: datatrove's come from spaCy, ours from a regular expression."""
    pytest.importorskip("datatrove", reason="the oracle, datatrove, is not installed (pip install 'quilate[dev]')")
    from datatrove.data import Document
    from datatrove.pipeline.filters import gopher_quality_filter, gopher_repetition_filter

    oracle: Any
    if kind == "repetition":
        module, oracle = gopher_repetition_filter, gopher_repetition_filter.GopherRepetitionFilter()
    else:
        module = gopher_quality_filter
        # It counts punctuation marks as words without letters, we do not; the other nine rules are compared.
        oracle = gopher_quality_filter.GopherQualityFilter(stop_words=STOP_WORDS["es"], max_non_alpha_words_ratio=None)
    monkeypatch.setattr(module, "split_into_words", lambda text, language: words.tokens(text))
    names = set()
    for seed in range(400):
        text = damaged(seed)
        if kind == "repetition" and seed % 8 == 5:
            continue  # of a short text, datatrove takes an n-gram that occurs once for repeated
        judged = oracle.filter(Document(text=text, id=str(seed)))
        theirs = None if judged is True else judged[1]
        ours = (
            gopher.repetition(text, RepetitionConfig())
            if kind == "repetition"
            else gopher.quality(text, QualityConfig(min_alphabetic=0), SPANISH)
        )
        assert (ours is None) == (theirs is None), (seed, ours, theirs)
        names.add((ours, theirs))
    assert len({ours for ours, _ in names}) >= 4  # the texts meet many rules
    assert len({theirs for _, theirs in names}) == len(names) == len({ours for ours, _ in names})  # rule by rule


def test_repetition_by_hand() -> None:
    line = "El paciente niega fiebre y tos."
    other = [f"Línea {word} sin repetir nada." for word in ("una", "dos", "tres", "cuatro")]
    config = RepetitionConfig(duplicate_line_characters=1, top_ngrams=[1, 1, 1], duplicate_ngrams=[1] * 6)
    # 2 of 6 lines stood before: a third, above 0.30; 1 of 5 is not.
    assert gopher.repetition("\n".join([line] * 3 + other[:3]), config) == "duplicate lines"
    assert gopher.repetition("\n".join([line] * 2 + other[:3]), config) is None
    # «no no» three times (overlapping): 3 * 5 of 19 characters.
    text = "no no no no y basta"
    assert gopher.repetition(text, RepetitionConfig(top_ngrams=[15 / 19 - 0.01])) == "most frequent 2-gram"
    assert gopher.repetition(text, RepetitionConfig(top_ngrams=[15 / 19 + 0.01])) is None


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("La tos de la niña. " * 9, "too few words"),
        ("a e y o u " * 20, "words too short"),
        ("electroencefalografista de la " * 3 + "otorrinolaringológicamente " * 50, "words too long"),
        ("la de que en el paciente # " * 20, "hash signs"),
        ("• la tos de la niña con el padrino\n" * 20, "bullet lines"),
        ("paciente tosiendo de la niña 123 345 567 " * 20, "words without letters"),
        ("tos fiebre dolor cefalea " * 20, "stop words"),
        ("Con la tos de la niña y del padre viene otra. " * 6, None),
    ],
)
def test_quality_by_hand(text: str, rule: str | None) -> None:
    assert gopher.quality(text, QualityConfig(), SPANISH) == rule


def test_addresses(tmp_path: Path) -> None:
    (tmp_path / "bloqueados.txt").write_text("# lista\ncasinos.example\n", encoding="utf-8")
    config = UrlConfig(blocked_domains=["wikipedia.org"], blocked_domains_file="bloqueados.txt")
    rules = UrlRules(config, tmp_path)
    cases = {
        "https://es.wikipedia.org/wiki/Tos": "blocked domain",
        "https://notwikipedia.org/wiki/Tos": None,
        "http://casinos.example": "blocked domain",
        "https://a.example/porno-gratis": "banned word",
        "https://a.example/pornografo": None,  # a word, not a part of one
        "https://a.example/sexo-y-salud": None,
        "https://a.example/sexo/casino": "several suspicious words",
        "http://[malo": "not an address",
        None: None,
    }
    assert {url: rules.broken(url) for url in cases} == cases


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("12 comentarios", "counter"),
        ("1.204 Me gusta", "counter"),
        ("— 12 / 2019 —", "no letters"),
        ("Compartir", "one word"),
        ("Adelante.", None),
        ("AVISO IMPORTANTE PARA todos", "capitals"),
        ("Iniciar sesión o registrarse", "menu or notice"),
        ("Ñandúes del sur: leer más...", "menu or notice"),
        ("El paciente no quiso leer más aunque se le ofreció un libro tras otro y después otro.", None),
        ("Ingresó con fiebre y tos.", None),
        ("", None),
    ],
)
def test_lines_by_hand(line: str, rule: str | None) -> None:
    assert line_rule(line, LineConfig()) == rule


@pytest.mark.parametrize(("part", "rule"), [(",", None), (".", None), ("C.", "capitals"), ("1,", None), ("- ", None)])
def test_no_rule_takes_hours_on_a_line_made_for_it(part: str, rule: str | None) -> None:
    """A rule whose time grows with the square of a line's length would not come back from these."""
    line = part * 300_000
    assert line_rule(f"{line} a", LineConfig()) == rule
    assert Redactor(PersonalDataConfig(types=list(get_args(PersonalType)))).redact(line).text == line


def test_a_document_that_loses_too_much_is_dropped() -> None:
    body = " ".join(["La niña tose de noche y duerme mal."] * 5)  # 40 words
    text, removed = correct_lines(f"Inicio\n\n{body}\n\nLeer más", LineConfig(max_removed=0.08))  # 3 of 43 go
    assert (text, dict(removed)) == (body, {"one word": 1, "menu or notice": 1})
    assert correct_lines(f"Inicio\n\n{body}\n\nLeer más", LineConfig(max_removed=0.06))[0] is None


def test_languages() -> None:
    identifier = Identifier(LanguageConfig(accept=["es"]))
    assert identifier.judge(" ".join(SENTENCES)) == ("es", True)
    english = "The patient was admitted with fever, cough and shortness of breath that had started days earlier."
    assert identifier.judge(english) == ("en", False)
    assert Identifier(LanguageConfig(accept=["es", "en"])).judge(english) == ("en", True)
    with pytest.raises(ConfigError, match="does not know 'xx'"):
        Identifier(LanguageConfig(accept=["xx"]))
