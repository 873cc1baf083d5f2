"""A model's linear layers with their weights laid out once for the processor's matrix product.

For a few rows, as in generation, oneDNN spends a third of its time rearranging a plain weight; rearranged beforehand it
need not. The model itself stays as it is: what is returned shares all but the linear layers with it.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """`x @ weight.T + bias` for a bf16 weight on the CPU.

    Args:
        rows: how many rows it will mostly see; any number works.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int) -> None:
        super().__init__()
        self.weight, self.bias = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows), bias

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return product


def with_packed_linears(module: nn.Module, rows: int) -> nn.Module:
    """`module` with every plain bf16 CPU linear layer packed; as it is where torch has no such product."""
    if not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return module
    if type(module) is nn.Linear:
        if module.weight.device.type != "cpu" or module.weight.dtype != torch.bfloat16:
            return module
        return PackedLinear(module.weight, module.bias, rows)
    children = {name: child and with_packed_linears(child, rows) for name, child in module._modules.items()}
    if all(child is module._modules[name] for name, child in children.items()):
        return module
    shallow = copy.copy(module)
    shallow._modules = children
    return shallow
