"""How many rows a matrix has when it meets a weight: few different numbers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def filled_rows(rows: int, weight: Tensor) -> int:
    """To how many rows a matrix is best filled up before it meets `weight`: at most a sixteenth more.

    On a CPU a bf16 product has code of its own for each number of rows (oneDNN, and ATen below it), which takes time to
    write and is kept: with rows of all numbers a model of 2M parameters grew by 2 MB a step.
    """
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16:
        return rows
    multiple = next((m for m in (32, 16, 8, 4, 2) if 16 * m <= rows), 1)
    return rows + -rows % multiple


def filled(matrix: Tensor, weight: Tensor) -> Tensor:
    """The matrix with rows of zeros below it, as many as `filled_rows` asks for."""
    fill = filled_rows(matrix.shape[0], weight) - matrix.shape[0]
    return F.pad(matrix, (0, 0, 0, fill)) if fill else matrix
