"""Momentum attention (Dai et al. 2022, section 5): attention's output and a decaying sum of the earlier values.

The paper draws it from its analogy: what momentum is to gradient descent, a moving sum of values is to attention. It
trained models with it; here it is laid over a model that never learned with it.

Registered with `transformers` as `quilate_momentum`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from quilate.models.observed_attention import attention_layers

MOMENTUM_ATTENTION = "quilate_momentum"


@contextmanager
def momentum_attention(model: PreTrainedModel, rate: float) -> Iterator[None]:
    """Inside, every layer's heads add sum over i < t of rate^(t - i) v_i to what token t attends to; 0 adds nothing.

    Prompts are read one at a time, whole or after a cache.

    Raises:
        ValueError: the rate is not in [0, 1).
        ModelError: the model does not show its attention, see `attention_layers`.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"a momentum of {rate}: it must be at least 0 and below 1")
    before = model.config._attn_implementation
    layers = attention_layers(model)
    for layer in layers:
        layer.momentum = rate  # type: ignore[assignment]
    model.set_attn_implementation(MOMENTUM_ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        for layer in layers:
            del layer.momentum


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention given to `transformers`: query [1, H, n, E] of the last n tokens, key and value [1, K, t, E] of all
    -> [1, n, H, E]."""
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    places = torch.arange(key.shape[2], device=query.device)
    ages = places[-query.shape[2] :, None] - places  # [n, t]; 0 is the token itself
    rate = torch.tensor(float(module.momentum), device=query.device)  # type: ignore[arg-type]
    weights = torch.where(ages > 0, rate ** ages.clamp(min=0), 0).to(value.dtype)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=ages >= 0, scale=scale)
    return (attended + weights @ value).transpose(1, 2), None


def _no_mask(*_: Any, **__: Any) -> None:
    """One prompt at a time, causal: `_attend` masks by itself."""


AttentionInterface.register(MOMENTUM_ATTENTION, _attend)
AttentionMaskInterface.register(MOMENTUM_ATTENTION, _no_mask)
