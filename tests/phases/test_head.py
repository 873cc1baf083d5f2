"""A frozen model with a head: its vectors are transformers' hidden states, its classifier is scikit-learn's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from support import ARCHITECTURES, SENTENCES, save_directory, tiny_llama, tiny_tokenizer
from test_finetune import Folder
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from quilate.errors import ConfigError, DataError, Interrupted, ModelError
from quilate.files import sha256_of_tree
from quilate.inference.features import encode
from quilate.inference.scorer import HeadScorer, load_scorer
from quilate.models.create import create, shape_config
from quilate.models.load import load_language_model, load_tokenizer
from quilate.tasks.kinds import load_task


def tiny_roberta() -> PreTrainedModel:
    torch.manual_seed(0)
    return create(shape_config("roberta", "tiny", vocabulary=384, context=100, end=0, pad=1), masked=True)


SHAPES = {**{name: ARCHITECTURES[name] for name in ("llama", "gpt2", "falcon")}, "roberta": tiny_roberta}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pooling", ["last", "mean"])
@torch.no_grad()
def test_a_vector_is_the_hidden_state_that_transformers_computes(tmp_path: Path, shape: str, pooling: Any) -> None:
    folder = save_directory(SHAPES[shape](), tmp_path / "model")
    model, tokenizer = load_language_model(folder, dtype=torch.float32), load_tokenizer(folder)
    texts = [SENTENCES[0], "No.", *SENTENCES[1:8]]
    features = encode(model, tokenizer, texts, pooling=pooling, max_tokens=200)
    plain, plain_tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for vector, text in zip(features.vectors, texts, strict=True):
        ids = plain_tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        hidden = plain(input_ids=ids).last_hidden_state[0]
        expected = hidden[-1] if pooling == "last" else hidden.mean(0)
        torch.testing.assert_close(torch.from_numpy(vector), expected, rtol=1e-4, atol=1e-4)
    assert features.truncated == 0
    assert features.tokens == sum(len(tokenizer(t, add_special_tokens=False).input_ids) for t in texts)


def test_long_texts_are_cut_to_the_context_and_counted(tmp_path: Path) -> None:
    folder = save_directory(tiny_roberta(), tmp_path / "model")
    model, tokenizer = load_language_model(folder, dtype=torch.float32), load_tokenizer(folder)
    features = encode(model, tokenizer, [" ".join(SENTENCES), "No.", ""], pooling="mean", max_tokens=1000)
    # RoBERTa counts positions from its padding index on: a context of 100 has two positions less.
    assert features.truncated == 1
    assert features.tokens <= 100 + len(tokenizer("No.").input_ids) + 1
    assert np.isfinite(features.vectors).all()


@pytest.mark.parametrize("shape", ["llama", "roberta"])
def test_the_head_is_scikit_learns_on_standardized_vectors(tmp_path: Path, shape: str) -> None:
    base = save_directory(SHAPES[shape](), tmp_path / "model")
    folder = Folder(tmp_path, base)
    before = sha256_of_tree(base)
    report = folder.run("arm", method="head", lr=None, head={"regularization": 0.5})
    task = load_task(folder.root / "task" / "task")
    scorer = load_scorer(folder.root / "arm" / "scorer")
    assert isinstance(scorer, HeadScorer)
    train = scorer.features([item.text for item in task.train]).vectors
    test = [item.text for item in task.test]
    oracle = make_pipeline(StandardScaler(), LogisticRegression(C=0.5, max_iter=1000))
    oracle.fit(train.astype(np.float64), [item.label for item in task.train])
    assert list(oracle.classes_) == scorer.labels
    ours = np.exp(scorer.score(test).scores)
    np.testing.assert_allclose(ours, oracle.predict_proba(scorer.features(test).vectors), atol=2e-3)
    np.testing.assert_allclose(ours.sum(axis=1), 1.0)
    assert report.trainable_parameters == 3 * train.shape[1] + 3
    assert report.facts["train_rows"] == len(task.train)
    assert sha256_of_tree(base) == before
    assert not (folder.root / "arm" / "model").exists()


def test_an_interrupted_stage_does_not_encode_twice(tmp_path: Path) -> None:
    folder = Folder(tmp_path, save_directory(tiny_llama(), tmp_path / "model"))
    first = folder.run("arm", method="head", lr=None)
    saved = load_scorer(folder.root / "arm" / "scorer")
    (tmp_path / "model" / "model.safetensors").unlink()  # so it cannot
    assert folder.run("arm", method="head", lr=None) == first
    again = load_scorer(folder.root / "arm" / "scorer")
    assert isinstance(saved, HeadScorer) and isinstance(again, HeadScorer)
    assert np.array_equal(again.weights, saved.weights)


def test_a_stop_is_heard_while_encoding(tmp_path: Path) -> None:
    from quilate.engine.interrupts import StopRequest

    folder = Folder(tmp_path, save_directory(tiny_llama(), tmp_path / "model"))
    stop = StopRequest()
    stop.signal = "SIGTERM"
    with pytest.raises(Interrupted):
        folder.run("arm", method="head", lr=None, stop=stop)


def test_the_token_budget_limits_what_is_encoded(tmp_path: Path) -> None:
    folder = Folder(tmp_path, save_directory(tiny_llama(), tmp_path / "model"))
    whole = folder.run("whole", method="head", lr=None)
    half = folder.run("half", method="head", lr=None, max_train_tokens=whole.train_tokens // 2)
    assert half.train_tokens <= whole.train_tokens // 2
    assert half.facts["train_rows"] + half.counts["rows over the token budget"] == whole.facts["train_rows"]
    with pytest.raises(DataError, match="one label only"):
        folder.run("none", method="head", lr=None, max_train_tokens=1)


def test_a_head_stands_on_an_adapter(tmp_path: Path) -> None:
    folder = Folder(tmp_path, save_directory(tiny_llama(), tmp_path / "model"))
    folder.run("tuned", method="adapter")
    folder.run("arm", on="tuned", method="head", lr=None)
    task = load_task(folder.root / "task" / "task")
    on_adapter = load_scorer(folder.root / "arm" / "scorer").score([task.test[0].text]).scores
    folder.run("plain", method="head", lr=None)
    on_base = load_scorer(folder.root / "plain" / "scorer").score([task.test[0].text]).scores
    assert not np.allclose(on_adapter, on_base)


def test_a_model_without_an_output_head_is_refused(tmp_path: Path) -> None:
    """A bare encoder has no language-model head: transformers would draw one at random and go on."""
    body = tiny_roberta().base_model
    body.save_pretrained(tmp_path / "bare")
    tiny_tokenizer().save_pretrained(tmp_path / "bare")
    folder = Folder(tmp_path, tmp_path / "bare")
    with pytest.raises(ModelError, match="lacks"):
        folder.run("arm", method="head", lr=None)


def test_settings_belong_to_their_method(tmp_path: Path, llama_directory: Path) -> None:
    folder = Folder(tmp_path, llama_directory)
    for keys in ({"method": "full", "head": {}}, {"method": "lora", "last_layers": 1}):
        with pytest.raises(ConfigError, match="go"):
            folder.run("arm", **keys)
