"""Learning what another model would say: the divergence from its whole next-token distribution.

Shapes: S positions, D and D' hidden sizes of student and teacher, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from quilate.kernels.operations import refuse_second_derivative
from quilate.objectives.cross_entropy import CHUNK_ROWS, HeadGradients

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
        loss = torch.zeros((), dtype=torch.float64, device=hidden.device)  # many terms near 0: fp32 would lose them
        gradients = HeadGradients(hidden, weight, bias, ctx.needs_input_grad)
        for start in range(0, hidden.shape[0], CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            log_q = F.linear(hidden[rows], weight, bias).float().log_softmax(-1)
            log_p = F.linear(teacher_hidden[rows], teacher_weight, teacher_bias).float().log_softmax(-1)
            p = log_p.exp()
            loss += (p * (log_p - log_q)).sum(dtype=torch.float64)
            gradients.add(rows, (log_q.exp() - p).to(hidden.dtype))  # of KL(p || softmax(z)) with respect to z: q - p
        gradients.keep(ctx)
        return loss.float()

    @staticmethod
    def backward(ctx: Any, *loss_grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        return *HeadGradients.scaled_by(loss_grads[0], ctx), None, None, None
