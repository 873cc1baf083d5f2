"""Layers for inference give what the model's own layers give, for any number of rows, and leave the model alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support import tiny_llama
from torch import nn

from quilate.inference.fused_layers import (
    FEW_ROWS,
    FewRowsLinear,
    FusedGatedMlp,
    FusedLora,
    FusedNorm,
    LaidOut,
    OneDnnLinear,
    with_fused_layers,
)
from quilate.kernels.operations import operation, plain_operations
from quilate.models.tuning.lora import LoraConfig, add_lora

fused = pytest.mark.skipif(operation("few_rows_linear") is None, reason="this machine has no fused operations")


@pytest.fixture(autouse=True)
def _no_gradient() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


@fused
@pytest.mark.parametrize("rows", [1, 3, 8, 21, FEW_ROWS, FEW_ROWS + 1])
@pytest.mark.parametrize(("inputs", "outputs", "bias"), [(64, 32, False), (34, 50, True), (2, 1, True), (96, 7, False)])
def test_linear_equals_float64(rows: int, inputs: int, outputs: int, bias: bool) -> None:
    plain = nn.Linear(inputs, outputs, bias=bias, dtype=torch.bfloat16)
    x = torch.randn(2, rows, inputs).bfloat16()[:1]
    wanted = nn.functional.linear(x.double(), plain.weight.double(), plain.bias.double() if bias else None)
    found = FewRowsLinear(plain.weight, plain.bias)(x)
    assert found.shape == wanted.shape
    torch.testing.assert_close(found.double(), wanted, rtol=2**-8, atol=2**-8 * float(wanted.abs().max()))


@fused
def test_a_row_does_not_depend_on_its_neighbours() -> None:
    layer = FewRowsLinear(torch.randn(70, 48).bfloat16(), None)
    x = torch.randn(FEW_ROWS, 48).bfloat16()
    together = layer(x)
    for row in range(FEW_ROWS):
        assert torch.equal(layer(x[row : row + 1])[0], together[row])


@fused
@pytest.mark.parametrize("width", [16, 31, 576])
def test_norm_equals_llamas_up_to_one_rounding(width: int) -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    plain = LlamaRMSNorm(width, eps=1e-5).bfloat16()
    plain.weight.copy_(torch.randn(width))
    x = (10 * torch.randn(3, 5, width)).bfloat16()
    x[0, 0] = 0
    torch.testing.assert_close(FusedNorm(plain.weight, 1e-5)(x), plain(x), rtol=2**-7, atol=0)


@fused
def test_gated_silu_equals_torchs_also_where_it_overflows() -> None:
    gate = torch.cat([torch.linspace(-200, 200, 1000), torch.tensor([float("nan"), float("inf")])]).bfloat16()
    up = torch.randn(1002).bfloat16()
    wanted = nn.functional.silu(gate) * up
    found = torch.empty_like(gate)
    torch.ops.quilate.gated_silu(found, gate, up)
    torch.testing.assert_close(found, wanted, rtol=2**-7, atol=1e-30, equal_nan=True)


@fused
def test_every_layer_of_a_llama_is_replaced_and_the_model_stays_as_it_is() -> None:
    model = tiny_llama(dtype=torch.bfloat16)
    before = {name: type(module) for name, module in model.model.named_modules()}
    replaced = with_fused_layers(model.model, 4)
    kinds = [type(module) for module in replaced.modules()]
    layers = model.config.num_hidden_layers
    assert kinds.count(FusedNorm) == 2 * layers + 1
    assert kinds.count(FusedGatedMlp) == layers
    assert nn.Linear not in kinds
    assert {name: type(module) for name, module in model.model.named_modules()} == before
    tokens = torch.arange(6)[None]
    wanted, found = (body(tokens, use_cache=False).last_hidden_state.float() for body in (model.model, replaced))
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.02 * float(wanted.abs().max()))


def test_fp32_layers_stay_as_they_are() -> None:
    body = tiny_llama().model
    assert with_fused_layers(body, 4) is body


def test_where_operations_are_missing_nothing_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    body = tiny_llama(dtype=torch.bfloat16).model
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    with plain_operations():
        assert with_fused_layers(body, 4) is body


@fused
def test_another_formula_under_the_same_names_is_kept() -> None:
    class OtherNorm(nn.Module):
        """Gemma's: the weight is what is added to 1."""

        def __init__(self) -> None:
            super().__init__()
            self.weight, self.variance_epsilon = nn.Parameter(torch.randn(32).bfloat16()), 1e-6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scaled = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
            return (scaled * (1 + self.weight.float())).bfloat16()

    norm = OtherNorm()
    assert with_fused_layers(norm, 4) is norm


@pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"), reason="torch without oneDNN's layouts")
def test_with_amx_onednn_lays_the_weights_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: True)
    plain = nn.Linear(32, 16, dtype=torch.bfloat16)
    layer = with_fused_layers(plain, 4)
    assert isinstance(layer, OneDnnLinear)
    x = torch.randn(3, 32).bfloat16()
    torch.testing.assert_close(layer(x), plain(x), rtol=2**-7, atol=1e-2)


@fused
def test_an_adapter_is_computed_beside_its_layer_and_frozen_weights_are_laid_out_once(tmp_path: Path) -> None:
    """Also after an update of the adapter, and with it switched off; a weight that is trained is laid out anew."""
    plain = tiny_llama(dtype=torch.bfloat16)
    model = add_lora(plain, LoraConfig(rank=4), base=tmp_path).eval()
    laid_out = LaidOut()
    tokens = torch.arange(6)[None]
    seen = []
    for scale in (0.0, 0.3):
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(scale * torch.randn(parameter.shape))
        body = plain.base_model
        replaced = with_fused_layers(body, 4, laid_out)
        layers = [module for module in replaced.modules() if isinstance(module, FusedLora)]
        assert len(layers) == 7 * plain.config.num_hidden_layers
        assert sum(isinstance(module, FusedGatedMlp) for module in replaced.modules()) == plain.config.num_hidden_layers
        wanted, found = (part(tokens, use_cache=False).last_hidden_state.float() for part in (body, replaced))
        torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.03 * float(wanted.abs().max()))
        seen.append(([layer.base for layer in layers], found))
    assert all(a is b for a, b in zip(seen[0][0], seen[1][0], strict=True))
    assert not torch.allclose(seen[0][1], seen[1][1])
    linear = nn.Linear(4, 4, dtype=torch.bfloat16)
    assert with_fused_layers(linear, 4, laid_out) is not with_fused_layers(linear, 4, laid_out)
