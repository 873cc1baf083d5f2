"""A model's layers for inference on the CPU in bf16: the same results in fewer and faster operations.

A new token needs so little arithmetic that reading the weights and starting operations take its time. So a linear layer
reads a weight laid out once in the order in which it is used, and normalization and activation are one operation each.
The model itself stays as it is: what is returned shares everything else with it.

Shapes: M rows, K inputs, N outputs.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quilate.kernels.operations import operation

PANEL = 32  # outputs whose weights lie together: two vectors of the processor
FEW_ROWS = 64  # beyond it torch's product on the plain weight is as fast (measured on an AMD EPYC with AVX512-BF16)


class FewRowsLinear(nn.Module):
    """`x @ weight.T + bias` by our own operation for up to `FEW_ROWS` rows, by torch's for more.

    A row's result does not depend on how many rows there are beside it, up to that number.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()
        outputs, inputs = weight.shape
        padded = F.pad(self.weight, (0, 0, 0, -outputs % PANEL)).contiguous()
        # Two neighbouring inputs are one 32-bit word, the operand of the processor's dot product.
        words = padded.view(torch.int32).view(-1, PANEL, inputs // 2)
        self.packed = words.transpose(1, 2).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if rows.shape[0] > FEW_ROWS:
            return F.linear(x, self.weight, self.bias)
        out = x.new_empty(rows.shape[0], self.weight.shape[0])
        torch.ops.quilate.few_rows_linear(out, rows.contiguous(), self.packed, self.bias)
        return out.view(*x.shape[:-1], -1)


class OneDnnLinear(nn.Module):
    """`x @ weight.T + bias` with the weight in oneDNN's own layout for this processor, which AMX needs to be fast.

    Args:
        rows: how many rows it will mostly see; any number works.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int) -> None:
        super().__init__()
        self.weight, self.bias = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows), bias

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return product


class FusedLora(nn.Module):
    """A linear layer with a low-rank adapter beside it: `base(x) + x A.T B.T scaling`.

    The adapter is not merged into the weight: what it learned in a few steps is less than the weight's own rounding.
    """

    def __init__(self, base: nn.Module, down: Tensor, up: Tensor, scaling: float) -> None:
        super().__init__()
        self.base, self.down, self.up = base, FewRowsLinear(down, None), FewRowsLinear(up.detach() * scaling, None)

    def forward(self, x: Tensor) -> Tensor:
        update: Tensor = self.up(self.down(x))
        return update.add_(self.base(x))


class FusedNorm(nn.Module):
    """Llama's RMSNorm in one operation."""

    def __init__(self, weight: Tensor, epsilon: float) -> None:
        super().__init__()
        self.weight, self.epsilon = weight.detach(), epsilon

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        out = torch.empty_like(rows)
        torch.ops.quilate.rms_norm(out, rows, self.weight, self.epsilon)
        return out.view(x.shape)


class FusedGatedMlp(nn.Module):
    """Llama's MLP, `down(SiLU(gate(x)) * up(x))`, with its middle in one operation."""

    def __init__(self, gate: nn.Module, up: nn.Module, down: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = gate, up, down

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_proj(x).contiguous(), self.up_proj(x).contiguous()
        torch.ops.quilate.gated_silu(gate, gate, up)
        return self.down_proj(gate)  # type: ignore[no-any-return]


class LaidOut:
    """Linear layers whose weights are frozen, laid out once for all generators of a model that an adapter changes."""

    def __init__(self) -> None:
        self._layers: dict[int, tuple[Tensor, nn.Module | None]] = {}
        self.adapted_equally = False  # an adapted layer has been compared with its equal: the others are of one kind

    def linear(self, module: nn.Linear, rows: int) -> nn.Module | None:
        if module.weight.requires_grad:
            return _linear(module, rows)
        weight, layer = self._layers.get(id(module.weight), (None, None))
        if weight is None:  # it is kept, so that no other tensor gets its id
            layer = _linear(module, rows)
            self._layers[id(module.weight)] = module.weight, layer
        return layer


def with_fused_layers(module: nn.Module, rows: int, laid_out: LaidOut | None = None) -> nn.Module:
    """`module` with the layers that have a faster equal replaced; itself where there are none.

    Args:
        rows: how many rows it will mostly see.
        laid_out: of earlier calls for the same model, whose frozen weights have not changed.
    """
    laid_out = laid_out or LaidOut()
    if (adapted := _lora(module, rows, laid_out)) is not None:
        return adapted
    children = {name: child and with_fused_layers(child, rows, laid_out) for name, child in module._modules.items()}
    replacement = _replacement(module, children, rows, laid_out)
    if replacement is not None:
        return replacement
    if all(child is module._modules[name] for name, child in children.items()):
        return module
    shallow = copy.copy(module)
    shallow._modules = children
    return shallow


def _replacement(module: nn.Module, children: dict[str, Any], rows: int, laid_out: LaidOut) -> nn.Module | None:
    if type(module) is nn.Linear:
        return laid_out.linear(module, rows) if _on_cpu_in_bf16(module) else None
    if operation("few_rows_linear") is None or not _on_cpu_in_bf16(module):
        return None
    if set(vars(module)["_parameters"]) == {"weight"} and hasattr(module, "variance_epsilon"):
        weight, epsilon = module.get_parameter("weight"), float(module.variance_epsilon)  # type: ignore[arg-type]
        return _if_equal(module, FusedNorm(weight, epsilon), weight.shape[-1])
    if set(children) == {"gate_proj", "up_proj", "down_proj", "act_fn"} and hasattr(module.gate_proj, "in_features"):
        fused = FusedGatedMlp(*(children[name] for name in ("gate_proj", "up_proj", "down_proj")))
        return _if_equal(module, fused, int(module.gate_proj.in_features))  # type: ignore[arg-type]
    return None


def _linear(module: nn.Linear, rows: int) -> nn.Module | None:
    if torch.cpu._is_amx_tile_supported() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return OneDnnLinear(module.weight, module.bias, rows)
    if operation("few_rows_linear") is None or module.in_features % 2:
        return None
    return FewRowsLinear(module.weight, module.bias)


def _lora(module: Any, rows: int, laid_out: LaidOut) -> nn.Module | None:
    """peft's layer, if it does nothing but add one plain adapter."""
    if not hasattr(module, "lora_A") or operation("few_rows_linear") is None or not _on_cpu_in_bf16(module):
        return None
    from peft.tuners.lora import Linear

    if type(module) is not Linear or len(module.active_adapters) != 1:
        return None
    (name,), base = module.active_adapters, module.get_base_layer()
    is_plain = type(base) is nn.Linear and name in module.lora_A and name not in module.lora_variant
    if not is_plain or module.disable_adapters or module.merged or type(module.lora_dropout[name]) is not nn.Identity:
        return None
    down, up = module.lora_A[name], module.lora_B[name]
    layer = laid_out.linear(base, rows)
    if layer is None or up.bias is not None or down.out_features % 2:
        return None
    fused = FusedLora(layer, down.weight, up.weight, float(module.scaling[name]))
    if not laid_out.adapted_equally and _if_equal(module, fused, base.in_features) is None:
        return None
    laid_out.adapted_equally = True
    return fused


def _on_cpu_in_bf16(module: nn.Module) -> bool:
    own = list(module.parameters())
    return bool(own) and all(p.device.type == "cpu" and p.dtype == torch.bfloat16 for p in own)


@torch.inference_mode()
def _if_equal(plain: nn.Module, fused: nn.Module, width: int) -> nn.Module | None:
    """`fused`, if it does what `plain` does: other architectures give the same names to other formulas."""
    x = torch.linspace(-3, 3, 4 * width).view(4, width).sin().bfloat16()
    wanted, found = plain(x).float(), fused(x).float()
    return fused if torch.allclose(found, wanted, rtol=2**-6, atol=2**-6 * float(wanted.abs().max())) else None
