"""Label scores against brute force: one plain transformers forward per item and label, log-softmax in float64."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from support import ARCHITECTURES, CONTEXT, SENTENCES, tiny_llama, tiny_tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quilate.errors import DataError, ModelError
from quilate.inference import likelihood
from quilate.inference.likelihood import score_labels
from quilate.tokenization.segments import KEPT_END

# "neumonía" begins "neumonía bilateral"; several share their first tokens; lengths from a few tokens to many.
LABELS = ["neumonía", "neumonía bilateral", "neumotórax", "piel", "ojo izquierdo", "sí", "¿qué?"]
PROMPTS = [f"Diagnóstico: {sentence}\nCapítulo:" for sentence in SENTENCES]
PREFIX = "Clasifica cada diagnóstico.\n\nDiagnóstico: Asma\nCapítulo: pulmón\n\nDiagnóstico: Miopía\nCapítulo: ojo\n\n"


@torch.no_grad()
def brute_force(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    labels: Sequence[str],
    *,
    mean: bool,
) -> np.ndarray:
    scores = np.empty((len(prompts), len(labels)))
    for row, prompt in enumerate(prompts):
        start = tokenizer(prompt).input_ids
        for column, label in enumerate(labels):
            answer = tokenizer(f" {label}").input_ids
            logits = model(input_ids=torch.tensor([start + answer]), use_cache=False).logits[0].double()
            read = logits.log_softmax(-1)[
                torch.arange(len(start) - 1, len(start) + len(answer) - 1), torch.tensor(answer)
            ]
            scores[row, column] = read.mean() if mean else read.sum()
    return scores


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "falcon"])
@pytest.mark.parametrize("prefix", ["", PREFIX], ids=["no prefix", "shared prefix"])
def test_scores_equal_brute_force(architecture: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "BATCH_TOKENS", 400)  # several batches of ragged prompts
    model, tokenizer = ARCHITECTURES[architecture](), tiny_tokenizer()
    prompts = [prefix + prompt for prompt in PROMPTS]
    done: list[tuple[int, int]] = []
    for normalization in ("mean", "sum"):
        ours = score_labels(
            model, tokenizer, prompts, LABELS, normalization=normalization, on_progress=lambda *n: done.append(n)
        )
        expected = brute_force(model, tokenizer, prompts, LABELS, mean=normalization == "mean")
        assert ours.scores.dtype == np.float64
        assert ours.truncated == 0
        np.testing.assert_allclose(ours.scores, expected, rtol=0, atol=1e-4)
    assert len(done) > 4
    assert done[-1] == (len(prompts), len(prompts))


def test_one_prompt_or_none_or_equal_ones() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    for prompts in (PROMPTS[:1], [PROMPTS[2], PROMPTS[2], PROMPTS[2]]):
        expected = brute_force(model, tokenizer, prompts, LABELS, mean=True)
        np.testing.assert_allclose(score_labels(model, tokenizer, prompts, LABELS).scores, expected, rtol=0, atol=1e-4)
    assert score_labels(model, tokenizer, [], LABELS).scores.shape == (0, len(LABELS))


def test_labels_of_one_token_each_need_no_tree() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    labels = ["a", "b", "ñ"]
    single = [label for label in labels if len(tokenizer(f" {label}").input_ids) == 1] or ["a"]
    expected = brute_force(model, tokenizer, PROMPTS, single, mean=True)
    np.testing.assert_allclose(score_labels(model, tokenizer, PROMPTS, single).scores, expected, rtol=0, atol=1e-4)


def test_scores_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    together = score_labels(model, tokenizer, PROMPTS, LABELS).scores
    monkeypatch.setattr(likelihood, "BATCH_TOKENS", 1)
    monkeypatch.setattr(likelihood, "HEAD_ROWS", 3)
    np.testing.assert_allclose(score_labels(model, tokenizer, PROMPTS, LABELS).scores, together, rtol=0, atol=2e-5)
    shuffled = score_labels(model, tokenizer, PROMPTS[::-1], LABELS[::-1]).scores
    np.testing.assert_allclose(shuffled[::-1, ::-1], together, rtol=0, atol=2e-5)


def test_a_prompt_longer_than_the_context_is_cut_in_its_middle_and_counted() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    long = "Diagnóstico: " + "fiebre y tos, " * 60 + "sin más\nCapítulo:"
    ours = score_labels(model, tokenizer, [PREFIX + long, PREFIX + PROMPTS[0]], LABELS)
    assert ours.truncated == 1
    whole, shared = tokenizer(PREFIX + long).input_ids, tokenizer(PREFIX + "Diagnóstico:").input_ids
    common = len(shared)  # the two prompts differ after it, at the earliest
    longest = max(len(tokenizer(f" {label}").input_ids) for label in LABELS)
    kept = CONTEXT - longest
    candidates = []
    for start in (common, common + 1):
        room = kept - start
        cut = whole[: start + room - KEPT_END] + whole[-KEPT_END:]
        assert len(cut) == kept
        candidates.append(_scores_of_tokens(model, tokenizer, cut))
    assert any(np.allclose(ours.scores[0], candidate, rtol=0, atol=1e-4) for candidate in candidates)
    expected = brute_force(model, tokenizer, [PREFIX + PROMPTS[0]], LABELS, mean=True)
    np.testing.assert_allclose(ours.scores[1:], expected, rtol=0, atol=1e-4)


@torch.no_grad()
def _scores_of_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, start: list[int]) -> list[float]:
    scores = []
    for label in LABELS:
        answer = tokenizer(f" {label}").input_ids
        logits = model(input_ids=torch.tensor([start + answer]), use_cache=False).logits[0].double().log_softmax(-1)
        scores.append(float(np.mean([logits[len(start) - 1 + i, token].item() for i, token in enumerate(answer)])))
    return scores


def test_demonstrations_that_fill_the_context_are_an_error() -> None:
    prefix = PREFIX * 20
    with pytest.raises(DataError, match=f"context of {CONTEXT}") as caught:
        score_labels(tiny_llama(), tiny_tokenizer(), [prefix + PROMPTS[0], prefix + PROMPTS[1]], LABELS)
    assert "fewer or shorter demonstrations" in (caught.value.hint or "")


def test_an_empty_prompt_is_an_error_not_a_wrong_number() -> None:
    with pytest.raises(DataError, match="empty"):
        score_labels(tiny_llama(), tiny_tokenizer(), ["", "Texto:"], LABELS)


def test_a_model_without_positions_is_refused() -> None:
    """ALiBi counts columns, and the tree's columns are not its positions: its scores would be wrong without a word."""
    with pytest.raises(ModelError, match="ALiBi"):
        score_labels(ARCHITECTURES["falcon-alibi"](), tiny_tokenizer(), PROMPTS, LABELS)


def test_equal_labels_are_refused() -> None:
    with pytest.raises(DataError, match="same tokens"):
        score_labels(tiny_llama(), tiny_tokenizer(), PROMPTS, ["sí", "no", "sí"])


@pytest.mark.smollm2
@pytest.mark.slow
def test_smollm2_equals_brute_force(smollm2: Path) -> None:
    from quilate.models.load import load_causal, load_tokenizer

    model, tokenizer = load_causal(smollm2, dtype=torch.float32), load_tokenizer(smollm2)
    labels = ["infección", "piel", "pulmón", "ojo", "oído"]
    prompts = [PREFIX + prompt for prompt in PROMPTS[:3]]
    ours = score_labels(model, tokenizer, prompts, labels)
    expected = brute_force(model, tokenizer, prompts, labels, mean=True)
    np.testing.assert_allclose(ours.scores, expected, rtol=0, atol=1e-4)
