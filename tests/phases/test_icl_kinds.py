"""The icl stage for multiple choice, extraction and questions: several prompts tried on dev, what fits, and what the
prompt alone makes a model prefer taken off."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from stage_folder import StageFolder
from support import CONTEXT, tiny_llama, tiny_tokenizer

from quilate.config import validate
from quilate.inference.choice import ChoicePromptScorer, Question
from quilate.inference.records import RecordTagger
from quilate.inference.scorer import load_scorer
from quilate.phases.evaluate import answer
from quilate.phases.icl import ICL, IclConfig
from quilate.phases.stage import StageReport
from quilate.recipe.evidence_stage import _shots_curve
from quilate.tasks.extraction import ExtractionConfig
from quilate.tasks.kinds import load_task
from quilate.tasks.multiple_choice import MultipleChoiceConfig
from quilate.tasks.prepare import prepare
from quilate.tasks.question_answering import QuestionAnsweringConfig
from quilate.tasks.records import written
from quilate.tasks.task import CommonTaskConfig, Task

TOWNS = ["León", "Ávila", "A Coruña"]
COMMON = {"name": "t", "instruction": "Responde."}
CONFIGS: dict[str, type[CommonTaskConfig]] = {
    "multiple_choice": MultipleChoiceConfig,
    "extraction": ExtractionConfig,
    "question_answering": QuestionAnsweringConfig,
}
KINDS: dict[str, dict[str, Any]] = {
    "multiple_choice": {"text": "q", "options": "o", "right": "a", "right_is": "text"},
    "extraction": {"text": "c", "spans": "e"},
    "question_answering": {"text": "q", "context": "c", "answer": "a"},
}
TEMPLATES = {
    "multiple_choice": ["Pregunta: {{ text }}\nRespuesta:", "{{ text }} Digo:"],
    "extraction": ["Texto: {{ text }}\nEntidades:", "{{ text }} Hay:"],
    "question_answering": ["{{ context }}\nPregunta: {{ text }}\nRespuesta:", "{{ context }} {{ text }} Digo:"],
}


def task_of(kind: str) -> Task:
    rows = []
    for n in range(18):
        town, text = TOWNS[n % 3], f"Año {1900 + n}: fue en {TOWNS[n % 3]}."
        start = text.index(town)
        spans = [{"start": start, "end": start + len(town), "label": "LUG"}]
        rows.append({"q": f"¿Dónde fue lo del año {1900 + n}?", "o": TOWNS[n % 2 :], "a": town, "c": text, "e": spans})
    rows = [row for row in rows if kind != "multiple_choice" or row["a"] in row["o"]]
    counts = {"train": len(rows) - 8, "dev": 4, "test": 4}
    config = validate(CONFIGS[kind], {"kind": kind} | COMMON | KINDS[kind] | {"split": counts}, source="t")
    return prepare(config, {"all": rows}, {"all": {}})


class Prompted:
    """An icl stage that was run."""

    def __init__(self, root: Path, base: Path, kind: str, **keys: Any) -> None:
        self.folder = root / "arm"
        more = {"max_new_tokens": 24} | ({"answer": "records"} if kind == "extraction" else {})
        config = validate(IclConfig, {"kind": "icl", "precision": "fp32"} | more | keys, source="t")
        stages = StageFolder(root, base, task_of(kind))
        self.report: StageReport = stages.run(ICL, "arm", config, {"task": "task", "model": "base"})
        self.task = load_task(root / "task" / "task")
        self.scorer: Any = load_scorer(self.folder / "scorer")


def score_by_hand(task: Task, array: np.ndarray) -> float:
    """The metric, from what each item was answered."""
    if task.config.kind == "multiple_choice":
        return float(np.mean([row.argmax() == item.right for row, item in zip(array, task.dev, strict=True)]))  # type: ignore[attr-defined]
    if task.config.kind == "question_answering":
        return float(array[:, {"exact_match": 0, "token_f1": 1}[task.config.metric]].mean())
    exact, _, predicted, gold = array.sum(axis=(0, 1))
    return float(2 * exact / max(predicted + gold, 1))


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_best_of_several_prompts_on_dev_is_used(kind: str, tmp_path: Path, llama_directory: Path) -> None:
    pytest.importorskip("llguidance", reason="llguidance is not installed (the extra `grammar` has it)")
    arm = Prompted(tmp_path, llama_directory, kind, shots=[0, 2], templates=TEMPLATES[kind], permutations=2)
    tried = arm.report.facts["trials"]
    assert len(tried) == 6  # the order of no examples is tried once
    arrays = [load_file(arm.folder / "trials" / f"{number:03}.safetensors")["dev"] for number in range(6)]
    assert [entry["score"] for entry in tried] == pytest.approx([score_by_hand(arm.task, a) for a in arrays])
    best = max(tried, key=lambda entry: (entry["score"], -entry["tokens"]))
    assert best["trial"] == arm.report.facts["chosen"]
    again = answer(arm.task, arm.scorer, arm.task.dev, lambda *_: None)
    np.testing.assert_allclose(again.array, arrays[tried.index(best)], rtol=0, atol=1e-5)
    assert len({entry["tokens"] for entry in tried}) >= 4  # other templates and numbers were read, and in other orders
    curve = _shots_curve([(arm.folder, {"facts": arm.report.facts})], arm.task, 200)
    assert [(point.shots, point.runs, point.items) for point in curve] == [(0, 2, 4), (2, 4, 4)]
    assert curve[1].highest == pytest.approx(max(e["score"] for e in tried if e["trial"]["shots"] == 2))


@pytest.mark.parametrize("kind", list(KINDS))
def test_examples_that_do_not_fit_are_left_out_and_counted(kind: str, tmp_path: Path, llama_directory: Path) -> None:
    pytest.importorskip("llguidance", reason="llguidance is not installed (the extra `grammar` has it)")
    train = len(task_of(kind).train)
    arm = Prompted(tmp_path, llama_directory, kind, shots="fit", order="given", max_item_tokens=CONTEXT // 3)
    kept = arm.report.facts["train_rows"]
    assert 0 < kept < train and arm.report.counts == {"demonstrations that did not fit": 0}
    more = Prompted(tmp_path / "more", llama_directory, kind, shots=train, order="given", max_item_tokens=CONTEXT // 3)
    assert more.report.facts["demonstrations"] == arm.report.facts["demonstrations"]  # the dearest stay
    assert more.report.counts == {"demonstrations that did not fit": train - kept}
    found = answer(arm.task, arm.scorer, arm.task.test, lambda *_: None)
    assert found.cut == 0
    if kind == "extraction":  # a document keeps its room beside the examples, the answer and the slack
        [prompts] = arm.scorer.prompts([arm.task.test[0].text])[0]
        assert prompts._size == CONTEXT // 3


def test_documents_after_their_own_nearest(tmp_path: Path, llama_directory: Path) -> None:
    pytest.importorskip("llguidance", reason="llguidance is not installed (the extra `grammar` has it)")
    sizes = {"max_new_tokens": 16, "max_item_tokens": 40}
    arm = Prompted(tmp_path, llama_directory, "extraction", shots=2, demonstrations="nearest", **sizes)
    assert arm.report.facts["demonstrations"] == [] and arm.report.facts["train_rows"] == len(arm.task.train)
    texts = [
        f"Año {train.text.split()[1]} otra vez, {town}." for train, town in zip(arm.task.train, TOWNS, strict=False)
    ]
    shown, fewer = arm.scorer.prompts(texts)
    assert fewer == 0
    for text, prompts, own in zip(texts, shown, arm.task.train, strict=False):
        [part] = prompts.parts(text)
        solved = prompts.prompt(part).split("\n\n")[1:-1]
        nearest = f"Texto: {own.text}\nEntidades: {written(own.text, own.spans)}"
        assert len(solved) == 2 and solved[-1] == nearest  # the nearest stands right before the document
    together = arm.scorer.find(texts)
    for text, prompts, spans in zip(texts, shown, together.spans, strict=True):
        alone = RecordTagger(
            arm.scorer.model_path, ["LUG"], template=arm.scorer._template.source, instruction="Responde.",
            demonstrations=prompts._demonstrations, max_item_tokens=40, max_new_tokens=16, precision="fp32",
        )  # fmt: skip
        assert alone.find([text]).spans == [spans]
    crowded = RecordTagger(
        arm.scorer.model_path, ["LUG"], template=arm.scorer._template.source, demonstrations=arm.scorer._demonstrations,
        nearest=10, max_item_tokens=60, max_new_tokens=16, precision="fp32",
    )  # fmt: skip
    found = crowded.find([*texts, "Año nuevo. " * 40])
    assert found.counts["prompts with fewer demonstrations"] == len(texts) + 1
    assert found.windowed == 1  # the document keeps its room, and is shown in parts
    crowded.save(tmp_path / "crowded")
    assert load_scorer(tmp_path / "crowded").find(texts).spans == found.spans[:-1]


QUESTIONS = [
    Question("¿Qué mide la báscula?", ("el peso", "el peso y la altura", "la hora")),
    Question("¿De dónde sale la bellota?", ("de la encina", "del pino")),
]
SHOWN = [(Question("¿Qué da la oveja?", ("lana", "miel")), 0), (Question("¿Qué pesa la báscula?", ("kilos", "no")), 0)]
FORMS = {
    "text": "Pregunta: {{ text }}\nRespuesta:",
    "letter": "Pregunta: {{ text }}{% for o in options %}\n{{ o }}{% endfor %}\nRespuesta:",
}


@torch.no_grad()
def likelihoods(prompt: str, answers: Sequence[str]) -> np.ndarray:
    """[answers] the mean log-probability of each answer's tokens, by a plain forward pass."""
    model, tokenizer, found = tiny_llama(), tiny_tokenizer(), []
    for said in answers:
        before, own = tokenizer(prompt).input_ids, tokenizer(f" {said}").input_ids
        logits = model(input_ids=torch.tensor([before + own])).logits[0].double().log_softmax(-1)
        found.append(np.mean([float(logits[len(before) - 1 + i, token]) for i, token in enumerate(own)]))
    return np.array(found)


@pytest.mark.parametrize("form", ["text", "letter"])
@pytest.mark.parametrize("nearest", [None, 1])
@pytest.mark.parametrize("calibration", ["contextual", "domain_pmi"])
def test_what_the_prompt_alone_prefers_is_taken_off(
    calibration: Any, nearest: int | None, form: Any, llama_directory: Path, tmp_path: Path
) -> None:
    def scorer(**keys: Any) -> ChoicePromptScorer:
        return ChoicePromptScorer(
            llama_directory, form=form, template=FORMS[form], demonstrations=SHOWN, nearest=nearest, precision="fp32",
            **keys,
        )  # fmt: skip

    found = scorer(calibration=calibration).score(QUESTIONS)
    plain = scorer().score(QUESTIONS)
    assert found.tokens > plain.tokens and found.truncated == 0
    for row, question in enumerate(QUESTIONS):
        said = question.options if form == "text" else tuple("ABC"[: len(question.options)])
        [whole] = scorer().prompts([question])
        own = likelihoods(whole, said)
        if calibration == "domain_pmi":
            expected = own - likelihoods("Respuesta:", said)
        else:
            head, free = whole[: whole.rindex("Pregunta:")], []
            for words in ("N/A", "", "[MASK]"):
                options = "".join(f"\n{letter}) {words}" for letter in said) if form == "letter" else ""
                scores = likelihoods(f"{head}Pregunta: {words}{options}\nRespuesta:", said)
                free.append(np.exp(scores) / np.exp(scores).sum())
            expected = own - np.log(np.mean(free, axis=0))
        np.testing.assert_allclose(found.scores[row, : len(said)], expected, rtol=0, atol=2e-4)
        assert (found.scores[row, len(said) :] == -np.inf).all()
    calibrated = scorer(calibration=calibration)
    calibrated.save(tmp_path / "scorer")
    np.testing.assert_array_equal(load_scorer(tmp_path / "scorer").score(QUESTIONS).scores, found.scores)
    assert scorer(calibration=calibration).score([]).scores.shape[0] == 0
