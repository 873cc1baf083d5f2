"""bf16 training with a stochastically rounded copy follows fp32; a copy rounded to nearest stands still."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from support import random_examples, tiny_llama
from transformers import PreTrainedModel

from quilate.data.packing import Example, pack
from quilate.engine.language_modelling import LanguageModellingLoss
from quilate.engine.loop import optimizer_step
from quilate.optim import adamw
from quilate.optim.adamw import AdamW


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

    def to_nearest(target: torch.Tensor, source: torch.Tensor, key: int, *, first: int) -> None:
        """Plain bf16 training: what the copy cannot hold is lost, for there is no master behind it."""
        target.copy_(source)
        source.copy_(target)

    monkeypatch.setattr(adamw, "operation", lambda name: None)
    monkeypatch.setattr(adamw, "stochastic_round_", to_nearest)
    nearest = tiny_losses(torch.bfloat16)
    fall = exact[0] - exact[-1]
    assert fall > 0.3
    assert stochastic[0] - stochastic[-1] == pytest.approx(fall, rel=0.1)
    assert nearest[0] - nearest[-1] < 0.7 * fall
