"""Calibrated scores against the papers' formulas written out, in float64, from brute-force label probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import SENTENCES, tiny_llama, tiny_tokenizer

from quilate.inference.calibration import CONTENT_FREE, contextual
from quilate.inference.demonstrations import Pool
from quilate.inference.scorer import PromptScorer, load_scorer

VERBALIZERS = ["piel", "oído izquierdo", "Tórax"]  # no two begin with the same token
LABELS = ["L", "H", "J"]
TEMPLATE = "Diagnóstico: {{ text }}\nCapítulo:"
SHOWN = [("Otitis aguda", "oído izquierdo"), ("Eccema", "piel")]
TEXTS = SENTENCES[:4]


def scorer(directory: Path, **keys: Any) -> PromptScorer:
    keys = {"demonstrations": SHOWN, "instruction": "Clasifica.", "precision": "fp32"} | keys
    return PromptScorer(directory, LABELS, VERBALIZERS, template=TEMPLATE, **keys)


@torch.no_grad()
def label_scores(prompt: str, normalization: str) -> np.ndarray:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    start, scores = tokenizer(prompt).input_ids, []
    for verbalizer in VERBALIZERS:
        answer = tokenizer(f" {verbalizer}").input_ids
        logits = model(input_ids=torch.tensor([start + answer]), use_cache=False).logits[0].double().log_softmax(-1)
        each = [float(logits[len(start) - 1 + i, token]) for i, token in enumerate(answer)]
        by = {"mean": np.mean(each), "sum": np.sum(each), "first": each[0], "characters": sum(each) / len(verbalizer)}
        scores.append(by[normalization])
    return np.array(scores)


def prompt(text: str, shown: Sequence[tuple[str, str]] = SHOWN) -> str:
    solved = "".join(f"Diagnóstico: {t}\nCapítulo: {v}\n\n" for t, v in shown)
    return f"Clasifica.\n\n{solved}Diagnóstico: {text}\nCapítulo:"


def softmax(scores: np.ndarray) -> np.ndarray:
    powers: np.ndarray = np.exp(scores - scores.max())
    return powers / powers.sum()


@pytest.mark.parametrize("normalization", ["mean", "sum", "first", "characters"])
def test_normalizations(normalization: str, llama_directory: Path) -> None:
    expected = [label_scores(prompt(text), normalization) for text in TEXTS]
    ours = scorer(llama_directory, normalization=normalization).score(TEXTS).scores
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("normalization", ["mean", "sum", "first"])
def test_contextual_calibration_is_the_papers(normalization: str, llama_directory: Path) -> None:
    """Zhao et al. 2021: q = softmax-free W p, W = diag(p_cf)^-1, compared as renormalized probabilities."""
    free = np.mean([softmax(label_scores(prompt(text), normalization)) for text in ("N/A", "", "[MASK]")], axis=0)
    calibrated = scorer(llama_directory, normalization=normalization, calibration="contextual")
    ours = calibrated.score(TEXTS).scores
    for row, text in enumerate(TEXTS):
        expected = np.diag(1 / free) @ softmax(label_scores(prompt(text), normalization))
        np.testing.assert_allclose(softmax(ours[row]), expected / expected.sum(), rtol=1e-4)
    plain = scorer(llama_directory, normalization=normalization)
    # Its purpose: of nothing, every label is as likely as another.
    mean = np.mean([softmax(row) for row in plain.score(list(CONTENT_FREE)).scores], axis=0)
    np.testing.assert_allclose(softmax(contextual(np.log(mean), np.log(mean)[None])), [1 / 3] * 3)


def test_every_item_with_its_own_examples_has_its_own_content_free_prompts(llama_directory: Path) -> None:
    pool = Pool([(s, VERBALIZERS[n % 3]) for n, s in enumerate(SENTENCES[4:])], 2, "nearest_last", seed=0)
    ours = scorer(llama_directory, demonstrations=(), pool=pool, calibration="contextual").score(TEXTS).scores
    ranking = pool.rank(TEXTS, embed=lambda _: None)
    for row, text in enumerate(TEXTS):
        shown = [pool.examples[i] for i in ranking[row][:2]][::-1]
        free = np.mean([softmax(label_scores(prompt(t, shown), "mean")) for t in ("N/A", "", "[MASK]")], axis=0)
        expected = label_scores(prompt(text, shown), "mean") - np.log(free)
        np.testing.assert_allclose(ours[row], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("premise", "words"), [("", "Capítulo:"), ("El capítulo es:", "El capítulo es:")])
def test_domain_pmi_subtracts_what_the_premise_alone_gives(premise: str, words: str, llama_directory: Path) -> None:
    calibrated = scorer(llama_directory, normalization="sum", calibration="domain_pmi", domain_prompt=premise)
    alone = label_scores(words, "sum")
    expected = [label_scores(prompt(text), "sum") - alone for text in TEXTS]
    np.testing.assert_allclose(calibrated.score(TEXTS).scores, expected, rtol=0, atol=1e-4)


def test_a_calibrated_scorer_with_its_own_pool_comes_back(llama_directory: Path, tmp_path: Path) -> None:
    examples = [(s, VERBALIZERS[n % 3]) for n, s in enumerate(SENTENCES)]
    base = scorer(llama_directory, demonstrations=(), calibration="contextual")
    vectors = base.loaded().embed([text for text, _ in examples])
    pool = Pool(examples, 3, "random", seed=4, vectors=vectors)
    ours = base.with_prompt(template=TEMPLATE, demonstrations=(), pool=pool)
    before = ours.score(TEXTS)
    ours.save(tmp_path / "s")
    loaded = load_scorer(tmp_path / "s")
    assert isinstance(loaded, PromptScorer)
    assert loaded.prompts(TEXTS) == ours.prompts(TEXTS)
    np.testing.assert_array_equal(loaded.score(TEXTS).scores, before.scores)
    assert loaded.score([]).scores.shape == (0, 3)
