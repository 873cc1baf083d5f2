"""Attention for scoring a tree of labels after many prompts, fused: what is shared is read where it is.

Registered with `transformers` as `quilate_tree`. Every row of tokens sees a prefix that all rows share and, of its own
tokens, those that a mask names; prefix and mask are handed through the model's forward as a keyword. Where the fused
operation is missing the same is done with transformers' cache and a dense mask (`quilate.inference.likelihood`).

Shapes: B rows, T tokens of a row, H heads, K key heads, E head size, P tokens of the prefix, W = ceil(T / 64) words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from quilate.kernels.attention import is_fused
from quilate.models.attention import refuse_beyond_window

TREE_ATTENTION = "quilate_tree"

KeysAndValues = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class TreeLayout:
    """What each token sees.

    Attributes:
        visible: [B, T, W] int64: bit n of word w stands for token 64 w + n of the row.
        prefix: keys and values [1, K, P, E] of each layer; empty where nothing is shared.
    """

    visible: Tensor
    prefix: Sequence[KeysAndValues]

    @classmethod
    def of(cls, sees: Tensor, prefix: Sequence[KeysAndValues]) -> TreeLayout:
        """From a mask [B, T, T], bool; every token must see itself."""
        words = F.pad(sees, (0, -sees.shape[-1] % 64)).view(*sees.shape[:-1], -1, 64)
        powers = torch.tensor([1 << n for n in range(63)] + [-(1 << 63)], dtype=torch.int64)
        return cls((words * powers).sum(-1), prefix)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    tree_layout: TreeLayout | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention function given to `transformers`: query [B, H, T, E], key and value [B, K, T, E] -> [B, T, H, E].

    Raises:
        ValueError: no layout was passed, or a mask was.
        ModelError: the model's sliding window is shorter than what a token sees.
    """
    if tree_layout is None or attention_mask is not None:
        raise ValueError("tree attention needs a tree_layout and no attention mask")
    nothing = key[:1, :, :0]
    shared = tree_layout.prefix[int(module.layer_idx)] if tree_layout.prefix else (nothing, nothing)  # type: ignore[arg-type]
    seen = shared[0].shape[2] + key.shape[2]
    refuse_beyond_window(seen, sliding_window, hint="use fewer or shorter demonstrations")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    rows = [t if t.stride(-1) == 1 else t.contiguous() for t in (query, key, value, *shared)]
    out = torch.empty(query.shape[0], query.shape[2], query.shape[1], query.shape[3], dtype=query.dtype)
    torch.ops.quilate.tree_attention(out, *rows, tree_layout.visible, scale)
    return out, None


@contextmanager
def tree_attention(model: PreTrainedModel) -> Iterator[bool]:
    """Switch `model` to the fused tree attention and back; False, with nothing changed, where that cannot be.

    Tried on two rows that differ in a token which the mask hides: if what must not see it changes by one bit, the
    architecture does not ask the registry for its attention.
    """
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    before = inner.config._attn_implementation
    try:
        yield _is_possible(inner)
    finally:
        inner.set_attn_implementation(before)


def _is_possible(model: PreTrainedModel) -> bool:
    config = model.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    like_a_query = torch.empty(1, 1, size, dtype=model.dtype, device=model.get_input_embeddings().weight.device)
    if not is_fused(like_a_query):
        return False
    model.set_attn_implementation(TREE_ATTENTION)
    return config._attn_implementation == TREE_ATTENTION and _obeys(model)


def _obeys(model: PreTrainedModel) -> bool:
    layout = TreeLayout.of(torch.tensor([[[1, 0, 0], [0, 1, 0], [0, 1, 1]]], dtype=torch.bool), ())
    positions = torch.tensor([[0, 0, 1]])
    first, second = (
        model.base_model(
            input_ids=torch.tensor([[token, 1, 2]]), position_ids=positions, use_cache=False, tree_layout=layout
        )
        for token in (3, 4)
    )
    return torch.equal(first.last_hidden_state[:, 1:], second.last_hidden_state[:, 1:])


def _no_mask(*_: Any, **__: Any) -> None:
    """The layout says what is seen."""


AttentionInterface.register(TREE_ATTENTION, _attend)
AttentionMaskInterface.register(TREE_ATTENTION, _no_mask)
