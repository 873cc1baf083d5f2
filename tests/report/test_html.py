from __future__ import annotations

import copy
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from synthetic_study import CHAPTERS, make_evidence

from quilate.errors import DataError, UsageError
from quilate.report.catalogue import STRINGS
from quilate.report.html import render_html
from quilate.report.language import Language, missing_keys

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Every tag, the attributes, and whether all that opens also closes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module", params=["en", "es"])
def html(request: pytest.FixtureRequest, evidence: dict[str, Any]) -> str:
    return render_html(evidence, request.param)


def test_it_requests_nothing_from_anywhere(html: str) -> None:
    assert "//" not in re.sub(r"/\*.*?\*/", "", html, flags=re.DOTALL)  # no address of any scheme
    assert "@import" not in html
    page = Page(html)
    policy = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "img", "form", "base"}
    targets = [v for _, a in page.tags for k, v in a.items() if k in ("src", "href", "xlink:href", "srcset")]
    assert targets
    assert all(v and v.startswith("#") for v in targets)


def test_its_tags_are_balanced_and_its_ids_unique(html: str) -> None:
    page = Page(html)
    assert page.open == []
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    used = {v[1:] for _, a in page.tags for k, v in a.items() if k == "xlink:href" and v}
    assert used <= set(ids)


def test_the_recommendation_comes_first_and_every_arm_and_label_is_there(html: str) -> None:
    text = Page(html).text
    first = text.index("Ajuste completo")
    assert first < text.index("Clase mayoritaria")
    for name in [*CHAPTERS, "TF-IDF + regresión logística", "LoRA", "SmolLM2-135M-Instruct", "cie10.csv"]:
        assert name in text


def test_no_colour_escapes_the_theme(html: str) -> None:
    """Markers that matplotlib drew with have all become CSS variables; nothing is drawn in a fixed black or white."""
    svgs = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL))
    assert not re.findall(r"#[0-9a-f]{6}\b", svgs)
    assert "var(--accent)" in svgs


def test_spanish_says_everything_in_spanish(evidence: dict[str, Any]) -> None:
    text = Page(render_html(evidence, "es")).text
    assert "Entrene: Ajuste completo vale lo que cuesta." in text
    assert re.search(r"\d,\d\s%", text)
    assert not re.search(r"\d\.\d\s?%", text)
    english = {s for s in STRINGS["en"].values() if " " in s and "{" not in s} - set(STRINGS["es"].values())
    assert [s for s in english if s in text] == []


def test_both_catalogues_have_the_same_keys_and_values() -> None:
    import string

    assert missing_keys() == set()
    assert missing_keys({"en": {"a": "x", "b": "y"}, "es": {"a": "x"}}) == {"es: b"}
    for key in STRINGS["en"]:
        fields = [{f for _, f, _, _ in string.Formatter().parse(STRINGS[lang][key]) if f} for lang in ("en", "es")]
        assert fields[0] == fields[1], key


def test_markup_in_labels_and_names_is_shown_not_run() -> None:
    attack = '<script>alert("$x^2$")</script>'
    evidence = make_evidence(60, labels=[attack, "niño & niña", "pingüino"])
    evidence["task"]["name"] = evidence["base"]["name"] = evidence["recipe"] = attack
    evidence["lineage"][0]["path"] = attack
    evidence["arms"][4]["name"] = attack
    evidence["notices"].append({"code": "text", "values": {"text": attack + "{0.__class__}"}})
    html = render_html(evidence, "es")
    assert "<script" not in html
    text = Page(html).text
    assert attack in text
    assert attack + "{0.__class__}" in text
    assert "niño & niña" in text


def test_undecided_says_so(evidence: dict[str, Any]) -> None:
    undecided = make_evidence(items=120)
    assert undecided["recommendation"]["verdict"] == "undecided"
    text = Page(render_html(undecided, "es")).text
    assert text.split("Sin decidir: etiquete unos ")[1][0].isdigit()
    assert "recomendado" not in text


def test_a_baseline_only_study_has_no_learning_curves(evidence: dict[str, Any]) -> None:
    plain = copy.deepcopy(evidence)
    for arm in plain["arms"]:
        arm["learning_curves"] = [[{"step": 1, "loss": "nan"}]]  # a refused step, as the log writes it
    assert "Learning curves" not in Page(render_html(plain, "en")).text


def test_what_is_not_evidence_is_refused(evidence: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="schema"):
        render_html({**evidence, "schema": "other/9"}, "en")
    with pytest.raises(UsageError, match="klingon"):
        render_html(evidence, "klingon")


@pytest.mark.parametrize(
    ("call", "english", "spanish"),
    [
        (lambda t: t.percent(0.7134), "71.3%", "71,3\xa0%"),
        (lambda t: t.points(-0.021), "−2.1", "−2,1"),
        (lambda t: t.points(-0.0001), "0.0", "0,0"),
        (lambda t: t.count(1234567), "1,234,567", "1\u202f234\u202f567"),
        (lambda t: t.count(1234), "1,234", "1234"),
        (lambda t: t.duration(12_345), "3\xa0h\xa025\xa0min", "3\xa0h\xa025\xa0min"),
        (lambda t: t.duration(1.44), "1.4\xa0s", "1,4\xa0s"),
        (lambda t: t.p_value(0.0000001), "< 0.001", "< 0,001"),
        (lambda t: t.big(134_515_008), "134.5\xa0M", "134,5\xa0M"),
        (lambda t: t.names(["base, sola", "b"]), "“base, sola” and “b”", "«base, sola» y «b»"),
        (lambda t: t.names(["a", "b", "interno"]), "a, b and interno", "a, b e interno"),
    ],
)
def test_numbers_are_written_as_each_language_writes_them(call: Any, english: str, spanish: str) -> None:
    assert (call(Language("en")), call(Language("es"))) == (english, spanish)


def test_the_curve_over_shots_is_drawn_where_there_is_one(evidence: dict[str, Any]) -> None:
    assert "shots-wide" not in render_html(evidence, "es")
    tried = copy.deepcopy(evidence)
    point = {"score": 0.4, "ci95": (0.3, 0.5), "interval_over": "items", "lowest": 0.35, "highest": 0.45,
             "runs": 4, "items": 100}  # fmt: skip
    tried["arms"][3]["shots_curve"] = [point | {"shots": shots} for shots in (0, 4, 16, "fit")]
    page = Page(render_html(tried, "es"))
    assert "Ejemplos resueltos en la instrucción" in page.text
    assert "los que caben" in page.text
    assert "no con los de prueba" in page.text


def test_what_models_kept_has_a_section_with_every_number_and_its_gates(html: str) -> None:
    text = Page(html).text
    for number in ("9.97", "0.550", "2.000") if "What the models kept" in text else ("9,97", "0,550", "2,000"):
        assert number in text
    assert ("not passed" in text) or ("no superado" in text)
    assert "exposure-wide-" in html
    assert "overlap-" in html
    assert ("What the models kept of their text" in text) or ("Qué retuvieron los modelos de su texto" in text)


def test_without_examinations_and_corpora_there_are_no_such_sections(evidence: dict[str, Any]) -> None:
    page = render_html(evidence | {"privacy": [], "domains": None})
    assert "What the models kept" not in page
    assert "use the same words" not in page
