"""An exported task scored by lm-eval's definition, written out with plain transformers; and by lm-eval itself if it is
installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from support import SENTENCES, tiny_llama, tiny_tokenizer

from quilate.errors import UsageError
from quilate.files import read_jsonl
from quilate.inference.choice import ChoicePromptScorer
from quilate.inference.lm_eval import write_lm_eval
from quilate.inference.scorer import PromptScorer
from quilate.tasks.labels import Item
from quilate.tasks.multiple_choice import ChoiceItem

VERBALIZERS = ["piel", "oído izquierdo", "Tórax"]
ITEMS = [Item(f"all:{n}", text, "LHJ"[n % 3], "g") for n, text in enumerate(SENTENCES)]


def scorer(directory: Path, **keys: Any) -> PromptScorer:
    keys = {"normalization": "sum", "demonstrations": [("Eccema", "piel")], "precision": "fp32"} | keys
    return PromptScorer(
        directory,
        list("LHJ"),
        VERBALIZERS,
        template="Diagnóstico: {{ text }}\nCapítulo:",
        instruction="Clasifica.",
        **keys,
    )


def accuracy(ours: PromptScorer) -> float:
    predicted = ours.score([item.text for item in ITEMS]).scores.argmax(axis=1)
    return float(np.mean([ours.labels[p] == item.label for p, item in zip(predicted, ITEMS, strict=True)]))


@torch.no_grad()
def test_the_files_alone_give_our_score(llama_directory: Path, tmp_path: Path) -> None:
    ours = scorer(llama_directory)
    path, metric = write_lm_eval(ours, "Año: ¿qué capítulo?", ITEMS, tmp_path / "tarea")
    assert metric == "acc"
    assert path.name == "año_qué_capítulo.yaml" and path.parent.stat().st_mode & 0o777 == 0o700
    task = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    model, tokenizer, right = tiny_llama(), tiny_tokenizer(), []
    for row in read_jsonl(Path(task["dataset_kwargs"]["data_files"]["test"])):
        totals = []
        for choice in task["doc_to_choice"]:
            context = tokenizer(row["prompt"]).input_ids
            whole = tokenizer(row["prompt"] + task["target_delimiter"] + choice).input_ids
            logprobs = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
            places = range(len(context) - 1, len(whole) - 1)
            totals.append(sum(float(logprobs[place, whole[place + 1]]) for place in places))
        right.append(int(np.argmax(totals)) == row["gold"])
    assert np.mean(right) == pytest.approx(accuracy(ours))


def test_scores_that_the_harness_does_not_have(llama_directory: Path, tmp_path: Path) -> None:
    for keys in ({"normalization": "mean"}, {"calibration": "contextual"}):
        with pytest.raises(UsageError, match="summed log-probability, over their characters or not"):
            write_lm_eval(scorer(llama_directory, **keys), "t", ITEMS, tmp_path)


QUESTIONS = [
    ChoiceItem(f"all:{n}", f"¿Dónde está {text}?", "ABC"[n % 2], "g", ("en el muslo", "en la mano", "no")[: 2 + n % 2])
    for n, text in enumerate(SENTENCES)
]


def chooser(directory: Path, normalization: Any) -> ChoicePromptScorer:
    template = "Pregunta: {{ text }}\nRespuesta:"
    return ChoicePromptScorer(directory, form="text", template=template, normalization=normalization, precision="fp32")


def chosen(ours: ChoicePromptScorer) -> float:
    predicted = ours.score(QUESTIONS).scores.argmax(axis=1)
    return float(np.mean([p == question.right for p, question in zip(predicted, QUESTIONS, strict=True)]))


@torch.no_grad()
@pytest.mark.parametrize("normalization", ["sum", "characters"])
def test_questions_with_options_of_their_own(normalization: Any, llama_directory: Path, tmp_path: Path) -> None:
    ours = chooser(llama_directory, normalization)
    path, metric = write_lm_eval(ours, "huesos", QUESTIONS, tmp_path)
    task = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    assert metric == {"sum": "acc", "characters": "acc_norm"}[normalization]
    assert task["doc_to_choice"] == "{{choices}}" and metric in [m["metric"] for m in task["metric_list"]]
    model, tokenizer, right = tiny_llama(), tiny_tokenizer(), []
    for row in read_jsonl(tmp_path / "huesos.jsonl"):
        context, totals = tokenizer(row["prompt"]).input_ids, []
        for choice in row["choices"]:
            whole = tokenizer(f"{row['prompt']} {choice}").input_ids
            logprobs = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
            total = sum(float(logprobs[place, whole[place + 1]]) for place in range(len(context) - 1, len(whole) - 1))
            totals.append(total / (len(choice) if normalization == "characters" else 1))
        right.append(int(np.argmax(totals)) == row["gold"])
    assert np.mean(right) == pytest.approx(chosen(ours))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["labels", "characters", "options"])
@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
def test_lm_eval_itself(kind: str, llama_directory: Path, tmp_path: Path) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    if kind == "options":
        questions = chooser(llama_directory, "characters")
        expected, (path, metric) = chosen(questions), write_lm_eval(questions, "capítulos", QUESTIONS, tmp_path)
    else:
        ours = scorer(llama_directory, normalization="characters" if kind == "characters" else "sum")
        expected, (path, metric) = accuracy(ours), write_lm_eval(ours, "capítulos", ITEMS, tmp_path)
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(llama_directory), "dtype": "float32", "device": "cpu"},
        tasks=[path.stem],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )
    assert found["results"][path.stem][f"{metric},none"] == pytest.approx(expected)
