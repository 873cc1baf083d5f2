"""Bottleneck adapters and frozen layers: what they promise at their start, in training, saved and switched off."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from support import ARCHITECTURES, save_directory, tiny_llama
from torch.nn import functional
from trained import logits_of, trained
from transformers import AutoModelForCausalLM, PreTrainedModel

from quilate.errors import ModelError
from quilate.models.create import create, shape_config
from quilate.models.load import load_causal, load_tokenizer, save_model, trainable_parameters
from quilate.models.tuning.bottleneck import BottleneckConfig, add_bottlenecks
from quilate.models.tuning.freeze import train_last_layers
from quilate.models.tuning.lora import LoraConfig, add_lora


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "falcon"])
def test_an_adapter_starts_near_the_base_and_switched_off_is_the_base(tmp_path: Path, architecture: str) -> None:
    base = save_directory(ARCHITECTURES[architecture](), tmp_path / "base")
    plain = logits_of(load_causal(base, dtype=torch.float32))
    model = add_bottlenecks(load_causal(base, dtype=torch.float32), BottleneckConfig(size=8), base=base)
    fresh = logits_of(model)
    assert not torch.equal(fresh, plain)
    torch.testing.assert_close(fresh, plain, rtol=0, atol=0.02 * float(plain.std()))
    trained(model)
    model.get_base_model().set_attn_implementation("sdpa")
    assert not torch.allclose(logits_of(model), plain, atol=1e-2)
    with model.disable_adapter():
        assert torch.equal(logits_of(model), plain)  # norms included: they were copied, not changed


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "falcon"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_adapter_comes_back_bit_for_bit(tmp_path: Path, architecture: str, dtype: torch.dtype) -> None:
    base = save_directory(ARCHITECTURES[architecture](), tmp_path / "base")
    model = trained(add_bottlenecks(load_causal(base, dtype=dtype), BottleneckConfig(size=8), base=base))
    model.get_base_model().set_attn_implementation("sdpa")
    save_model(model, load_tokenizer(base), tmp_path / "adapter")
    ours = logits_of(load_causal(tmp_path / "adapter", dtype=dtype))
    assert torch.equal(ours, logits_of(model))
    plain = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=dtype), tmp_path / "adapter", autocast_adapter_dtype=False
    )
    assert torch.equal(logits_of(plain), ours)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["peft_type"] == "BOTTLENECK"
    assert not (tmp_path / "adapter" / "model.safetensors").exists()


def test_the_adapter_computes_what_the_paper_writes(tmp_path: Path) -> None:
    """The second half of one layer by hand: y + up(gelu(down(y))) before the residual sum."""
    base = save_directory(tiny_llama(), tmp_path / "base")
    model = add_bottlenecks(load_causal(base, dtype=torch.float32), BottleneckConfig(size=8), base=base)
    layer = model.get_base_model().model.layers[0].mlp.down_proj
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    y = functional.linear(x, layer.base_layer.weight)
    down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]
    inner = functional.gelu(y @ down.weight.T + down.bias)
    torch.testing.assert_close(layer(x), y + inner @ up.weight.T + up.bias)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "falcon", "roberta"])
def test_pfeiffer_puts_one_network_after_each_mlp_and_leaves_the_norms(tmp_path: Path, architecture: str) -> None:
    """Its forward by hand, its size by the formula, its start near the base; what is off is the base, to the bit."""
    model = tiny_model(architecture)
    plain = logits_of(model)
    adapted = add_bottlenecks(model, BottleneckConfig(placement="pfeiffer", size=8), base=tmp_path)
    layers, width = model.config.num_hidden_layers, model.config.hidden_size
    assert trainable_parameters(adapted) == layers * (2 * 8 * width + width + 8)
    learning = [name for name, p in adapted.named_parameters() if p.requires_grad]
    mlp_ends = ("down_proj", "mlp.c_proj", "dense_4h_to_h", "output.dense")
    assert all(any(f"{end}.bottleneck_" in name for end in mlp_ends) for name in learning)
    assert not any("attention.output" in name or "attn" in name for name in learning)
    torch.testing.assert_close(logits_of(adapted), plain, rtol=0, atol=0.02 * float(plain.std()))
    layer = next(m for m in adapted.modules() if type(m).__name__ == "BottleneckLayer")
    x = torch.randn(5, 4 * width if architecture != "llama" else 64, generator=torch.Generator().manual_seed(0))
    y, down, up = layer.base_layer(x), layer.bottleneck_down["default"], layer.bottleneck_up["default"]
    torch.testing.assert_close(layer(x), y + functional.relu(y @ down.weight.T + down.bias) @ up.weight.T + up.bias)
    trained(adapted)
    adapted.get_base_model().set_attn_implementation("sdpa")
    assert not torch.allclose(logits_of(adapted), plain, atol=1e-3)
    with adapted.disable_adapter():
        assert torch.equal(logits_of(adapted), plain)


def tiny_model(architecture: str) -> PreTrainedModel:
    if architecture == "roberta":
        return create(shape_config("roberta", "tiny", vocabulary=384, context=64, end=0, pad=1), masked=True).eval()
    return ARCHITECTURES[architecture]()


def test_only_adapters_and_norms_learn(tmp_path: Path) -> None:
    base = save_directory(tiny_llama(), tmp_path / "base")
    model = add_bottlenecks(load_causal(base, dtype=torch.float32), BottleneckConfig(size=8), base=base)
    # Houlsby et al. 2019, section 2.1: 2md + d + m an adapter, two a layer; and two norms of 32 weights a layer.
    assert trainable_parameters(model) == 2 * (2 * (2 * 8 * 32 + 32 + 8) + 2 * 32)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    trained(model)
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if not p.requires_grad)
    without = add_bottlenecks(load_causal(base, dtype=torch.float32), BottleneckConfig(size=8, norms=False), base=base)
    assert trainable_parameters(without) == 2 * 2 * (2 * 8 * 32 + 32 + 8)


def test_a_masked_model_takes_lora_too(tmp_path: Path) -> None:
    model = create(shape_config("roberta", "tiny", vocabulary=384, context=64, end=0, pad=1), masked=True)
    before = logits_of(model)
    adapted = trained(add_lora(model, LoraConfig(rank=4), base=tmp_path))
    adapted.get_base_model().set_attn_implementation("sdpa")
    assert not torch.allclose(logits_of(adapted), before, atol=1e-3)


def test_a_masked_model_takes_adapters_too(tmp_path: Path) -> None:
    model = create(shape_config("roberta", "tiny", vocabulary=384, context=64, end=0, pad=1), masked=True)
    adapted = add_bottlenecks(model, BottleneckConfig(size=8), base=tmp_path)
    layers = model.config.num_hidden_layers
    trained(adapted)
    assert (
        sum("bottleneck_up" in name and name.endswith("weight") for name, _ in adapted.named_parameters()) == 2 * layers
    )


def test_a_bottleneck_cannot_be_merged(llama_directory: Path) -> None:
    model = add_bottlenecks(load_causal(llama_directory, dtype=torch.float32), BottleneckConfig(), base=llama_directory)
    with pytest.raises(ModelError, match="cannot be merged"):
        model.merge_and_unload()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "falcon"])
def test_the_last_layers_learn_and_the_rest_costs_no_gradient(architecture: str) -> None:
    model = train_last_layers(ARCHITECTURES[architecture](), 1)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert any(".1." in name for name in learning) and not any(".0." in name for name in learning)
    assert not any("embed" in name or "wte" in name or "lm_head" in name for name in learning)
    frozen = {name: p.clone() for name, p in model.named_parameters() if name not in learning}
    before = {name: p.clone() for name, p in model.named_parameters() if name in learning}
    trained(model)
    assert all(
        p.grad is None and torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen
    )
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)


def test_more_layers_than_there_are(llama_directory: Path) -> None:
    with pytest.raises(ModelError, match="has 2"):
        train_last_layers(load_causal(llama_directory, dtype=torch.float32), 3)
