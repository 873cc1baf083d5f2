"""Cross-entropy through the output head, without ever holding all logits.

Shapes: S supervised positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from quilate.kernels.operations import operation, refuse_second_derivative
from quilate.kernels.rows import filled

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


class HeadGradients:
    """The gradients of a loss of the logits hidden @ weight.T + bias, added up over chunks of rows.

    Those of the head are added in fp32, for adding bf16 products in bf16 would lose the small ones.

    Args:
        hidden: [S, D]; weight: [V, D]; bias: [V] or None.
        needed: of which of the three.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, needed: Sequence[bool]) -> None:
        self._hidden, self._weight = hidden, weight
        self._dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        self.hidden = torch.empty_like(hidden) if needed[0] else None
        self.weight = torch.zeros_like(weight, dtype=torch.float32) if needed[1] else None
        self.bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and needed[2] else None

    @property
    def wanted(self) -> bool:
        return any(gradient is not None for gradient in (self.hidden, self.weight, self.bias))

    def add(self, rows: slice, logits_grad: Tensor) -> None:
        """Args: logits_grad: [s, V], of the rows."""
        if self.bias is not None:
            self.bias += logits_grad.sum(0, dtype=torch.float32)
        count, logits_grad = logits_grad.shape[0], filled(logits_grad, self._weight)
        if self.hidden is not None:
            self.hidden[rows] = (logits_grad @ self._weight)[:count]
        if self.weight is not None:
            self.weight += logits_grad.T @ filled(self._hidden[rows], self._weight)

    def keep(self, ctx: Any) -> None:
        """Store them where `scaled_by` finds them."""
        ctx.save_for_backward(self.hidden, self.weight, self.bias)
        ctx.dtypes = self._dtypes

    def in_their_types(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """As autograd wants them, for hidden, weight and bias."""
        return _typed((self.hidden, self.weight, self.bias), self._dtypes)

    @staticmethod
    def scaled_by(loss_grad: Tensor, ctx: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients that `keep` stored, times that of the loss."""
        scaled = (None if gradient is None else gradient * loss_grad for gradient in ctx.saved_tensors)
        return _typed(scaled, ctx.dtypes)


def _typed(
    gradients: Iterable[Tensor | None], dtypes: Iterable[torch.dtype | None]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    hidden, weight, bias = (None if g is None else g.to(dtype) for g, dtype in zip(gradients, dtypes, strict=True))
    return hidden, weight, bias


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradients = HeadGradients(hidden, weight, bias, ctx.needs_input_grad)
        for start in range(0, hidden.shape[0], CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            logits = _logits(hidden[rows], weight, bias)
            losses, logits_grad = _losses(logits, targets[rows], gradient=gradients.wanted)
            loss += losses.sum()
            if logits_grad is not None:
                gradients.add(rows, logits_grad)
        gradients.keep(ctx)
        return loss

    @staticmethod
    def backward(ctx: Any, *loss_grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        refuse_second_derivative()
        return *HeadGradients.scaled_by(loss_grads[0], ctx), None


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(filled(hidden, weight), weight, bias)[: hidden.shape[0]]


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
            losses, _ = _losses(_logits(hidden[rows], weight, bias), targets[rows], gradient=False)
            log_probs[rows] = -losses
        return log_probs

    @staticmethod
    def backward(ctx: Any, *row_grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        refuse_second_derivative()
        hidden, weight, bias, targets = ctx.saved_tensors
        gradients = HeadGradients(hidden, weight, bias, ctx.needs_input_grad)
        for start in range(0, hidden.shape[0], CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            _, logits_grad = _losses(_logits(hidden[rows], weight, bias), targets[rows], gradient=True)
            assert logits_grad is not None  # it was asked for
            gradients.add(rows, logits_grad.mul_(-row_grads[0][rows, None]))
        return *gradients.in_their_types(), None


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
