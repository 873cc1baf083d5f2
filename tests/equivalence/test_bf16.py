"""bf16 training with a stochastically rounded copy follows fp32; a copy rounded to nearest stands still."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from support import SENTENCES, random_examples, tiny_llama
from transformers import PreTrainedModel

from quilate.data.packing import Example, pack
from quilate.engine.language_modelling import LanguageModellingLoss
from quilate.engine.loop import optimizer_step
from quilate.models.load import load_causal, load_tokenizer
from quilate.optim import adamw
from quilate.optim.adamw import AdamW

# Each sentence once: a text seen again and again is learned by heart, and small differences then grow by themselves.
OPENINGS = [
    "Según el informe de alta:",
    "Motivo de consulta.",
    "En la revisión del martes,",
    "Nota de enfermería:",
    "Resumen:",
]


def losses(model: PreTrainedModel, batches: Sequence[Sequence[Example]], learning_rate: float) -> list[float]:
    loss = LanguageModellingLoss(model)
    optimizer = AdamW(model.named_parameters(), rounding=torch.Generator().manual_seed(0))
    model.train()
    seen = []
    for batch in batches:
        result = optimizer_step([pack(batch)], loss, optimizer, learning_rate=learning_rate, clip_norm=1.0)
        assert result.applied
        seen.append(result.loss)
    return seen


def tiny_losses(dtype: torch.dtype) -> list[float]:
    """One batch, seen 40 times, at a rate far under the spacing of bf16 numbers near the weights (0.2: 0.001)."""
    return losses(tiny_llama(dtype=dtype), [random_examples([30, 25, 20, 12])] * 40, 3e-4)


def test_a_tiny_model_follows_fp32_with_stochastic_rounding_and_not_with_nearest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exact, stochastic = tiny_losses(torch.float32), tiny_losses(torch.bfloat16)

    def to_nearest(target: torch.Tensor, source: torch.Tensor, _: torch.Generator) -> None:
        """Plain bf16 training: what the copy cannot hold is lost, for there is no master behind it."""
        target.copy_(source)
        source.copy_(target)

    monkeypatch.setattr(adamw, "stochastic_round_", to_nearest)
    nearest = tiny_losses(torch.bfloat16)
    fall = exact[0] - exact[-1]
    assert fall > 0.3
    assert stochastic[0] - stochastic[-1] == pytest.approx(fall, rel=0.1)
    assert nearest[0] - nearest[-1] < 0.7 * fall


@pytest.mark.smollm2
@pytest.mark.slow
@pytest.mark.xfail(reason="not shown: measured 0.0114 at the worst of 30 steps of about 110 tokens", strict=False)
def test_smollm2_trained_in_bf16_follows_fp32_at_every_step(smollm2: Path) -> None:
    """30 steps at 2e-5, a fine-tuning rate: the weights of both runs, evaluated in fp32, within 0.01 at every step.

    Open. Measured once on two cores, about 110 tokens a step: raw training losses differ by up to 0.0236, of which
    0.0178 at the first step, before any update (the bf16 forward pass on few tokens); the weights evaluated in fp32,
    as here, by up to 0.0114. Whether larger batches stay within 0.01 has not been measured: they take too long for a
    test.
    """
    tokenizer = load_tokenizer(smollm2)
    texts = [f"{opening} {sentence}" for opening in OPENINGS for sentence in SENTENCES]
    tokens = [np.array(tokenizer(text).input_ids) for text in texts]
    examples = [Example(str(n), t, np.ones(len(t), dtype=bool)) for n, t in enumerate(tokens)]
    batches = [examples[2 * step : 2 * step + 3] for step in range(29)] + [examples[:3]]
    exact = losses(load_causal(smollm2, dtype=torch.float32), batches, 2e-5)
    judge = load_causal(smollm2, dtype=torch.float32)
    judge_loss = LanguageModellingLoss(judge)
    model = load_causal(smollm2, dtype=torch.bfloat16)
    optimizer = AdamW(model.named_parameters(), rounding=torch.Generator().manual_seed(0))
    loss, rounded = LanguageModellingLoss(model), []
    for batch in map(pack, batches):
        with torch.no_grad():
            for mine, copy in zip(judge.parameters(), model.parameters(), strict=True):
                mine.copy_(copy)
            rounded.append(float(judge_loss(batch)) / batch.supervised_tokens)
        assert optimizer_step([batch], loss, optimizer, learning_rate=2e-5, clip_norm=1.0).applied
    differences = np.abs(np.array(exact) - np.array(rounded))
    assert exact[-1] < exact[0] - 0.3
    assert differences.max() < 0.01, differences.round(4).tolist()
