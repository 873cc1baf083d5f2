"""Multiple choice as stages, and its scorers against oracles that score one option at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stage_folder import StageFolder
from support import tiny_llama, tiny_tokenizer

from quilate.config import validate
from quilate.errors import ConfigError
from quilate.inference.choice import (
    ChoicePromptScorer,
    LongestScorer,
    OverlapScorer,
    PositionScorer,
    Question,
)
from quilate.inference.scorer import load_scorer
from quilate.phases.baselines import place_frequencies, train_overlap
from quilate.phases.evaluate import EVALUATE, EvaluateConfig, read_probabilities
from quilate.phases.examples import choice_examples
from quilate.phases.finetune import FINETUNE, FinetuneConfig
from quilate.phases.icl import ICL, IclConfig
from quilate.phases.prompting import Shown, nearest_of, show, trials_of
from quilate.recipe.schema import Recipe
from quilate.tasks.multiple_choice import ChoiceItem, ChoiceTask, MultipleChoiceConfig
from quilate.tasks.prepare import prepare

QUESTIONS = [
    Question("¿Qué mide la báscula?", ("el peso", "el peso y la altura", "la hora")),
    Question("¿De dónde sale la bellota?", ("de la encina", "del pino")),
    Question("¿Cuántos días tiene la semana?", ("cinco", "siete", "diez", "doce mil quinientos")),
]


def small_task() -> ChoiceTask:
    """The right option always says "sí"; its place and the number of options vary."""
    rows = []
    for n in range(24):
        options = [f"no, el {n}", f"nunca, año {n}", f"jamás {n}"][: 1 + n % 3]
        options.insert(n % (len(options) + 1), f"sí {n}")
        rows.append({"q": f"¿Vale la {n}?", "o": options, "r": f"sí {n}"})
    value = {"kind": "multiple_choice", "name": "t", "text": "q", "options": "o", "right": "r", "right_is": "text",
             "instruction": "Responde.", "split": {"train": 14, "dev": 4, "test": 6}}  # fmt: skip
    task = prepare(validate(MultipleChoiceConfig, value, source="t"), {"all": rows}, {"all": {}})
    assert isinstance(task, ChoiceTask)
    return task


@pytest.mark.parametrize("form", ["text", "letter"])
@pytest.mark.parametrize("normalization", ["sum", "mean", "characters"])
def test_options_are_scored_as_one_at_a_time(llama_directory: Path, form: Any, normalization: Any) -> None:
    """Trees of different sizes in one batch, a shared prefix and padding against a plain forward pass an option.

    `sum` and `characters` are what lm-evaluation-harness calls `acc` and `acc_norm`: the latter divides an option's
    log-likelihood by `len(choice)` (lm_eval/api/task.py, process_results of multiple_choice).
    """
    shown = [(Question("¿Qué da la oveja?", ("lana", "miel")), 0)]
    template = small_task().config.prompt_template(form).source
    scorer = ChoicePromptScorer(
        llama_directory, form=form, template=template, instruction="Responde.", demonstrations=shown,
        normalization=normalization, precision="fp32",
    )  # fmt: skip
    found = scorer.score(QUESTIONS)
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    assert found.scores.shape == (3, 4)
    for row, (question, prompt) in enumerate(zip(QUESTIONS, scorer.prompts(QUESTIONS), strict=True)):
        for place in range(4):
            if place >= len(question.options):
                assert found.scores[row, place] == -np.inf
                continue
            said = question.options[place] if form == "text" else "ABCD"[place]
            before, answer = tokenizer(prompt).input_ids, tokenizer(f" {said}").input_ids
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([before + answer])).logits[0].log_softmax(-1)
            read = [float(logits[len(before) - 1 + i, token]) for i, token in enumerate(answer)]
            expected = sum(read) / {"sum": 1, "mean": len(answer), "characters": len(said)}[normalization]
            assert found.scores[row, place] == pytest.approx(expected, abs=2e-4)


def test_a_prompt_reads_as_it_should(llama_directory: Path) -> None:
    shown = [(QUESTIONS[1], 0)]
    letters = small_task().config.prompt_template("letter").source
    scorer = ChoicePromptScorer(
        llama_directory, form="letter", template=letters, instruction="Responde.", demonstrations=shown
    )
    assert scorer.prompts(QUESTIONS[:1]) == [
        "Responde.\n\nPregunta: ¿De dónde sale la bellota?\nA) de la encina\nB) del pino\nRespuesta: A\n\n"
        "Pregunta: ¿Qué mide la báscula?\nA) el peso\nB) el peso y la altura\nC) la hora\nRespuesta:"
    ]


def test_baselines_by_hand(tmp_path: Path) -> None:
    assert LongestScorer().score(QUESTIONS).scores.argmax(axis=1).tolist() == [1, 0, 3]
    places = PositionScorer([0.2, 0.5, 0.3]).score(QUESTIONS).scores
    assert np.exp(places[0]) == pytest.approx([0.2, 0.5, 0.3, 0])
    assert places[1, 2:].tolist() == [-np.inf, -np.inf]
    assert np.isfinite(places[2]).all()  # a place that no training question had is unlikely, not impossible
    task = small_task()
    learned = place_frequencies(task).frequencies
    assert sum(learned) == pytest.approx(1)
    assert learned[0] == np.mean([item.right == 0 for item in task.train])
    overlap = train_overlap(task)
    scores = overlap.score([Question("¿Vale el año 3?", ("nunca, año 3", "sí"))]).scores
    assert scores[0, 0] > scores[0, 1] == 0
    for number, scorer in enumerate((LongestScorer(), PositionScorer([0.5, 0.5]), overlap)):
        scorer.save(tmp_path / str(number))
        again = load_scorer(tmp_path / str(number))
        assert type(again) is type(scorer)
        np.testing.assert_array_equal(again.score(QUESTIONS).scores, scorer.score(QUESTIONS).scores)
    assert isinstance(overlap, OverlapScorer)


@pytest.mark.parametrize("form", ["text", "letter"])
def test_an_example_is_prompt_right_option_and_end(form: Any) -> None:
    task, tokenizer = small_task(), tiny_tokenizer()
    made = choice_examples(task, form, tokenizer, max_item_tokens=200, context=256)
    assert made.counts == {"prompts cut": 0}
    for item, example in zip(task.train, made.examples, strict=True):
        shown = "".join(f"\n{'ABCD'[i]}) {option}" for i, option in enumerate(item.options)) if form == "letter" else ""
        prompt = f"Pregunta: {item.text}{shown}\nRespuesta:"
        said = item.options[item.right] if form == "text" else item.label
        assert example.tokens.tolist() == [*tokenizer(f"{prompt} {said}").input_ids, tokenizer.eos_token_id]
        assert example.supervised.sum() == len(example.tokens) - len(tokenizer(prompt).input_ids)


@pytest.mark.parametrize(("method", "form"), [("full", "text"), ("lora", "text"), ("full", "letter")])
def test_a_tuned_model_learns_to_answer(tmp_path: Path, llama_directory: Path, method: str, form: str) -> None:
    folder = StageFolder(tmp_path, llama_directory, small_task())
    value = {"kind": "finetune", "method": method, "answer": form, "batch_size": 5, "epochs": 25, "lr": 1e-2,
             "precision": "fp32"}  # fmt: skip
    folder.run(FINETUNE, "arm", validate(FinetuneConfig, value, source="t"), {"task": "task", "model": "base"})
    folder.run(EVALUATE, "evaluated", EvaluateConfig(), {"task": "task", "arm": "arm"})
    task = small_task()
    scores = load_scorer(tmp_path / "arm" / "scorer").score(task.train).scores
    right = np.mean([row.argmax() == item.right for row, item in zip(scores, task.train, strict=True)])
    assert right > 0.9
    probabilities = read_probabilities(tmp_path / "evaluated")
    assert probabilities.shape == (6, len(task.labels))
    for row, item in zip(probabilities, task.test, strict=True):
        assert row.sum() == pytest.approx(1)
        assert row[len(item.options) :].sum() == 0  # what is no option has no probability


def test_a_prompted_arm_shows_solved_questions(tmp_path: Path, llama_directory: Path) -> None:
    folder = StageFolder(tmp_path, llama_directory, small_task())
    config = validate(IclConfig, {"kind": "icl", "shots": 2, "answer": "letter", "max_item_tokens": 64}, source="t")
    report = folder.run(ICL, "arm", config, {"task": "task", "model": "base"})
    scorer = load_scorer(tmp_path / "arm" / "scorer")
    task = small_task()
    train = {item.id: item for item in task.train}
    prompt = scorer.prompts(task.test[:1])[0]
    assert prompt.startswith("Responde.\n\n")
    for name in report.facts["demonstrations"]:
        assert f"{train[name].text}\n" in prompt
        assert f"{train[name].options[train[name].right]}" in prompt
    assert prompt.count("Respuesta: ") == 2
    assert report.facts["train_rows"] == 2


def recipe(arm: dict[str, Any], task: dict[str, Any]) -> Recipe:
    value = {"recipe": "r", "base": "here", "data": {"all": {"path": "a.jsonl"}},
             "task": {"name": "t", "text": "q"} | task, "arms": {"a": arm}}  # fmt: skip
    return validate(Recipe, value, source="t")


CHOICE = {"kind": "multiple_choice", "options": "o", "right": "r"}
SPANS = {"kind": "extraction", "spans": "e"}


@pytest.mark.parametrize(
    ("arm", "task", "named"),
    [
        ({"kind": "baseline", "method": "gazetteer"}, CHOICE, "does not solve multiple_choice"),
        ({"kind": "baseline", "method": "longest"}, {"label": "l"}, "does not solve classification"),
        ({"kind": "baseline", "method": "tfidf"}, SPANS, "these do: gazetteer"),
        ({"kind": "icl"}, SPANS, "a prompt solves extraction with `answer: records` only"),
        ({"kind": "icl", "answer": "records"}, CHOICE, "`answer: records` goes with extraction"),
        ({"kind": "finetune", "method": "head", "answer": "records"}, SPANS, "learns to write"),
        ({"kind": "icl", "shots": 1, "per_class": True}, CHOICE, "`per_class`"),
        ({"kind": "icl", "shots": "fit", "demonstrations": "nearest"}, CHOICE, "`shots`"),
        ({"kind": "icl", "answer": "records", "calibration": "contextual"}, SPANS, "`calibration`"),
        (
            {"kind": "icl", "shots": 1, "demonstrations": "nearest", "similarity": "embedding"},
            CHOICE,
            "`similarity` does not go with multiple_choice",
        ),
        (
            {"kind": "icl", "shots": 1, "demonstrations": "nearest", "order": "random"},
            CHOICE,
            "`order` does not go with multiple_choice",
        ),
        ({"kind": "icl", "answer": "letter"}, {"label": "l"}, "goes with multiple_choice"),
        ({"kind": "finetune", "method": "head"}, CHOICE, "does not solve multiple_choice"),
        ({"kind": "finetune", "method": "head", "lr": 1e-3}, {"label": "l"}, "`lr` does not go"),
        ({"kind": "finetune", "method": "head", "head": {}}, SPANS, "for whole texts"),
        ({"kind": "finetune", "method": "lora", "quantize": "nf4"}, SPANS, "write their answers: for extraction with"),
    ],
)
def test_an_arm_that_cannot_solve_the_task_is_refused(arm: dict[str, Any], task: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        recipe(arm, task)


def test_a_quantized_base_may_write_records() -> None:
    made = recipe({"kind": "finetune", "method": "lora", "quantize": "nf4", "answer": "records"}, SPANS)
    assert made.arms["a"].kind == "finetune"


def test_a_task_without_a_kind_is_classification_and_errors_name_no_kind() -> None:
    assert recipe({"kind": "baseline", "method": "tfidf"}, {"label": "l"}).task is not None
    with pytest.raises(ConfigError, match=r"task\.labell: unknown key"):
        recipe({"kind": "baseline", "method": "tfidf"}, {"labell": "l"})
    with pytest.raises(ConfigError, match=r"t: task: text: name a column"):
        recipe({"kind": "baseline", "method": "gazetteer"}, SPANS | {"text": "{{ q }}"})


def test_diverse_examples_cover_the_questions_and_near_ones_are_all_given() -> None:
    """One question a cluster; where each item finds its own, every training question is handed over."""
    texts = ["fémur roto ayer", "fémur roto hoy", "glucosa alta ayer", "glucosa alta hoy"]
    train = [ChoiceItem(f"all:{n}", text, "A", str(n), ("sí", "no")) for n, text in enumerate(texts)]

    def shown(selection: str) -> tuple[Shown, int | None]:
        config = validate(IclConfig, {"kind": "icl", "shots": 2, "demonstrations": selection}, source="t")
        [trial] = trials_of(config)
        found = show(config, train, trial, seed=0, embed=len, fitting=len)
        return found, nearest_of(found, trial)

    diverse, of_all = shown("diverse")
    assert {item.text.split()[0] for item in diverse.items} == {"fémur", "glucosa"} and of_all is None
    assert shown("nearest") == (Shown(train, own=True), 2)
