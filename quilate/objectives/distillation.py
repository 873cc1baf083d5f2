"""Learning what another model would say: the divergence from its whole next-token distribution.

Shapes: S positions, D and D' hidden sizes of student and teacher, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from quilate.kernels.operations import refuse_second_derivative
from quilate.objectives.cross_entropy import CHUNK_ROWS

Head = tuple[Tensor, Tensor | None]  # weight [V, D] and bias [V]


def linear_distillation_sum(hidden: Tensor, head: Head, teacher_hidden: Tensor, teacher_head: Head) -> Tensor:
    """Sum over positions of KL(teacher || student), both softmax(hidden @ W.T + b), over the whole vocabulary.

    The direction of Askell et al. 2021, section 2.4: the student is to cover all that the teacher may say. As in
    `linear_cross_entropy_sum` the gradient is formed with the value, in chunks of rows; the teacher gets none.

    Args:
        hidden: [S, D]; teacher_hidden: [S, D'].

    Returns:
        A scalar, fp32.
    """
    loss: Tensor = _LinearDistillation.apply(hidden, *head, teacher_hidden.detach(), *teacher_head)  # type: ignore[no-untyped-call]
    return loss


class _LinearDistillation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, teacher_hidden: Tensor, teacher_weight: Tensor,
        teacher_bias: Tensor | None,
    ) -> Tensor:  # fmt: skip
        needs_hidden, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        loss = torch.zeros((), dtype=torch.float64, device=hidden.device)  # many terms near 0: fp32 would lose them
        hidden_grad = torch.empty_like(hidden) if needs_hidden else None
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        bias_grad = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and needs_bias else None
        for start in range(0, hidden.shape[0], CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            log_q = F.linear(hidden[rows], weight, bias).float().log_softmax(-1)
            log_p = F.linear(teacher_hidden[rows], teacher_weight, teacher_bias).float().log_softmax(-1)
            p = log_p.exp()
            loss += (p * (log_p - log_q)).sum(dtype=torch.float64)
            logits_grad = (log_q.exp() - p).to(hidden.dtype)  # of KL(p || softmax(z)) with respect to z: q - p
            if bias_grad is not None:
                bias_grad += logits_grad.sum(0, dtype=torch.float32)
            if hidden_grad is not None:
                hidden_grad[rows] = logits_grad @ weight
            if weight_grad is not None:
                weight_grad += logits_grad.T @ hidden[rows]
        ctx.save_for_backward(hidden_grad, weight_grad, bias_grad)
        ctx.dtypes = (weight.dtype, None if bias is None else bias.dtype)
        return loss.float()

    @staticmethod
    def backward(ctx: Any, *loss_grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        scale = loss_grads[0]
        hidden_grad, weight_grad, bias_grad = ctx.saved_tensors
        weight_dtype, bias_dtype = ctx.dtypes
        return (
            None if hidden_grad is None else (hidden_grad * scale).to(hidden_grad.dtype),
            None if weight_grad is None else (weight_grad * scale).to(weight_dtype),
            None if bias_grad is None else (bias_grad * scale).to(bias_dtype),
            None, None, None,
        )  # fmt: skip
