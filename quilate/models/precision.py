"""Number formats and devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "bf16", "fp32"]


def compute_dtype(precision: Precision = "auto") -> torch.dtype:
    """bf16 where the processor multiplies it fast (CUDA, AVX512-BF16, AMX), else fp32."""
    import torch

    if precision != "auto":
        return torch.bfloat16 if precision == "bf16" else torch.float32
    if torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return torch.float32


def compute_device() -> torch.device:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def filled_rows(rows: int, weight: torch.Tensor) -> int:
    """To how many rows a matrix is best filled up before it meets `weight`: at most a sixteenth more.

    On a CPU a bf16 product has code of its own for each number of rows (oneDNN, and ATen below it), which takes time to
    write and is kept: with rows of all numbers a model of 2M parameters grew by 2 MB a step.
    """
    import torch

    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16:
        return rows
    multiple = next((m for m in (32, 16, 8, 4, 2) if 16 * m <= rows), 1)
    return rows + -rows % multiple
