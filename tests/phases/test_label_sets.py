"""Several labels a text as stages: baselines, a frozen model, and trained sigmoids that transformers reads alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from stage_folder import StageFolder
from support import save_directory, tiny_gpt2, tiny_llama, tiny_tokenizer
from transformers import AutoModelForSequenceClassification

from quilate.config import validate
from quilate.engine.label_sets import LabelSetLoss
from quilate.errors import ConfigError, ModelError
from quilate.files import read_json
from quilate.inference.demonstrations import TFIDF
from quilate.inference.scorer import load_scorer
from quilate.models.load import load_tokenizer, new_text_classifier
from quilate.phases.baselines import train_majority, train_tfidf
from quilate.phases.evaluate import EVALUATE, EvaluateConfig, read_counts, read_label_sets
from quilate.phases.examples import label_set_examples
from quilate.phases.finetune import FINETUNE, FinetuneConfig
from quilate.recipe.schema import Recipe
from quilate.tasks.multi_label import MultiLabelConfig, MultiLabelTask, indicators
from quilate.tasks.prepare import prepare
from quilate.tokenization.windows import pieces

WORDS = {"agua": "gotea la tubería", "luz": "la farola parpadea", "ruido": "ladran los perros"}


def text_of(n: int, labels: list[str], repeat: int) -> str:
    said = " y ".join(WORDS[label] for label in labels) or "gracias por todo"
    return f"Aviso {n}: {said}. " + f"Firmado {n}, calle Ñuble {n}, piso {n}. " * repeat


def small_task(*, repeat: int = 0) -> MultiLabelTask:
    """Labels are named by their words; every combination of the three occurs."""
    rows = []
    for n in range(72):
        labels = [label for place, label in enumerate(WORDS) if n >> place & 1]
        rows.append({"t": text_of(n, labels, repeat), "l": labels})
    value = {"kind": "multi_label", "name": "t", "text": "t", "label": "l",
             "split": {"train": 24, "dev": 32, "test": 16}}  # fmt: skip
    task = prepare(validate(MultiLabelConfig, value, source="t"), {"all": rows}, {"all": {}})
    assert isinstance(task, MultiLabelTask)
    return task


def test_tfidf_is_scikit_learns_one_against_the_rest() -> None:
    task = small_task()
    vectorizer = TfidfVectorizer(**TFIDF)
    features = vectorizer.fit_transform([item.text for item in task.train])
    theirs = OneVsRestClassifier(LogisticRegression(C=10.0, max_iter=1000))
    theirs.fit(features, indicators(task.train, task.labels).astype(int))
    texts = [item.text for item in task.test]
    ours = train_tfidf(task, 10.0)[0].score(texts).scores
    np.testing.assert_allclose(ours, theirs.decision_function(vectorizer.transform(texts)), rtol=1e-6, atol=1e-6)
    odds = np.exp(train_majority(task).score(texts).scores[0])
    np.testing.assert_allclose(odds / (1 + odds), indicators(task.train, task.labels).mean(axis=0))


def test_the_loss_is_that_of_transformers_for_several_labels(tmp_path: Path) -> None:
    from quilate.data.packing import pack

    torch.manual_seed(0)
    model = new_text_classifier(save_directory(tiny_llama(), tmp_path / "b"), list(WORDS), dtype=torch.float32)
    task, tokenizer = small_task(), tiny_tokenizer()
    made = label_set_examples(task, tokenizer, max_item_tokens=200, context=256)
    rows = indicators(task.train, task.labels).astype(np.float32)
    targets = {example.id: torch.from_numpy(row) for example, row in zip(made.examples, rows, strict=True)}
    expected = 0.0
    for example in made.examples[:4]:
        labels = targets[example.id][None]
        expected += float(model(input_ids=torch.from_numpy(example.tokens)[None], labels=labels).loss.detach())
    found = LabelSetLoss(model, targets)(pack(made.examples[:4]))
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("architecture", "method"), [("llama", "full"), ("llama", "lora"), ("gpt2", "last_layers")])
def test_sigmoids_learn_and_plain_libraries_give_the_same_log_odds(
    tmp_path: Path, architecture: str, method: str
) -> None:
    base = save_directory({"llama": tiny_llama, "gpt2": tiny_gpt2}[architecture](), tmp_path / "base-model")
    task = small_task()
    folder = StageFolder(tmp_path, base, task)
    value = {"kind": "finetune", "method": method, "batch_size": 6, "epochs": 15, "lr": 1e-2, "precision": "fp32"}
    report = folder.run(FINETUNE, "arm", validate(FinetuneConfig, value, source="t"), {"task": "task", "model": "base"})
    assert report.counts["texts in several windows"] == 0
    folder.run(EVALUATE, "evaluated", EvaluateConfig(), {"task": "task", "arm": "arm"})
    scorer = load_scorer(tmp_path / "arm" / "scorer")
    trained = scorer.score([item.text for item in task.train]).scores > 0
    assert (trained == indicators(task.train, task.labels)).mean() > 0.9
    given = read_label_sets(tmp_path / "evaluated")
    counts = read_counts(tmp_path / "evaluated")
    assert counts[..., 0].sum() == sum(len(set(item.labels) & set(g)) for item, g in zip(task.test, given, strict=True))
    assert counts[..., 2].sum() == sum(map(len, given))
    assert set(read_json(tmp_path / "evaluated" / "evaluation.json")["thresholds"]) == set(task.labels)
    texts = [item.text for item in task.test[:5]]
    np.testing.assert_allclose(scorer.score(texts).scores, plain_log_odds(tmp_path / "arm" / "model", texts), atol=2e-4)


@torch.no_grad()
def plain_log_odds(directory: Path, texts: list[str]) -> np.ndarray:
    """Transformers' own classifier, or peft's on it, on a padded batch."""
    tokenizer = load_tokenizer(directory)
    if (directory / "adapter_config.json").exists():
        import peft

        named = read_json(directory / "adapter_config.json")["base_model_name_or_path"]
        config = AutoModelForSequenceClassification.from_pretrained(named).config.from_pretrained(directory)
        model = AutoModelForSequenceClassification.from_pretrained(named, config=config)
        model = peft.PeftModel.from_pretrained(model, directory).eval()
    else:
        model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
    logits: np.ndarray = model(batch.input_ids, attention_mask=batch.attention_mask).logits.numpy()
    return logits


def test_a_frozen_model_reads_long_texts_in_windows_and_averages(tmp_path: Path, llama_directory: Path) -> None:
    task = small_task(repeat=3)
    folder = StageFolder(tmp_path, llama_directory, task)
    value = {"kind": "finetune", "method": "head", "max_item_tokens": 40, "head": {"long": "windows"},
             "precision": "fp32"}  # fmt: skip
    report = folder.run(FINETUNE, "arm", validate(FinetuneConfig, value, source="t"), {"task": "task", "model": "base"})
    assert report.counts["texts in several windows"] == len(task.train)
    assert report.counts["prompts cut"] == 0
    done = folder.run(EVALUATE, "evaluated", EvaluateConfig(), {"task": "task", "arm": "arm"})
    assert done.counts["test texts in several windows"] == len(task.test)
    scorer, tokenizer, model = load_scorer(tmp_path / "arm" / "scorer"), tiny_tokenizer(), tiny_llama()
    text = task.test[0].text
    found = pieces(list(tokenizer(text).input_ids), [], 40)
    assert len(found) > 1 and sum(piece.share for piece in found) == pytest.approx(1)
    with torch.no_grad():
        ends = [model.model(input_ids=torch.tensor([p.tokens])).last_hidden_state[0, -1].numpy() for p in found]
    averaged = sum(piece.share * end for piece, end in zip(found, ends, strict=True))
    np.testing.assert_allclose(scorer.score([text]).scores[0], scorer.weights @ averaged + scorer.bias, atol=1e-3)


def test_long_texts_are_trained_on_window_by_window() -> None:
    task, tokenizer = small_task(repeat=3), tiny_tokenizer()
    made = label_set_examples(task, tokenizer, max_item_tokens=40, context=256)
    assert made.counts == {"texts in several windows": len(task.train), "texts without a token": 0}
    assert max(len(example.tokens) for example in made.examples) <= 40
    assert all(example.targets()[0].tolist() == [len(example.tokens) - 1] for example in made.examples)


def test_what_cannot_label_whole_texts_is_refused(tmp_path: Path) -> None:
    from test_tagging import tiny_roberta

    with pytest.raises(ModelError, match="is a masked language model"):
        new_text_classifier(save_directory(tiny_roberta(), tmp_path / "r"), ["a"], dtype=torch.float32)
    task = {"kind": "multi_label", "name": "t", "text": "t", "label": "l"}
    for arm, named in (({"kind": "icl"}, "a prompt does not solve multi_label"),
                       ({"kind": "finetune", "method": "head", "lr": 0.1}, "`lr` does not go")):  # fmt: skip
        value = {"recipe": "r", "base": "b", "data": {"all": {"path": "a.csv"}}, "task": task, "arms": {"a": arm}}
        with pytest.raises(ConfigError, match=named):
            validate(Recipe, value, source="t")
