"""A prefix encoded once: its keys and values serve every batch, item and label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from quilate.models.tuning.virtual import VirtualTokens


class _FrozenLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers is not followed
    """One layer's prefix: `update` returns prefix + new and keeps nothing, so every batch sees the same prefix."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values, self.is_initialized = keys, values, True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise RuntimeError("a frozen prefix is complete when it is made")

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        batch = key_states.shape[0]
        keys, values = self.keys.expand(batch, -1, -1, -1), self.values.expand(batch, -1, -1, -1)
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return int(self.keys.shape[-2])

    def get_max_length(self) -> int:
        return -1


class Prefix:
    """What opens every prompt: a model's learned tokens, if it has any, and the tokens that all prompts begin with.

    Attributes:
        length: their number.
        layers: their keys and values [1, K, P, E] in each layer; empty for an empty prefix.
    """

    def __init__(
        self, body: nn.Module, tokens: Sequence[int], device: torch.device, *, virtual: VirtualTokens | None = None
    ) -> None:
        self.length = len(tokens) + (virtual.length if virtual else 0)
        self.layers: list[tuple[Tensor, Tensor]] = []
        cache = virtual.cache(1) if virtual else DynamicCache()
        if tokens:
            body(input_ids=torch.tensor([tokens], device=device), past_key_values=cache, use_cache=True)
        if self.length:
            self.layers = [(layer.keys, layer.values) for layer in cache.layers]

    def cache(self) -> Cache | None:
        """To be handed to the model as `past_key_values`."""
        return Cache(layers=[_FrozenLayer(*layer) for layer in self.layers]) if self.layers else None
