"""What is observed of attention equals what transformers' eager attention returns."""

from __future__ import annotations

import pytest
import torch
from support import tiny_gpt2, tiny_llama

from quilate.errors import ModelError
from quilate.models.observed_attention import attention_layers, observe, observed


def test_scores_outputs_and_queries_equal_eager_attention() -> None:
    model = tiny_llama()
    tokens = [5, 9, 200, 31, 7]
    with observed(model):
        seen = observe(model, tokens)
    assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    outputs = []
    hooks = [
        layer.register_forward_hook(lambda _m, _i, out: outputs.append(out[0])) for layer in attention_layers(model)
    ]
    with torch.no_grad():
        found = model(torch.tensor([tokens]), output_attentions=True, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    for layer, weights in enumerate(found.attentions):
        torch.testing.assert_close(seen.scores[layer].softmax(-1), weights[0, :, -1], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(seen.outputs[layer], outputs[layer][0, -1], rtol=1e-4, atol=1e-6)
    first = model.model.layers[0]
    wanted = first.self_attn.q_proj(first.input_layernorm(found.hidden_states[0]))[0]
    torch.testing.assert_close(seen.queries[0], wanted, rtol=1e-4, atol=1e-6)


def test_fused_projections_are_refused() -> None:
    with pytest.raises(ModelError, match="no separate projections"):
        attention_layers(tiny_gpt2())
