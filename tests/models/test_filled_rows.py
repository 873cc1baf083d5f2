"""Rows that are filled up for the sake of few shapes change no result and no gradient, and there are few of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from support import SENTENCES, tiny_gpt2, tiny_llama, tiny_roberta, tiny_tokenizer
from test_shared_tokens import completed, pack_shared, token_log_probs
from transformers import PreTrainedModel

from quilate.data.packing import Example, pack
from quilate.engine.language_modelling import LanguageModellingLoss
from quilate.inference.likelihood import score_labels
from quilate.kernels.rows import filled_rows

IN_TRAINING = "quilate.models.encoder.filled_rows"
IN_SCORING = "quilate.inference.likelihood.filled_rows"
AT_THE_HEAD = "quilate.kernels.rows.filled_rows"


def by_seven(rows: int, weight: torch.Tensor) -> int:
    return rows + 7


def test_there_are_few_numbers_of_rows_and_little_is_computed_in_vain() -> None:
    weight = torch.empty(1, dtype=torch.bfloat16)
    found = [filled_rows(rows, weight) for rows in range(1, 4097)]
    assert len(set(found)) < 210
    assert all(rows <= new <= rows * 17 / 16 for rows, new in enumerate(found, start=1))
    assert filled_rows(777, torch.empty(1)) == 777  # of fp32 products one code serves all


@pytest.mark.parametrize("made", [tiny_llama, tiny_gpt2, tiny_roberta])
def test_losses_and_gradients_are_the_same(
    made: Callable[[], PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = np.random.default_rng(3)
    examples = []
    for number, length in enumerate((9, 4, 17)):
        tokens = stream.integers(5, 300, size=length)
        answers = tokens if made is tiny_roberta else None
        examples.append(Example(str(number), tokens, stream.random(length) < 0.5, answers))
    results = []
    for rows in (lambda rows, weight: rows, by_seven):
        monkeypatch.setattr(IN_TRAINING, rows)
        monkeypatch.setattr(AT_THE_HEAD, rows)
        model = made().eval()
        loss = LanguageModellingLoss(model)(pack(examples))
        loss.backward()
        results.append((loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (expected, gradients), (found, others) = results
    assert found == pytest.approx(expected, rel=1e-6) and gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=1e-6)


def test_bf16_rows_are_filled_before_they_meet_the_body_and_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = tiny_llama(dtype=torch.bfloat16), []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[:-1].numel()))
    real = torch.nn.functional.linear
    monkeypatch.setattr(
        "quilate.objectives.cross_entropy.F.linear",
        lambda rows, weight, bias=None: (
            seen.append(rows.shape[0]) or real(rows, weight, bias)
            if weight.shape[0] == 384
            else real(rows, weight, bias)
        ),
    )
    loss, tokens = LanguageModellingLoss(model), np.full(149, 7)
    seen.clear()  # of what asked whether packing is possible
    loss(pack([Example("a", tokens, np.ones(149, dtype=bool))]))
    assert seen == [152, 152]  # of 149 tokens and 148 targets: multiples of 8


def test_documents_that_share_tokens_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        expected = token_log_probs(tiny_llama().eval(), pack_shared(completed()))
        monkeypatch.setattr(IN_TRAINING, by_seven)
        monkeypatch.setattr(AT_THE_HEAD, by_seven)
        found = token_log_probs(tiny_llama().eval(), pack_shared(completed()))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("made", [tiny_llama, tiny_gpt2])  # GPT-2 has no positions beyond its context
def test_scores_are_the_same_up_to_the_end_of_the_context(
    made: Callable[[], PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [f"Diagnóstico: {'fiebre y tos, ' * 60}", *(f"Diagnóstico: {sentence}" for sentence in SENTENCES)]
    model, tokenizer, labels = made(), tiny_tokenizer(), ["piel", "ojo izquierdo"]
    expected = score_labels(model, tokenizer, prompts, labels)
    monkeypatch.setattr(IN_SCORING, by_seven)
    found = score_labels(model, tokenizer, prompts, labels)
    assert expected.truncated == found.truncated == 1
    np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=1e-5)
