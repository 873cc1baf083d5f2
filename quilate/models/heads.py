"""Where a causal model divides into a body (hidden states) and an output head (logits).

Dividing it lets a loss or a score multiply the head only at the positions that count. Some architectures do more after
the head (Gemma 2 caps logits, Cohere scales them); the division is therefore checked on a probe, never assumed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from quilate.errors import ModelError


@dataclass(frozen=True)
class Divided:
    """`head(body(...).last_hidden_state)` equals the model's logits."""

    body: nn.Module
    head: nn.Linear


def divide(model: PreTrainedModel) -> Divided:
    """Divide a causal model (an adapter's wrapping is looked through; the adapter stays active).

    Raises:
        ModelError: the model's logits are not a linear map of its last hidden states.
    """
    inner: PreTrainedModel = model.get_base_model() if hasattr(model, "peft_config") else model
    body, head = inner.base_model, inner.get_output_embeddings()
    if isinstance(head, nn.Linear) and body is not inner and _agrees(inner, body, head):
        return Divided(body, head)
    raise ModelError(
        f"{type(inner).__name__} computes its logits in a way quilate does not know (more than one linear map)",
        hint="use a Llama-, GPT-2-, Falcon-, Qwen- or Mistral-like model",
    )


@torch.no_grad()
def _agrees(model: PreTrainedModel, body: nn.Module, head: nn.Linear) -> bool:
    attention, training = model.config._attn_implementation, model.training
    model.set_attn_implementation("eager")  # the probe is a plain row of tokens, whatever attention is in use
    model.eval()
    try:
        probe = torch.arange(8, device=head.weight.device)[None] % model.config.vocab_size
        logits: Tensor = model(input_ids=probe, use_cache=False).logits
        ours = head(body(input_ids=probe, use_cache=False).last_hidden_state)
        return torch.equal(logits, ours)
    finally:
        model.set_attn_implementation(attention)
        model.train(training)
