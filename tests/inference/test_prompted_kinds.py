"""Options, answers and records asked for with each item's nearest examples, and in a conversation."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import tiny_llama, tiny_tokenizer

from quilate.errors import QuilateError
from quilate.inference.answers import AnswerWriter, Posed
from quilate.inference.choice import ChoicePromptScorer, Question
from quilate.inference.demonstrations import nearest_to
from quilate.inference.records import RecordTagger
from quilate.inference.scorer import load_scorer
from quilate.tasks.records import parse_records

TEMPLATE = "Pregunta: {{ text }}\nRespuesta:"
READ = "{{ context }}\n\nPregunta: {{ text }}\nRespuesta:"
QUESTIONS = [
    Question("¿Dónde está el fémur?", ("muslo", "mano")),
    Question("¿Qué baja la glucosa?", ("insulina", "sal")),
]
POOL = [
    (Question("¿Qué sube la glucosa?", ("glucagón", "agua")), 0),
    (Question("¿Dónde está el radio?", ("brazo", "pierna")), 0),
    (Question("¿Cuántos riñones hay?", ("uno", "dos")), 1),
]
SOLVED = [(q.text, "El texto dice algo.", q.options[right]) for q, right in POOL]


def chooser(directory: Path, **keys: Any) -> ChoicePromptScorer:
    return ChoicePromptScorer(
        directory, form="text", template=TEMPLATE, instruction="Elige.", precision="fp32", **keys
    )  # fmt: skip


def writer(directory: Path, **keys: Any) -> AnswerWriter:
    keys = {"extractive": False, "max_new_tokens": 5, "instruction": "Lee."} | keys
    return AnswerWriter(directory, template=READ, precision="fp32", **keys)


def test_the_most_alike_come_first() -> None:
    near = nearest_to(POOL, lambda shown: shown[0].text, [q.text for q in QUESTIONS], 2)
    assert [own[0][0].text for own in near] == ["¿Dónde está el radio?", "¿Qué sube la glucosa?"]
    assert [len(own) for own in near] == [2, 2]
    assert nearest_to(POOL, lambda shown: shown[0].text, ["x"], 0) == [[]] and nearest_to([], str, ["x"], 3) == [[]]


def test_every_question_after_its_own_nearest(llama_directory: Path, tmp_path: Path) -> None:
    scorer = chooser(llama_directory, demonstrations=POOL, nearest=2)
    found = scorer.score(QUESTIONS)
    for row, own in enumerate(nearest_to(POOL, lambda shown: shown[0].text, [q.text for q in QUESTIONS], 2)):
        alone = chooser(llama_directory, demonstrations=own[::-1])  # the nearest right before the question
        np.testing.assert_allclose(found.scores[row], alone.score([QUESTIONS[row]]).scores[0], rtol=0, atol=1e-5)
        assert scorer.prompts(QUESTIONS)[row] == alone.prompts([QUESTIONS[row]])[0]
    scorer.save(tmp_path / "scorer")
    np.testing.assert_array_equal(load_scorer(tmp_path / "scorer").score(QUESTIONS).scores, found.scores)


def test_examples_that_do_not_fit_are_left_out_and_the_nearest_stay(llama_directory: Path) -> None:
    long = [(Question(f"{q.text} {'muy largo ' * 10}", q.options), right) for q, right in POOL]
    scorer = chooser(llama_directory, demonstrations=long, nearest=3)
    prompts = scorer.prompts(QUESTIONS)
    assert scorer.score(QUESTIONS).counts == {"prompts with fewer demonstrations": 2}
    assert chooser(llama_directory, demonstrations=POOL, nearest=1).score(QUESTIONS).counts == {
        "prompts with fewer demonstrations": 0
    }
    assert all(prompt.count("muy largo") > 0 for prompt in prompts)  # one at least is there
    context = tiny_llama().config.max_position_embeddings
    for prompt, own in zip(prompts, ("radio", "sube la glucosa"), strict=True):
        assert len(tiny_tokenizer()(prompt).input_ids) < context and own in prompt
        assert prompt.count("Respuesta:") < 4
    answers = writer(llama_directory, demonstrations=[(q.text, "", "sí") for q, _ in long], nearest=3)
    told = answers.write([Posed(q.text, "Un texto.") for q in QUESTIONS])
    assert (told.truncated, told.counts) == (0, {"prompts with fewer demonstrations": 2})


@torch.no_grad()
def test_options_in_a_conversation_are_as_likely_as_transformers_says(llama_directory: Path) -> None:
    found = chooser(llama_directory, demonstrations=POOL[:1], style="chat", normalization="sum").score(QUESTIONS)
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    for row, question in enumerate(QUESTIONS):
        turns = [
            {"role": "system", "content": "Elige."},
            {"role": "user", "content": f"Pregunta: {POOL[0][0].text}\nRespuesta:"},
            {"role": "assistant", "content": "glucagón"},
            {"role": "user", "content": f"Pregunta: {question.text}\nRespuesta:"},
        ]
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        for place, option in enumerate(question.options):
            answer = tokenizer(option, add_special_tokens=False).input_ids
            logprobs = model(input_ids=torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
            total = sum(float(logprobs[len(prompt) - 1 + n, token]) for n, token in enumerate(answer))
            assert found.scores[row, place] == pytest.approx(total, abs=1e-3)


def test_answers_in_a_conversation_and_after_the_nearest(llama_directory: Path, tmp_path: Path) -> None:
    asked = [Posed(q.text, "El fémur está en el muslo.") for q in QUESTIONS]
    chat = writer(llama_directory, demonstrations=SOLVED, nearest=1, style="chat")
    turns = [
        {"role": "system", "content": "Lee."},
        {"role": "user", "content": "El texto dice algo.\n\nPregunta: ¿Dónde está el radio?\nRespuesta:"},
        {"role": "assistant", "content": "brazo"},
        {"role": "user", "content": "El fémur está en el muslo.\n\nPregunta: ¿Dónde está el fémur?\nRespuesta:"},
    ]
    expected = tiny_tokenizer().apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert chat.prompts(asked)[0] == expected
    found = chat.write(asked)
    near = nearest_to(SOLVED, lambda shown: shown[0], [q.text for q in asked], 1)
    alone = [
        writer(llama_directory, demonstrations=own, style="chat").write([q]) for own, q in zip(near, asked, strict=True)
    ]
    assert found.answers == [one.answers[0] for one in alone] and found.tokens == sum(one.tokens for one in alone)
    chat.save(tmp_path / "scorer")
    assert load_scorer(tmp_path / "scorer").write(asked).answers == found.answers


@pytest.mark.parametrize("style", ["plain", "chat"])
def test_stretches_and_records_are_valid_in_either_form(style: Any, llama_directory: Path) -> None:
    """In a conversation nothing stands between the template's end and the answer, in a plain text a space."""
    pytest.importorskip("llguidance")
    text = "Ana vive en Ávila."
    told = writer(llama_directory, extractive=True, style=style, max_new_tokens=12).write([Posed("¿Dónde?", text)])
    assert told.answers[0] and told.answers[0] in text
    tagger = RecordTagger(
        llama_directory, ["LUGAR", "PERSONA"], template="Texto: {{ text }}\nEntidades:", instruction="Busca.",
        demonstrations=[("Eva.", '[{"label": "PERSONA", "text": "Eva"}]')], style=style, max_item_tokens=64,
        max_new_tokens=48, precision="fp32",
    )  # fmt: skip
    found = tagger.find([text])
    assert not found.counts["answers that are no records"] and not found.counts["records that stand nowhere"]
    [prompts] = tagger.prompts([text])[0]
    assert all(parse_records(answer).valid for answer in tagger.answers([(prompts, p) for p in prompts.parts(text)]))


def test_a_model_without_a_chat_template_is_refused(llama_directory: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(llama_directory, tmp_path / "sin"))
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(QuilateError, match="chat template"):
        chooser(bare, style="chat").prompts(QUESTIONS)
