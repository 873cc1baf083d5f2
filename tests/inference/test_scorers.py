"""Every scorer comes back from its folder with the same scores; TF-IDF equals scikit-learn's own classifier."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from support import SENTENCES

from quilate.config import validate
from quilate.errors import DataError
from quilate.inference.likelihood import score_tokens
from quilate.inference.scorer import MajorityScorer, PromptScorer, Scorer, TfidfScorer, load_scorer
from quilate.models.load import load_causal, load_tokenizer
from quilate.phases.asking import AskConfig, written_scorer
from quilate.phases.baselines import train_majority, train_tfidf
from quilate.phases.examples import label_examples
from quilate.tasks.classification import ClassificationConfig, ClassificationTask
from quilate.tasks.labels import Item
from quilate.tokenization.segments import answer_tokens

NEW_TEXTS = [
    "dolor de oído y fiebre",
    "lesión en la piel del hombro",
    "palabras nunca vistas: xyzzy",
    "",
    "ÚLCERA aguda",
]


def task(labels: list[str]) -> ClassificationTask:
    train = [Item(f"t:{n}", text, labels[n % len(labels)], f"g{n}") for n, text in enumerate(SENTENCES)]
    config = validate(ClassificationConfig, {"name": "t", "text": "texto", "label": "etiqueta"}, source="prueba")
    return ClassificationTask(config, sorted(set(labels)), train, [], [], {})


@pytest.mark.parametrize("labels", [["sí", "no"], ["piel", "ojo", "oído", "tórax"]], ids=["binary", "multiclass"])
@pytest.mark.parametrize("regularization", [10.0, 0.1])
def test_tfidf_equals_scikit_learn(labels: list[str], regularization: float, tmp_path: Path) -> None:
    problem = task(labels)
    scorer, facts = train_tfidf(problem, regularization)
    pipeline = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=regularization, max_iter=1000)
    )
    pipeline.fit([item.text for item in problem.train], [item.label for item in problem.train])
    columns = [list(pipeline.classes_).index(label) for label in problem.labels]
    expected = pipeline.predict_log_proba(NEW_TEXTS)[:, columns]
    np.testing.assert_allclose(scorer.score(NEW_TEXTS).scores, expected, rtol=0, atol=1e-7)
    assert facts["features"] == len(pipeline[0].vocabulary_)
    scorer.save(tmp_path / "scorer")
    np.testing.assert_array_equal(
        load_scorer(tmp_path / "scorer").score(NEW_TEXTS).scores, scorer.score(NEW_TEXTS).scores
    )


def test_a_label_without_training_rows_comes_last() -> None:
    problem = task(["sí", "no"])
    problem.labels.append("ñandú")
    scores = train_tfidf(problem, 1.0)[0].score(NEW_TEXTS).scores
    assert (scores.argmin(axis=1) == 2).all()
    assert np.isfinite(scores[:, :2]).all()


def test_one_label_or_no_words_is_a_data_error() -> None:
    with pytest.raises(DataError, match="one label only"):
        train_tfidf(task(["sí"]), 1.0)
    empty = task(["sí", "no"])
    empty.train[:] = [Item(i.id, "¡! ...", i.label, i.group) for i in empty.train]
    with pytest.raises(DataError, match="no words"):
        train_tfidf(empty, 1.0)


def test_majority_says_the_commonest_label_whatever_the_text(tmp_path: Path) -> None:
    problem = task(["a", "b", "b", "c"])
    scorer = train_majority(problem)
    scores = scorer.score(NEW_TEXTS).scores
    np.testing.assert_allclose(np.exp(scores), np.tile([0.25, 0.5, 0.25], (5, 1)))
    scorer.save(tmp_path / "s")
    np.testing.assert_array_equal(load_scorer(tmp_path / "s").score(["x"]).scores, scorer.score(["x"]).scores)


def prompt_scorer(model: Path) -> PromptScorer:
    return PromptScorer(
        model,
        ["L00-L99", "H60-H95"],
        ["piel", "oído"],
        template="Diagnóstico: {{ text }}\nCapítulo:",
        instruction="Clasifica.",
        demonstrations=[("Otitis aguda", "oído"), ("Eccema", "piel")],
        normalization="sum",
        precision="fp32",
    )


def test_a_prompt_scorer_comes_back(tmp_path: Path, llama_directory: Path) -> None:
    scorer = prompt_scorer(llama_directory)
    scorer.save(tmp_path / "s")
    loaded = load_scorer(tmp_path / "s")
    assert isinstance(loaded, PromptScorer)
    assert loaded.labels == scorer.labels
    assert loaded.prompts(["Acné"]) == scorer.prompts(["Acné"])
    np.testing.assert_array_equal(loaded.score(NEW_TEXTS).scores, scorer.score(NEW_TEXTS).scores)


def test_the_prompt_reads_as_it_should(llama_directory: Path) -> None:
    assert prompt_scorer(llama_directory).prompts(["Acné juvenil"]) == [
        "Clasifica.\n\nDiagnóstico: Otitis aguda\nCapítulo: oído\n\nDiagnóstico: Eccema\nCapítulo: piel\n\n"
        "Diagnóstico: Acné juvenil\nCapítulo:"
    ]


def test_a_tuned_model_is_asked_in_prompts_cut_as_in_training(llama_directory: Path, tmp_path: Path) -> None:
    """What a model was taught to read at most, it is asked at most, though its context holds more."""
    problem = task(["sí", "no"])
    problem.train[:] = [Item(i.id, f"{i.text} {i.text}", i.label, i.group) for i in problem.train]
    tokenizer = load_tokenizer(llama_directory)
    examples = label_examples(problem, tokenizer, max_item_tokens=80, context=256).examples
    learned = [example.tokens[~example.supervised].tolist() for example in examples]
    limited = AskConfig(max_item_tokens=80, precision="fp32")
    scorer = written_scorer(llama_directory, problem, limited)
    assert isinstance(scorer, PromptScorer)
    found = scorer.score([item.text for item in problem.train])
    assert found.truncated == sum(len(prompt) == 80 for prompt in learned) > 3
    model = load_causal(llama_directory, dtype=torch.float32)
    same = score_tokens(model, learned, answer_tokens(tokenizer, problem.verbalizers), normalization="sum")
    np.testing.assert_allclose(found.scores, same.scores, rtol=0, atol=1e-4)
    scorer.save(tmp_path / "s")
    assert load_scorer(tmp_path / "s").score(["x" * 200]).truncated == 1
    loose = written_scorer(llama_directory, problem, AskConfig(max_item_tokens=200, precision="fp32"))
    assert isinstance(loose, PromptScorer) and loose.score([problem.train[0].text]).truncated == 0


def test_no_texts_give_no_rows(llama_directory: Path) -> None:
    scorers: list[Scorer] = [
        train_majority(task(["a", "b"])),
        train_tfidf(task(["a", "b"]), 1.0)[0],
        prompt_scorer(llama_directory),
    ]
    for scorer in scorers:
        assert scorer.score([]).scores.shape == (0, 2)


def test_a_damaged_scorer_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load_scorer(tmp_path)
    train_tfidf(task(["a", "b"]), 1.0)[0].save(tmp_path)
    arrays = (tmp_path / "arrays.safetensors").read_bytes()
    for content in (b"", arrays[:20], arrays[:-8]):
        (tmp_path / "arrays.safetensors").write_bytes(content)
        with pytest.raises(DataError, match="not a scorer"):
            load_scorer(tmp_path)
    for text in ("{", "[]", "{}", '{"kind": "os.system"}', '{"kind": "tfidf", "labels": ["a"]}'):
        (tmp_path / "scorer.json").write_text(text)
        with pytest.raises(DataError, match=r"scorer\.json"):
            load_scorer(tmp_path)


def test_majority_frequencies_of_zero_stay_finite() -> None:
    assert np.isfinite(MajorityScorer(["a", "b"], [1.0, 0.0]).score(["x"]).scores).all()


def test_tfidf_keeps_plain_arrays(tmp_path: Path) -> None:
    scorer = train_tfidf(task(["a", "b"]), 1.0)[0]
    assert isinstance(scorer, TfidfScorer)
    scorer.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["arrays.safetensors", "scorer.json"]


def test_scorer_saved_beside_its_model_may_be_moved_with_it(llama_directory: Path, tmp_path: Path) -> None:
    stage = tmp_path / "stage"
    shutil.copytree(llama_directory, stage / "model")
    scorer = PromptScorer(stage / "model", ["a", "b"], ["sí", "no"], template="{{ text }}:", precision="fp32")
    scorer.save(stage / "scorer")
    before = scorer.score(["¿Fiebre?"]).scores
    stage.rename(tmp_path / "moved")
    assert np.array_equal(load_scorer(tmp_path / "moved" / "scorer").score(["¿Fiebre?"]).scores, before)
