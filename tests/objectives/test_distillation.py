"""The distillation loss against torch's own KL in float64, values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from quilate.objectives import distillation
from quilate.objectives.distillation import linear_distillation_sum


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 8, 19])
def test_value_and_gradients_equal_float64(monkeypatch: pytest.MonkeyPatch, rows: int, bias: bool) -> None:
    """Student and teacher of different widths; rows beyond a chunk."""
    monkeypatch.setattr(distillation, "CHUNK_ROWS", 8)
    leaves = [drawn(1, rows, 16), drawn(2, 40, 16), *([drawn(3, 40)] if bias else [])]
    ours = [leaf.clone().requires_grad_() for leaf in leaves]
    exact = [leaf.double().requires_grad_() for leaf in leaves]
    teacher, teacher_head = drawn(4, rows, 24), (drawn(5, 40, 24), None)
    loss = linear_distillation_sum(ours[0], (ours[1], ours[2] if bias else None), teacher, teacher_head)
    (0.25 * loss).backward()
    log_q = F.linear(exact[0], exact[1], exact[2] if bias else None).log_softmax(-1)
    log_p = F.linear(teacher.double(), teacher_head[0].double()).log_softmax(-1)
    expected = F.kl_div(log_q, log_p, reduction="sum", log_target=True)  # torch's order: KL(second || first)
    (0.25 * expected).backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(ours, exact, strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-4, atol=1e-5)


def test_a_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    hidden, weight = drawn(6, 9, 16).requires_grad_(), drawn(7, 40, 16)
    loss = linear_distillation_sum(hidden, (weight, None), hidden.detach(), (weight, None))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert hidden.grad.abs().max() < 1e-6
