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
from quilate.inference.api_answers import from_first_token, letter_named, records_in
from quilate.inference.api_client import Endpoint, Prices
from quilate.inference.api_kinds import ApiAnswerWriter, ApiChoiceScorer, ApiTagger, answer_line
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
    says(server, "A", "La respuesta correcta es **B**, y no a mano.", "Ni idea")
    asked = model(server, tmp_path, endpoint="chat")
    asked.endpoint = Endpoint(server.url, concurrency=1)
    scorer = ApiChoiceScorer(form="letter", template=TEMPLATES["letter"], instruction="Elige.", model=asked)
    found = scorer.score(QUESTIONS)
    assert found.scores.argmax(axis=1).tolist()[:2] == [0, 1]
    assert np.isneginf(found.scores[1, 2:]).all() and np.ptp(found.scores[2]) == 0
    assert found.counts["answers that name no label"] == 1
    in_words = scorer._question(QUESTIONS[0], [])
    assert in_words.named("El glucagón", in_words.answers) == 1  # a letter is asked for, and its option will do
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
        ("Es B, no C.", 1),
        ("Cortisol", 2),
        ("Ninguna", None),
        ("D", None),
        ("", None),
    ],
)
def test_the_letter_that_an_answer_names(text: str, place: int | None) -> None:
    assert letter_named(("Insulina", "Glucagón", "Cortisol"))(text, ["A", "B", "C"]) == place


HEPATITIS = ("Hepatitis C", "Hepatitis A", "Hepatitis B", "VIH")
GERMS = ("E. coli", "S. aureus", "C. difficile", "Vitamina A", "A y B")


@pytest.mark.parametrize(
    ("options", "text", "place"),
    [
        (HEPATITIS, "Hepatitis A", 1),
        (HEPATITIS, "La hepatitis C.", 0),
        (HEPATITIS, "La B es correcta: hepatitis A.", 1),
        (GERMS, "E. coli", 0),
        (GERMS, "C. difficile, por la diarrea", 2),
        (GERMS, "La C, no E. coli", 2),
        (GERMS, "Vitamina A", 3),
        (GERMS, "A y B", 4),
        (GERMS, "D es la correcta: Vitamina A.", 3),
        (GERMS, "La respuesta es B porque la vitamina A no...", 1),
        (GERMS, "No es la A.", None),
        (GERMS, "Ni A ni B.", None),
        (GERMS, "A es la correcta", 0),
        (GERMS, "B is the correct answer.", 1),
        (GERMS, "B porque es correcta", 1),
        (GERMS, "La B es la correcta", 1),
        (GERMS, "La opción correcta es la b.", 1),
        (GERMS, "respuesta: b", 1),
        (GERMS, "Opción b)", 1),
        (GERMS, "The answer is b)", 1),
        (GERMS, "La respuesta a la pregunta es C", 2),
        (GERMS, "La respuesta correcta es la **B**, no la A.", 1),
        (GERMS, "Correct answer: B\n\nExplanation: A. is wrong", 1),
        (GERMS, "The correct answer is **B) S. aureus**.\n\nA) E. coli lowers", 1),
        (GERMS, "B\xa0", 1),
        (GERMS, "Se aísla E de un cultivo: la C.", 2),
    ],
)
def test_letters_among_options_full_of_letters(options: tuple[str, ...], text: str, place: int | None) -> None:
    assert letter_named(options)(text, list("ABCDE"[: len(options)])) == place


@pytest.mark.parametrize(
    ("text", "steps", "place"),
    [
        ("B) Glucagón", [("B)", {"B)": -0.01, "A": -6.0})], 1),
        ("\n\nB", [("\n\n", {"\n\n": -0.1, "A": -3.0}), ("B", {"B": -0.2, "A": -4.0})], 1),
        ("**A**", [("**", {"**": -0.1, "B": -3.0, "A": -3.5}), ("A", {"A": -0.1, "B": -5.0})], 0),
        ("Answer: A", [("Answer", {"Answer": -0.1, "B": -3.0})], 0),
        ("Claramente, la C.", [("Clar", {"Clar": -0.1, "B": -3.0})], 2),
        ("<think>B? No.</think>C", [("<think>", {"<think>": -0.1, "B": -3.0})], 2),
    ],
)
def test_the_letter_that_was_written_is_the_one_that_counts(text: str, steps: Any, place: int) -> None:
    content = [
        {"token": token, "top_logprobs": [{"token": t, "logprob": value} for t, value in listed.items()]}
        for token, listed in steps
    ]
    response = {"choices": [{"message": {"content": text}, "logprobs": {"content": content}}]}
    answer = from_first_token(response, ["A", "B", "C"], letter_named(("Insulina", "Glucagón", "Cortisol")))
    assert answer.named and answer.scores.argmax() == place


@pytest.mark.parametrize(
    ("text", "texts", "malformed", "valid"),
    [
        ('```json\n[{"label": "P", "text": "Ana"}]\n```', ["Ana"], 0, True),
        ('Entidades [P, L]:\n[{"label": "P", "text": "Ana"}]', ["Ana"], 0, True),
        ('{"entities": []}', [], 0, True),
        ("[]", [], 0, True),
        ('[{"label": "P", "text": "Ana"}] y de fechas [].', ["Ana"], 0, True),  # the last that holds something
        (
            '[{"label": "L", "text": "Ávila [sic]"}, {"label": "P", "text": "Eva"}, {"label": "P", "te',
            ["Ávila [sic]", "Eva"],
            0,
            True,
        ),
        ('[{"label": "P", "text": "Ana", "start": 0}, {"label": "P", "text": null}]', ["Ana"], 1, True),
        ("[{'label': 'P', 'text': 'Ana'}]", [], 0, False),
        ('{"P": ["Ana"]}', [], 0, False),
        ("[lo siento, no puedo]", [], 0, False),
        ("", [], 0, False),
        ("[" * 3000, [], 0, False),
    ],
)
def test_the_records_in_an_answer(text: str, texts: list[str], malformed: int, valid: bool) -> None:
    found = records_in(text)
    assert ([record.text for record in found.records], found.malformed, found.valid) == (texts, malformed, valid)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("El fémur\n\nPregunta: ¿y?", "El fémur"),
        ("**Respuesta:**\nEl fémur", "El fémur"),
        ("Respuesta: el fémur", "el fémur"),
        ("```\nEl fémur\n```", "El fémur"),
        ("**El fémur**", "**El fémur**"),
        ("\n \n", ""),
    ],
)
def test_the_line_that_answers(text: str, line: str) -> None:
    assert answer_line(text, "Respuesta:") == line


def test_thoughts_and_silence_are_no_answers(server: ModelServer, tmp_path: Path) -> None:
    says(server, "<think>\nVeamos\n</think>\n\nEl fémur", "<think>Sin fin", "Fue \ud800", stopped="length")
    asked = model(server, tmp_path, endpoint="chat")
    asked.endpoint = Endpoint(server.url, concurrency=1)
    writer = ApiAnswerWriter(template="P: {{ text }}\nR:", instruction="", extractive=True, model=asked)
    found = writer.write([Posed(f"¿Qué hueso, {n}?", "El fémur.") for n in range(3)])
    assert found.answers == ["El fémur", "", "Fue ?"] and found.unfinished == 3
    assert found.counts["answers that say nothing"] == 1
    assert found.counts["answers that stand nowhere in the context"] == 1


def test_a_completion_in_words_ends_with_its_paragraph(server: ModelServer, tmp_path: Path) -> None:
    asked = model(server, tmp_path)
    shown = [*SHOWN, (Question("¿Qué hormona sube?", ("Sal", "Cortisol")), 1)]
    keys = {"template": TEMPLATES["text"], "instruction": "", "model": asked, "nearest": 1}
    scorer = ApiChoiceScorer(form="text", demonstrations=shown, **keys)
    posed = scorer._question(QUESTIONS[0], []).posed
    assert asked.request(posed, stops=True).body["stop"] == ["\n\n"] and "stop" not in asked.request(posed).body
    both = ApiChoiceScorer(form="text", demonstrations=shown, **(keys | {"nearest": 2}))
    both.score(QUESTIONS[:1])
    assert server.asked.pop()["prompt"].index("riñones") < 50  # the most alike stands right before the question
    scorer.score(QUESTIONS[:1])
    assert "¿Qué hormona sube?" in server.asked[0]["prompt"] and "riñones" not in server.asked[0]["prompt"]
    scorer.model = model(server, tmp_path, answers="likelihood")
    assert scorer.score([]).scores.shape == (0, 0)


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
        "answers cut short": 4, "answers that are no records": 1, "records without label or text": 0,
        "records of another label": 1, "records that stand nowhere": 1, "answers from the cache": 0,
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
