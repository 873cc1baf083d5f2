"""What attention does to the last token of a prompt, layer by layer: its scores, its queries and its output.

Registered with `transformers` as `quilate_observed`. It computes plain causal attention and hands what it saw to an
`Observer` that is passed through the model's forward as a keyword.

Shapes: L layers, H heads, K key heads, E head size, T tokens of the prompt, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from quilate.errors import ModelError

OBSERVED_ATTENTION = "quilate_observed"


@dataclass(frozen=True)
class Observation:
    """One forward pass.

    Attributes:
        outputs: [L, D] attention's output for the last token, after its projection and before the residual.
        scores: [L, H, T] the last token's scores before the softmax.
        queries: [L, T, H * E] every token's query, before positions are rotated into it.
    """

    outputs: Tensor
    scores: Tensor
    queries: Tensor


@dataclass
class Observer:
    """Collects one pass."""

    outputs: list[Tensor] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)
    queries: list[Tensor] = field(default_factory=list)


def attention_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The attention modules, which must have separate projections of keys and values.

    Raises:
        ModelError: they have not (GPT-2 and Falcon fuse them).
    """
    layers = [module for module in model.modules() if all(hasattr(module, f"{x}_proj") for x in "qkv")]
    if not layers:
        raise ModelError(
            f"{type(model).__name__} has no separate projections of queries, keys and values",
            hint="take a model of the Llama family; GPT-2's and Falcon's layers compute the three in one",
        )
    return layers


@contextmanager
def observed(model: PreTrainedModel) -> Iterator[None]:
    """Inside, `observe` works on this model."""
    before = model.config._attn_implementation
    model.set_attn_implementation(OBSERVED_ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@torch.no_grad()
def observe(model: PreTrainedModel, tokens: list[int]) -> Observation:
    """One forward pass over a prompt; only within `observed`."""
    observer = Observer()
    hooks = []
    for layer in attention_layers(model):
        hooks.append(layer.register_forward_hook(lambda _m, _i, out: observer.outputs.append(out[0][0, -1])))
        hooks.append(layer.q_proj.register_forward_hook(lambda _m, _i, out: observer.queries.append(out[0])))  # type: ignore[union-attr]
    try:
        ids = torch.tensor([tokens], device=model.get_input_embeddings().weight.device)
        model.base_model(input_ids=ids, use_cache=False, observer=observer)
    finally:
        for hook in hooks:
            hook.remove()
    return Observation(*(torch.stack(part) for part in (observer.outputs, observer.scores, observer.queries)))


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    observer: Observer | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention given to `transformers`: query [1, H, T, E], key and value [1, K, T, E] -> [1, T, H, E]."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], dim=1) for t in (key, value))
    if observer is not None:
        observer.scores.append((query[0, :, -1:] @ key[0].transpose(1, 2))[:, 0] * scale)
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale).transpose(1, 2), None


def _no_mask(*_: Any, **__: Any) -> None:
    """One prompt at a time, causal: there is nothing to mask."""


AttentionInterface.register(OBSERVED_ATTENTION, _attend)
AttentionMaskInterface.register(OBSERVED_ATTENTION, _no_mask)
