"""A model behind an endpoint chooses, finds and writes as the same model does at home; what is malformed is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openai_server import ModelServer, serving
from support import tiny_llama, tiny_tokenizer

from quilate.inference.answers import AnswerWriter, Posed
from quilate.inference.api_answers import letter_named, list_in
from quilate.inference.api_client import Endpoint, Prices
from quilate.inference.api_kinds import ApiAnswerWriter, ApiChoiceScorer, ApiTagger
from quilate.inference.api_model import ApiModel, Asking
from quilate.inference.choice import ChoicePromptScorer, Question
from quilate.inference.scorer import load_scorer
from quilate.tasks.extraction import Span

QUESTIONS = [
    Question("¿Qué hormona baja la glucosa?", ("Insulina", "Glucagón", "Cortisol")),
    Question("¿Dónde está el fémur?", ("En el muslo", "En la mano")),
    Question("¿Qué falta en el escorbuto?", ("Vitamina A", "Vitamina B", "Vitamina C", "Hierro")),
]
SHOWN = [(Question("¿Cuántos riñones hay?", ("Uno", "Dos")), 1)]
TEMPLATES = {
    "text": "Pregunta: {{ text }}\nRespuesta:",
    "letter": "Pregunta: {{ text }}{% for option in options %}\n{{ option }}{% endfor %}\nRespuesta:",
}


@pytest.fixture
def server() -> Any:
    with serving(tiny_llama(), tiny_tokenizer()) as running:
        yield running


def model(server: ModelServer, folder: Path, **asking: Any) -> ApiModel:
    keys = {"model": "m", "endpoint": "completions", "answers": "text", "normalization": "mean", "max_tokens": 6}
    endpoint = Endpoint(server.url, retries=1, concurrency=2)
    return ApiModel(Asking(**(keys | asking)), endpoint, Prices(1.0, 1.0, most=100.0), folder / "responses")


def says(server: ModelServer, *texts: str, stopped: str = "stop") -> None:
    """The server writes these, by the order of the questions that they answer."""
    rest = dict(enumerate(texts))

    def answer(path: str, body: dict[str, Any]) -> dict[str, Any]:
        content = rest[len(server.asked)]
        choice = {"message": {"role": "assistant", "content": content}, "finish_reason": stopped}
        return {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}

    server.answer = answer  # type: ignore[method-assign]


@pytest.mark.parametrize("form", ["text", "letter"])
def test_options_are_as_likely_as_at_home(
    form: Any, server: ModelServer, tmp_path: Path, llama_directory: Path
) -> None:
    asked = model(server, tmp_path, answers="likelihood")
    keys = {"form": form, "template": TEMPLATES[form], "instruction": "Elige.", "demonstrations": SHOWN}
    scorer = ApiChoiceScorer(model=asked, **keys)
    found = scorer.score(QUESTIONS)
    expected = ChoicePromptScorer(llama_directory, precision="fp32", **keys).score(QUESTIONS)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=1e-4)
    assert not found.counts["answers without log-probabilities"]
    assert found.cost == pytest.approx((server.read + server.written) / 1e6)
    scorer.save(tmp_path / "scorer")
    count = len(server.asked)
    np.testing.assert_array_equal(load_scorer(tmp_path / "scorer").score(QUESTIONS).scores, found.scores)
    assert len(server.asked) == count


def test_letters_are_read_from_words(server: ModelServer, tmp_path: Path) -> None:
    says(server, "A", "La respuesta correcta es **B**.", "Ni idea")
    asked = model(server, tmp_path, endpoint="chat")
    asked.endpoint = Endpoint(server.url, concurrency=1)
    scorer = ApiChoiceScorer(form="letter", template=TEMPLATES["letter"], instruction="Elige.", model=asked)
    found = scorer.score(QUESTIONS)
    assert found.scores.argmax(axis=1).tolist()[:2] == [0, 1]
    assert np.isneginf(found.scores[1, 2:]).all() and np.ptp(found.scores[2]) == 0
    assert found.counts["answers that name no label"] == 1
    assert server.asked[0]["messages"][0] == {"role": "system", "content": "Elige."}
    assert server.asked[0]["messages"][1]["content"].endswith("C) Cortisol\nRespuesta:")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("B", 1),
        (" b) Glucagón", 1),
        ("**C**, porque sube la tensión", 2),
        ("A: Insulina. No es B ni C.", 0),
        ("B Glucagón", 1),
        ("A la vista de los datos, la insulina", 0),  # by the option, not by the preposition
        ("A la vista de los datos, es la C.", 2),
        ("La respuesta correcta es la opción (B)", 1),
        ("Es B, no C.", None),
        ("Cortisol", 2),
        ("Ninguna", None),
        ("D", None),
        ("", None),
    ],
)
def test_the_letter_that_an_answer_names(text: str, place: int | None) -> None:
    assert letter_named(("Insulina", "Glucagón", "Cortisol"))(text, ["A", "B", "C"]) == place


@pytest.mark.parametrize(
    ("text", "inner"),
    [
        ("```json\n[1]\n```", "[1]"),
        ('Son: [{"a": "[x]"}].', '[{"a": "[x]"}]'),
        ('{"entities": []}', "[]"),
        ('[{"a": 1}, {"b"', '[{"a": 1}, {"b"'),
        ("nada", "nada"),
    ],
)
def test_the_list_in_an_answer(text: str, inner: str) -> None:
    assert list_in(text) == inner


def test_entities_stand_where_the_document_has_them(server: ModelServer, tmp_path: Path) -> None:
    texts = ["Ana vive en Ávila con Ana.", "  ", "Nadie.", "Juan, de Soria.", "Eva."]
    records = [
        {"label": "PERSONA", "text": "Ana"},
        {"label": "LUGAR", "text": "Ávila"},
        {"label": "PERSONA", "text": "Ana"},
    ]
    answers = [
        "```json\n" + json.dumps(records, ensure_ascii=False) + "\n```",
        "No hay ninguna.",
        json.dumps([{"label": "PERSONA", "text": "Pedro"}, {"label": "FECHA", "text": "Soria"}]),
        '[{"label": "PERSONA", "text": "Eva"}, {"label": "PER',
    ]
    says(server, *answers, stopped="length")
    asked = model(server, tmp_path, endpoint="chat")
    asked.endpoint = Endpoint(server.url, concurrency=1)
    template = "Texto: {{ text }}\nEntidades ({{ labels }}):"
    tagger = ApiTagger(
        ["LUGAR", "PERSONA"], template=template, instruction="", model=asked, demonstrations=[("Yo.", "[]")]
    )
    found = tagger.find(texts)
    assert found.spans == [
        (Span(0, 3, "PERSONA"), Span(12, 17, "LUGAR"), Span(22, 25, "PERSONA")), (), (), (), (Span(0, 3, "PERSONA"),),
    ]  # fmt: skip
    assert found.counts == {
        "answers cut short": 4, "answers that are no records": 1, "records of another label": 1,
        "records that stand nowhere": 1, "answers from the cache": 0,
    }  # fmt: skip
    assert (len(server.asked), found.tokens, found.cost) == (4, 40, pytest.approx(40e-6))  # nothing without words
    assert [turn["content"] for turn in server.asked[0]["messages"]] == [
        "Texto: Yo.\nEntidades (LUGAR, PERSONA):", "[]",
        "Texto: Ana vive en Ávila con Ana.\nEntidades (LUGAR, PERSONA):",
    ]  # fmt: skip
    tagger.save(tmp_path / "scorer")
    again = load_scorer(tmp_path / "scorer").find(texts)
    assert (again.spans, again.counts["answers from the cache"], len(server.asked)) == (found.spans, 4, 4)


def test_answers_are_written_as_at_home(server: ModelServer, tmp_path: Path, llama_directory: Path) -> None:
    questions = [Posed("¿Qué hueso?", "El fémur se rompió."), Posed("¿Cuándo?", "Fue el lunes.")]
    template = "{{ context }}\n\nPregunta: {{ text }}\nRespuesta:"
    keys = {"template": template, "instruction": "Lee.", "demonstrations": [("¿Quién?", "Ana cayó.", "Ana")]}
    writer = ApiAnswerWriter(model=model(server, tmp_path), extractive=True, **keys)
    found = writer.write(questions)
    local = AnswerWriter(llama_directory, extractive=False, max_new_tokens=6, precision="fp32", **keys)
    assert found.answers == local.write(questions).answers
    assert found.counts["answers that stand nowhere in the context"] == sum(
        answer not in q.context for answer, q in zip(found.answers, questions, strict=True)
    )
    assert found.tokens == server.read + server.written and found.unfinished == 2  # this server always says "length"
    writer.save(tmp_path / "scorer")
    assert load_scorer(tmp_path / "scorer").write(questions).answers == found.answers
