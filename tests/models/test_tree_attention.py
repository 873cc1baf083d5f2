"""Scoring with the fused tree attention against float64 and against the dense mask it stands in for."""

from __future__ import annotations

import pytest
import torch
from support import tiny_falcon, tiny_llama
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from quilate.inference import likelihood
from quilate.inference.likelihood import score_tokens
from quilate.kernels.operations import operation, why_missing
from quilate.models.tree_attention import TreeLayout, tree_attention

needs_fused = pytest.mark.skipif(why_missing() is not None, reason=f"no fused operations here: {why_missing()}")


def small(architecture: str) -> PreTrainedModel:
    """Heads of 32, the smallest that the fused operation takes."""
    torch.manual_seed(0)
    shape = {"vocab_size": 100, "initializer_range": 0.15}
    if architecture == "gpt2":
        config = GPT2Config(n_embd=64, n_layer=2, n_head=2, n_positions=512, **shape)
        return GPT2LMHeadModel(config).to(torch.bfloat16).eval()
    config = LlamaConfig(
        hidden_size=128, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=512, **shape,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def tokens(count: int, seed: int) -> list[int]:
    return torch.randint(100, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@needs_fused
@pytest.mark.parametrize("prefix", [0, 1, 64, 150])
@pytest.mark.parametrize("length", [1, 65, 130])
def test_the_operation_equals_float64(prefix: int, length: int) -> None:
    generator = torch.Generator().manual_seed(prefix + length)
    heads, key_heads, size = 6, 2, 32
    query, key, value = (
        torch.randn(3, h, length, size, generator=generator).bfloat16() for h in (heads, key_heads, key_heads)
    )
    shared = [torch.randn(1, key_heads, prefix, size, generator=generator).bfloat16() for _ in range(2)]
    sees = torch.rand(3, length, length, generator=generator) < 0.3
    sees |= torch.eye(length, dtype=torch.bool)
    out = torch.empty(3, length, heads, size, dtype=torch.bfloat16)
    attend = operation("tree_attention")
    assert attend is not None
    attend(out, query, key, value, *shared, TreeLayout.of(sees, ()).visible, size**-0.5)
    keys, values = (
        torch.cat([s.expand(3, -1, -1, -1), own], 2).double().repeat_interleave(heads // key_heads, 1)
        for s, own in zip(shared, (key, value), strict=True)
    )
    mask = torch.nn.functional.pad(sees, (prefix, 0), value=True)[:, None]
    scores = (query.double() @ keys.transpose(2, 3) * size**-0.5).masked_fill(~mask, -torch.inf)
    expected = (scores.softmax(-1) @ values).transpose(1, 2)
    assert float((out.double() - expected).norm()) <= 2.0**-8 * float(expected.norm())


@needs_fused
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("prefix", [0, 100])
def test_scores_are_those_of_the_dense_mask(architecture: str, prefix: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the roundings of bf16, which an fp32 model of the same weights bounds for both ways."""
    model = small(architecture)
    labels = [[5, 6, 7], [5, 6, 8], [5, 9], [11, 5]]
    prompts = [[*tokens(prefix, 1), 20 + n, *tokens(n, n + 2)] for n in (1, 30, 3, 70, 64)]
    fused = score_tokens(model, prompts, labels, normalization="sum").scores
    assert model.config._attn_implementation == "sdpa"
    monkeypatch.setattr(likelihood, "BATCH_TOKENS", 1)  # one item a batch
    alone = score_tokens(model, prompts, labels, normalization="sum").scores
    exact = score_tokens(small(architecture).float(), prompts, labels, normalization="sum").scores
    monkeypatch.setattr("quilate.models.tree_attention.is_fused", lambda _: False)
    dense = score_tokens(model, prompts, labels, normalization="sum").scores
    rounding = abs(dense - exact).max()
    assert 0 < abs(fused - exact).max() <= 2 * rounding + 0.02
    assert abs(alone - exact).max() <= 2 * rounding + 0.02


@needs_fused
def test_it_is_not_used_where_it_does_not_apply() -> None:
    for model in (tiny_llama(), tiny_llama(dtype=torch.bfloat16), tiny_falcon()):
        before = model.config._attn_implementation
        with tree_attention(model) as fused:
            assert not fused
        assert model.config._attn_implementation == before
