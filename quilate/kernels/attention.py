"""Attention over packed documents in one fused operation: exact, in memory linear in length, forward and backward.

FlashAttention-2 (Dao 2023, algorithms 1 and 2) in blocks of 64 x 64 with bf16 products summed in fp32. Scores exist for
one block at a time; the backward pass computes them again from the saved normalizers. Keys shared by a group of query
heads are read where they are.

Shapes: T tokens, H heads, K key heads, E head size, N documents.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quilate.kernels.operations import operation, refuse_second_derivative

MOST_HEAD_SIZE = 256


def is_fused(query: Tensor) -> bool:
    """Whether this machine has the fused operation for queries [T, H, E] of such a type and head size."""
    size = query.shape[-1]
    fits = query.device.type == "cpu" and query.dtype == torch.bfloat16 and size % 32 == 0 and size <= MOST_HEAD_SIZE
    return fits and operation("attention_forward") is not None


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, *, scale: float, causal: bool
) -> Tensor:
    """softmax(query key^T * scale) value within each document; for what `is_fused` accepts.

    Args:
        query: [T, H, E]; key, value: [T, K, E], with H a multiple of K; all bf16.
        starts: [N + 1] int64 on the CPU: where each document begins, and T.

    Returns:
        [T, H, E] bf16.
    """
    rows = [t if t.stride(-1) == 1 else t.contiguous() for t in (query, key, value)]
    out: Tensor = _PackedAttention.apply(*rows, starts, scale, causal)  # type: ignore[no-untyped-call]
    return out


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, starts: Tensor, scale: float, causal: bool
    ) -> Tensor:
        out = torch.empty(query.shape, dtype=query.dtype)
        normalizers = torch.empty(query.shape[1], query.shape[0], dtype=torch.float32)
        torch.ops.quilate.attention_forward(out, normalizers, query, key, value, starts, scale, causal)
        ctx.save_for_backward(query, key, value, starts, out, normalizers)
        ctx.scale, ctx.causal = scale, causal
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        query, key, value, starts, out, normalizers = ctx.saved_tensors
        out_grad = grads[0] if grads[0].stride(-1) == 1 else grads[0].contiguous()
        input_grads = [torch.empty(t.shape, dtype=t.dtype) for t in (query, key, value)]
        torch.ops.quilate.attention_backward(
            *input_grads, out_grad, query, key, value, out, normalizers, starts, ctx.scale, ctx.causal
        )
        return *input_grads, None, None, None
