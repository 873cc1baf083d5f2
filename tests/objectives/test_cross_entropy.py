"""Losses against torch in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from quilate.objectives import cross_entropy
from quilate.objectives.cross_entropy import (
    cross_entropy_sum,
    head_kl_sum,
    linear_cross_entropy_sum,
    linear_token_log_probs,
)


def problem(
    rows: int, *, bias: bool, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, 16, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(40, 16, generator=generator).to(dtype).requires_grad_()
    offset = torch.randn(40, generator=generator).to(dtype).requires_grad_() if bias else None
    return hidden, weight, offset, torch.randint(40, (rows,), generator=generator)


def float64_reference(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scale: float
) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of `scale * loss`, all in float64 by autograd through torch's own cross-entropy."""
    leaves = [t.detach().double().requires_grad_() for t in (hidden, weight, bias) if t is not None]
    logits = F.linear(leaves[0], leaves[1], leaves[2] if bias is not None else None)
    loss = F.cross_entropy(logits, targets, reduction="sum")
    return loss.detach(), list(torch.autograd.grad(loss * scale, leaves))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 7, 8, 9, 64])
def test_value_and_gradients_equal_float64(monkeypatch: pytest.MonkeyPatch, rows: int, bias: bool) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_ROWS", 8)
    hidden, weight, offset, targets = problem(rows, bias=bias)
    loss = linear_cross_entropy_sum(hidden, weight, offset, targets)
    (loss * 0.25).backward()
    expected, gradients = float64_reference(hidden, weight, offset, targets, 0.25)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.detach().double(), expected, rtol=1e-6, atol=1e-5)
    for tensor, gradient in zip([t for t in (hidden, weight, offset) if t is not None], gradients, strict=True):
        assert tensor.grad is not None
        torch.testing.assert_close(tensor.grad.double(), gradient, rtol=1e-5, atol=1e-5)


def test_rows_beyond_a_real_chunk() -> None:
    hidden, weight, _, targets = problem(cross_entropy.CHUNK_ROWS + 3, bias=False)
    loss = linear_cross_entropy_sum(hidden, weight, None, targets)
    loss.backward()
    expected, (hidden_gradient, weight_gradient) = float64_reference(hidden, weight, None, targets, 1.0)
    torch.testing.assert_close(loss.detach().double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(hidden.grad.double(), hidden_gradient, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weight.grad.double(), weight_gradient, rtol=1e-5, atol=1e-4)


def test_a_frozen_head_gets_no_gradient_and_the_body_the_same_one() -> None:
    hidden, weight, offset, targets = problem(9, bias=True)
    frozen_weight, frozen_offset = weight.detach(), offset.detach()
    linear_cross_entropy_sum(hidden, frozen_weight, frozen_offset, targets).backward()
    _, (hidden_gradient, *_) = float64_reference(hidden, weight, offset, targets, 1.0)
    assert frozen_weight.grad is None
    torch.testing.assert_close(hidden.grad.double(), hidden_gradient, rtol=1e-5, atol=1e-5)


def test_a_frozen_body_still_trains_the_head() -> None:
    hidden, weight, _, targets = problem(9, bias=False)
    linear_cross_entropy_sum(hidden.detach(), weight, None, targets).backward()
    _, (_, weight_gradient) = float64_reference(hidden, weight, None, targets, 1.0)
    torch.testing.assert_close(weight.grad.double(), weight_gradient, rtol=1e-5, atol=1e-5)


def test_no_gradient_is_needed_for_the_value() -> None:
    hidden, weight, offset, targets = problem(9, bias=True)
    with torch.no_grad():
        loss = linear_cross_entropy_sum(hidden, weight, offset, targets)
    torch.testing.assert_close(
        loss.double(), float64_reference(hidden, weight, offset, targets, 1.0)[0], rtol=1e-6, atol=1e-5
    )


def test_bf16_gradients_come_in_bf16_and_are_near(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_ROWS", 8)
    hidden, weight, offset, targets = problem(20, bias=True, dtype=torch.bfloat16)
    loss = linear_cross_entropy_sum(hidden, weight, offset, targets)
    loss.backward()
    expected, gradients = float64_reference(hidden, weight, offset, targets, 1.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.detach().double(), expected, rtol=5e-3, atol=0)
    for tensor, gradient in zip((hidden, weight, offset), gradients, strict=True):
        assert tensor.grad.dtype == torch.bfloat16
        assert (tensor.grad.double() - gradient).norm() < 0.02 * gradient.norm()


def test_no_targets_cost_nothing() -> None:
    hidden, weight, _, _ = problem(4, bias=False)
    loss = linear_cross_entropy_sum(hidden[:0], weight, None, torch.empty(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0.0
    assert not weight.grad.any()


def test_logits_far_from_zero_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 3.0]])
    torch.testing.assert_close(cross_entropy_sum(logits, torch.tensor([0, 2])), torch.tensor(9997.0))
    loss = linear_cross_entropy_sum(logits, torch.eye(3), None, torch.tensor([0, 2]))
    torch.testing.assert_close(loss, torch.tensor(9997.0))


def weighted_reference(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scale: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Log-probabilities, and the gradients of their weighted sum, in float64 by autograd."""
    leaves = [t.detach().double().requires_grad_() for t in (hidden, weight, bias) if t is not None]
    logits = F.linear(leaves[0], leaves[1], leaves[2] if bias is not None else None)
    log_probs = logits.log_softmax(-1)[torch.arange(len(targets)), targets]
    return log_probs.detach(), list(torch.autograd.grad((log_probs * scale.double()).sum(), leaves))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 8, 21])
def test_token_log_probs_and_their_gradients_equal_float64(
    monkeypatch: pytest.MonkeyPatch, rows: int, bias: bool
) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_ROWS", 8)
    hidden, weight, offset, targets = problem(rows, bias=bias)
    scale = torch.randn(rows, generator=torch.Generator().manual_seed(3))
    log_probs = linear_token_log_probs(hidden, weight, offset, targets)
    (log_probs * scale).sum().backward()
    expected, gradients = weighted_reference(hidden, weight, offset, targets, scale)
    assert log_probs.dtype == torch.float32 and log_probs.shape == (rows,)
    torch.testing.assert_close(log_probs.detach().double(), expected, rtol=1e-6, atol=1e-5)
    for tensor, gradient in zip([t for t in (hidden, weight, offset) if t is not None], gradients, strict=True):
        torch.testing.assert_close(tensor.grad.double(), gradient, rtol=1e-5, atol=1e-5)


def test_token_log_probs_through_a_frozen_head_and_in_bf16() -> None:
    hidden, weight, _, targets = problem(30, bias=False, dtype=torch.bfloat16)
    frozen = weight.detach()
    scale = torch.linspace(-1, 2, 30)
    (linear_token_log_probs(hidden, frozen, None, targets) * scale).sum().backward()
    _, (gradient, _) = weighted_reference(hidden, weight, None, targets, scale)
    assert frozen.grad is None and hidden.grad.dtype == torch.bfloat16
    assert (hidden.grad.double() - gradient).norm() < 0.02 * gradient.norm()


def test_token_log_probs_never_hold_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept for the backward pass has one number a row, not one a row and token."""
    monkeypatch.setattr(cross_entropy, "CHUNK_ROWS", 8)
    hidden, weight, _, targets = problem(64, bias=False)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        linear_token_log_probs(hidden, weight, None, targets)
    assert max(kept) == hidden.numel() < 64 * weight.shape[0]


def test_kl_of_two_heads_equals_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_ROWS", 8)
    hidden, weight, offset, _ = problem(20, bias=True)
    other, other_weight, _, _ = problem(21, bias=True)
    other = other[:20]
    expected = F.kl_div(
        F.linear(other, other_weight).double().log_softmax(-1),
        F.linear(hidden, weight, offset).double().log_softmax(-1),
        log_target=True, reduction="sum",
    )  # fmt: skip

    def head(rows: torch.Tensor) -> torch.Tensor:
        return F.linear(rows, weight, offset)

    torch.testing.assert_close(head_kl_sum(hidden, head, other, lambda rows: F.linear(rows, other_weight)), expected)
    assert head_kl_sum(hidden, head, hidden, head).item() == 0
