"""Attention for generation: prompts are read packed, then one token a sequence attends to that sequence's cache.

Registered with `transformers` as `quilate_cached`. The keys and values live in a `KeyValueStore` that is handed through
the model's forward as a keyword, as the documents' layout is; no cache of transformers' takes part.

Shapes: B sequences in a step, K key heads, E head size, T packed tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from quilate.kernels.operations import operation
from quilate.models.attention import (
    DocumentLayout,
    packed_attention,
    refuse_beyond_window,
    use_packed_attention,
)

CACHED_ATTENTION = "quilate_cached"


class KeyValueStore:
    """Keys and values of many sequences, each in a slot of its own: [slots, K, places, E] a layer.

    Before a forward pass say what it computes: `reading` for packed prompts, `writing` for one token a sequence.

    Attributes:
        lengths: [slots] int64, tokens cached in each slot.
    """

    def __init__(self, slots: int, places: int) -> None:
        self.slots, self.places = slots, places
        self.lengths = torch.zeros(slots, dtype=torch.int64)
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self._active = torch.empty(0, dtype=torch.int64)
        self._targets: tuple[Tensor, Tensor, Tensor] | None = None

    def reading(self, lengths: list[int], slots: list[list[int]]) -> None:
        """The next pass reads packed prompts; prompt i goes to every slot of `slots[i]`."""
        start, sources, rows, columns = 0, [], [], []
        for length, wanted in zip(lengths, slots, strict=True):
            for slot in wanted:
                sources.append(torch.arange(start, start + length))
                rows.append(torch.full((length,), slot))
                columns.append(torch.arange(length))
                self.lengths[slot] = length
            start += length
        self._targets = torch.cat(sources), torch.cat(rows), torch.cat(columns)

    def writing(self, slots: Tensor) -> None:
        """The next pass computes one token for each of these slots [B]; `advance` counts it."""
        self._active, self._targets = slots, None

    def advance(self) -> None:
        self.lengths[self._active] += 1

    def keep(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Store what a pass over packed prompts computed: key, value [1, K, T, E]."""
        if layer not in self._keys:
            shape = self.slots, key.shape[1], self.places, key.shape[3]
            self._keys[layer], self._values[layer] = (t.new_zeros(shape) for t in (key, value))
        assert self._targets is not None
        sources, rows, columns = (t.to(key.device) for t in self._targets)
        self._keys[layer][rows, :, columns] = key[0].transpose(0, 1)[sources]
        self._values[layer][rows, :, columns] = value[0].transpose(0, 1)[sources]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Store one token a sequence and attend: query [B, H, 1, E]; key, value [B, K, 1, E] -> [B, H, E]."""
        keys, values, slots = self._keys[layer], self._values[layer], self._active
        rows = [t[:, :, 0].contiguous() for t in (query, key, value)]
        lengths = self.lengths[slots]
        size = query.shape[-1]
        fused = operation("decode_attention") if query.device.type == "cpu" and query.dtype == torch.bfloat16 else None
        if fused is not None and size % 32 == 0 and size <= 256:
            out = torch.empty_like(rows[0])
            fused(out, *rows, keys, values, slots, lengths, scale)
            return out
        return _attend(rows, keys, values, slots.to(query.device), lengths.to(query.device), scale)


def _attend(rows: list[Tensor], keys: Tensor, values: Tensor, slots: Tensor, lengths: Tensor, scale: float) -> Tensor:
    """`KeyValueStore.attend` in torch: each group of query heads is a row of queries for its key head."""
    query, key, value = rows
    keys[slots, :, lengths], values[slots, :, lengths] = key, value
    longest = int(lengths.max()) + 1
    seen_keys, seen_values = (t[slots, :, :longest] for t in (keys, values))
    visible = torch.arange(longest, device=query.device) <= lengths[:, None]
    grouped = query.view(query.shape[0], key.shape[1], -1, query.shape[-1])
    out = F.scaled_dot_product_attention(grouped, seen_keys, seen_values, attn_mask=visible[:, None, None], scale=scale)
    return out.reshape(query.shape)


def cached_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    key_value_store: KeyValueStore | None = None,
    document_layout: DocumentLayout | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention function given to `transformers`: a pass with a layout reads packed prompts, one without writes.

    Raises:
        ValueError: no store was passed, or a mask was.
        ModelError: the model's sliding window is shorter than the cache.
    """
    if key_value_store is None or attention_mask is not None:
        raise ValueError("cached attention needs a key_value_store and no attention mask")
    refuse_beyond_window(key_value_store.places, sliding_window, hint="shorten the prompts, or generate fewer tokens")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    if document_layout is None:
        return key_value_store.attend(layer, query, key, value, scale)[:, None], None
    key_value_store.keep(layer, key, value)
    return packed_attention(module, query, key, value, None, scaling=scale, document_layout=document_layout)


def use_cached_attention(model: PreTrainedModel) -> bool:
    """Switch `model` to cached attention; False, with nothing changed, if its architecture does not let it."""
    if not use_packed_attention(model):  # what obeys the layout obeys the store: both are handed through alike
        return False
    model.set_attn_implementation(CACHED_ATTENTION)
    return True


def _no_mask(*_: Any, **__: Any) -> None:
    """The store knows each sequence's length."""


AttentionInterface.register(CACHED_ATTENTION, cached_attention)
AttentionMaskInterface.register(CACHED_ATTENTION, _no_mask)
