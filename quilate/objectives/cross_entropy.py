"""Cross-entropy through the output head, without ever holding all logits.

Shapes: S supervised positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from quilate.kernels.operations import operation, refuse_second_derivative

# Rows of logits held at once. 512 x 49,152 in fp32 is 100 MB; larger chunks measured no faster on two cores (a guess
# for other machines).
CHUNK_ROWS = 512


def cross_entropy_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum over positions of -log softmax(logits)[target], in fp32.

    Args:
        logits: [S, V], any floating type.
        targets: [S], int64.
    """
    return F.cross_entropy(logits.float(), targets, reduction="sum")


def linear_cross_entropy_sum(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """`cross_entropy_sum(hidden @ weight.T + bias, targets)` in chunks of rows.

    The gradient with respect to the logits is formed in the forward pass, chunk by chunk, so memory is
    O(chunk x V) instead of O(S x V), and the head is multiplied once, not again in the backward pass.

    Args:
        hidden: [S, D]; weight: [V, D]; bias: [V] or None; targets: [S], int64.

    Returns:
        A scalar, fp32.
    """
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, bias, targets)  # type: ignore[no-untyped-call]
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        needs_hidden, needs_weight, needs_bias, _ = ctx.needs_input_grad
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        hidden_grad = torch.empty_like(hidden) if needs_hidden else None
        # fp32 across chunks: adding bf16 products in bf16 would lose the small ones.
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        bias_grad = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and needs_bias else None
        for start in range(0, hidden.shape[0], CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            wanted = hidden_grad is not None or weight_grad is not None or bias_grad is not None
            losses, logits_grad = _losses(F.linear(hidden[rows], weight, bias), targets[rows], gradient=wanted)
            loss += losses.sum()
            if logits_grad is None:
                continue
            if bias_grad is not None:
                bias_grad += logits_grad.sum(0, dtype=torch.float32)
            if hidden_grad is not None:
                hidden_grad[rows] = logits_grad @ weight
            if weight_grad is not None:
                weight_grad += logits_grad.T @ hidden[rows]
        ctx.save_for_backward(hidden_grad, weight_grad, bias_grad)
        ctx.dtypes = (weight.dtype, None if bias is None else bias.dtype)
        return loss

    @staticmethod
    def backward(ctx: Any, *loss_grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        refuse_second_derivative()
        scale = loss_grads[0]
        hidden_grad, weight_grad, bias_grad = ctx.saved_tensors
        weight_dtype, bias_dtype = ctx.dtypes
        return (
            None if hidden_grad is None else (hidden_grad * scale).to(hidden_grad.dtype),
            None if weight_grad is None else (weight_grad * scale).to(weight_dtype),
            None if bias_grad is None else (bias_grad * scale).to(bias_dtype),
            None,
        )


def _losses(logits: Tensor, targets: Tensor, *, gradient: bool) -> tuple[Tensor, Tensor | None]:
    """-log softmax(logits)[target] of each row [S], fp32, and its gradient in the place of the logits if wanted."""
    fused = operation("cross_entropy") if logits.device.type == "cpu" and logits.dtype == torch.bfloat16 else None
    if fused is not None:
        losses = torch.empty(logits.shape[0], dtype=torch.float32)
        fused(losses, logits, targets, gradient)
        return losses, logits if gradient else None
    exact, places = logits.float(), targets[:, None]
    log_normalizer = exact.logsumexp(-1, keepdim=True)
    losses = (log_normalizer - exact.gather(-1, places))[:, 0]
    if not gradient:
        return losses, None
    softmax = exact.sub_(log_normalizer).exp_()
    softmax.scatter_add_(-1, places, torch.full_like(places, -1, dtype=torch.float32))
    return losses, softmax.to(logits.dtype)


@torch.no_grad()
def sample_targets(hidden: Tensor, weight: Tensor, bias: Tensor | None, generator: torch.Generator) -> Tensor:
    """One target of each position, drawn from softmax(hidden @ weight.T + bias), in chunks of rows.

    Args:
        hidden: [S, D]; weight: [V, D]; bias: [V] or None; generator: on their device.

    Returns:
        [S], int64.
    """
    chunks = hidden.split(CHUNK_ROWS)  # type: ignore[no-untyped-call]
    logits = (F.linear(rows, weight, bias).float() for rows in chunks)
    return torch.cat([torch.multinomial(chunk.softmax(-1), 1, generator=generator)[:, 0] for chunk in logits])


def linear_token_log_probs(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """log softmax(hidden @ weight.T + bias)[target] of every position, in chunks of rows.

    What a position counts for is only known in the backward pass, which therefore multiplies the head once more;
    `linear_cross_entropy_sum` need not and is to be preferred where all positions count the same. For log-probabilities
    at a temperature divide `hidden` and `bias` by it.

    Args:
        hidden: [S, D]; weight: [V, D]; bias: [V] or None; targets: [S], int64.

    Returns:
        [S], fp32.
    """
    log_probs: Tensor = _LinearTokenLogProbs.apply(hidden, weight, bias, targets)  # type: ignore[no-untyped-call]
    return log_probs


class _LinearTokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias, targets)
        log_probs = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        for start in range(0, hidden.shape[0], CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            losses, _ = _losses(F.linear(hidden[rows], weight, bias), targets[rows], gradient=False)
            log_probs[rows] = -losses
        return log_probs

    @staticmethod
    def backward(ctx: Any, *row_grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        refuse_second_derivative()
        hidden, weight, bias, targets = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias, _ = ctx.needs_input_grad
        hidden_grad = torch.empty_like(hidden) if needs_hidden else None
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        bias_grad = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and needs_bias else None
        for start in range(0, hidden.shape[0], CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            _, logits_grad = _losses(F.linear(hidden[rows], weight, bias), targets[rows], gradient=True)
            assert logits_grad is not None  # it was asked for
            logits_grad.mul_(-row_grads[0][rows, None])
            if bias_grad is not None:
                bias_grad += logits_grad.sum(0, dtype=torch.float32)
            if hidden_grad is not None:
                hidden_grad[rows] = logits_grad @ weight
            if weight_grad is not None:
                weight_grad += logits_grad.T @ hidden[rows]
        return (
            hidden_grad,
            None if weight_grad is None else weight_grad.to(weight.dtype),
            None if bias_grad is None else bias_grad.to(bias.dtype),
            None,
        )


@torch.no_grad()
def head_kl_sum(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    reference_hidden: Tensor,
    reference_head: Callable[[Tensor], Tensor],
) -> Tensor:
    """Sum over positions of KL(softmax(head(hidden)) || the same of the reference), over the whole vocabulary.

    A measure, not a loss: it has no gradient.

    Args:
        hidden, reference_hidden: [S, D]; the heads give logits [s, V] of some of their rows [s, D].

    Returns:
        A scalar, fp64.
    """
    total = torch.zeros((), dtype=torch.float64, device=hidden.device)
    for start in range(0, hidden.shape[0], CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        log_p = head(hidden[rows]).float().log_softmax(-1)
        log_q = reference_head(reference_hidden[rows]).float().log_softmax(-1)
        total += (log_p.exp() * (log_p - log_q)).sum(dtype=torch.float64)
    return total
