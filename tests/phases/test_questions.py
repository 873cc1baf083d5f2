"""Questions answered by writing: what is learned, that it is, and that extractive answers stand in their contexts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stage_folder import StageFolder
from support import tiny_tokenizer

from quilate.config import validate
from quilate.errors import DataError
from quilate.files import read_json
from quilate.inference.answers import AnswerWriter, Posed
from quilate.inference.scorer import load_scorer
from quilate.phases.evaluate import EVALUATE, EvaluateConfig, read_answer_scores, read_answers
from quilate.phases.examples import answer_examples
from quilate.phases.finetune import FINETUNE, FinetuneConfig
from quilate.phases.icl import ICL, IclConfig
from quilate.tasks.prepare import prepare
from quilate.tasks.question_answering import QuestionAnsweringConfig, QuestionTask

TOWNS = ["León", "Ávila", "A Coruña"]


def small_task(**keys: Any) -> QuestionTask:
    """Every question is answered by its context's town."""
    rows = [{"q": f"¿Dónde, {n}?", "c": f"Año {n}: fue en {TOWNS[n % 3]}.", "a": [TOWNS[n % 3]]} for n in range(18)]
    value = {"kind": "question_answering", "name": "t", "text": "q", "context": "c", "answer": "a",
             "split": {"train": 12, "dev": 2, "test": 4}, "instruction": "Responde.", **keys}  # fmt: skip
    task = prepare(validate(QuestionAnsweringConfig, value, source="t"), {"all": rows}, {"all": {}})
    assert isinstance(task, QuestionTask)
    return task


def test_an_example_is_prompt_first_right_answer_and_end() -> None:
    task, tokenizer = small_task(), tiny_tokenizer()
    made = answer_examples(task, tokenizer, max_item_tokens=200, context=256)
    for item, example in zip(task.train, made.examples, strict=True):
        prompt = f"{item.context}\n\nPregunta: {item.text}\nRespuesta:"
        tokens = tokenizer(f"{prompt} {item.right_answers[0]}").input_ids
        assert example.tokens.tolist() == [*tokens, tokenizer.eos_token_id]
        assert example.supervised.sum() == len(example.tokens) - len(tokenizer(prompt).input_ids)


def test_a_tuned_model_learns_to_answer(tmp_path: Path, llama_directory: Path) -> None:
    task = small_task()
    folder = StageFolder(tmp_path, llama_directory, task)
    value = {"kind": "finetune", "method": "full", "batch_size": 6, "epochs": 25, "lr": 1e-2, "precision": "fp32",
             "max_new_tokens": 16}  # fmt: skip
    folder.run(FINETUNE, "arm", validate(FinetuneConfig, value, source="t"), {"task": "task", "model": "base"})
    folder.run(EVALUATE, "evaluated", EvaluateConfig(), {"task": "task", "arm": "arm"})
    written = load_scorer(tmp_path / "arm" / "scorer").write(task.train)
    right = [answer == item.right_answers[0] for answer, item in zip(written.answers, task.train, strict=True)]
    assert np.mean(right) > 0.7 and set(written.answers) <= set(TOWNS)
    assert (written.unfinished, written.truncated) == (0, 0)
    scores, answers = read_answer_scores(tmp_path / "evaluated"), read_answers(tmp_path / "evaluated")
    exact = [answer == item.right_answers[0] for answer, item in zip(answers, task.test, strict=True)]
    assert scores[:, 0].tolist() == [float(e) for e in exact]
    assert read_json(tmp_path / "evaluated" / "evaluation.json")["temperature"] == 1.0


def test_extractive_answers_stand_in_their_contexts(tmp_path: Path, llama_directory: Path) -> None:
    pytest.importorskip("llguidance", reason="llguidance is not installed (the extra `grammar` has it)")
    folder = StageFolder(tmp_path, llama_directory, small_task(extractive=True))
    config = validate(IclConfig, {"kind": "icl", "shots": 1, "max_new_tokens": 12, "precision": "fp32"}, source="t")
    report = folder.run(ICL, "arm", config, {"task": "task", "model": "base"})
    scorer = load_scorer(tmp_path / "arm" / "scorer")
    assert isinstance(scorer, AnswerWriter)
    questions = [Posed("¿Dónde?", f'Fue en "{town}"\\{town}.') for town in TOWNS]
    prompt = scorer.prompts(questions)[0]
    assert prompt.startswith("Responde.\n\nAño ") and prompt.count("Respuesta: ") == 1
    assert report.facts["train_rows"] == 1
    for question, answer in zip(questions, scorer.write(questions).answers, strict=True):
        assert answer in question.context


def test_what_does_not_fit_is_the_question_and_not_its_demonstrations(llama_directory: Path) -> None:
    """A context of 256 tokens: the demonstrations stay whole before every question, long or short."""
    shown = [(f"¿Dónde, {n}?", f"Año {n}: fue en {town}.", town) for n, town in enumerate(TOWNS[:2])]
    settings = {"template": "{{ context }}\nP: {{ text }}\nR:", "extractive": False, "precision": "fp32"}
    writer = AnswerWriter(llama_directory, demonstrations=shown, max_new_tokens=8, **settings)
    questions = [Posed("¿Dónde?", "Fue en León. " * 40), Posed("¿Dónde?", "Fue en León.")]
    tokenizer = tiny_tokenizer()
    layout = writer._layout(tokenizer)
    prompts, _ = writer._prompts(layout, tokenizer, questions, 200)
    long, short = writer._fitting(layout, tokenizer, prompts, 200)
    head = tokenizer(writer.prompts(questions)[0].partition("Fue en León.")[0]).input_ids[:-1]
    for tokens, _ in (long, short):
        assert tokens[: len(head)] == head and len(tokens) <= 200
        assert tokenizer.decode(tokens).endswith("P: ¿Dónde?\nR:")
    assert (long[1], short[1], len(long[0])) == (True, False, 200)
    assert writer.write(questions).truncated == 1
    many = AnswerWriter(llama_directory, demonstrations=shown * 4, max_new_tokens=8, **settings)
    with pytest.raises(DataError, match="8 demonstrations take"):
        many.write(questions)
