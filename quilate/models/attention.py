"""Attention over packed documents: each document attends to itself alone, in memory linear in length, on any device.

Registered with `transformers` under the public name `quilate_packed`, with a mask function of its own: an attention
registered without one gets no mask and silently loses causality; here the layout of the documents takes the mask's
place, and a call without it is an error, never a leak.

Shapes: B batch (1 when packed), T tokens, H heads, K key heads, E head size, G documents in a group, L longest of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from quilate.errors import ModelError
from quilate.kernels import attention as fused

PACKED_ATTENTION = "quilate_packed"

# Documents share a group while the shortest has at least this share of the longest's tokens: the padding that a group
# computes in vain stays under a quarter of attention, itself a small share of a step (guess).
SHORTEST_SHARE = 0.75


@dataclass(frozen=True)
class Group:
    """Neighbouring documents of similar length, seen as a padded [G, L] grid.

    `slots` [G*L] is the packed position that fills each grid cell (padding repeats the document's last token);
    `cells` [tokens of the group] is the grid cell of each packed token; `padding` [G*L] marks the cells that repeat.
    """

    start: int
    stop: int
    documents: int
    longest: int
    slots: Tensor | None
    cells: Tensor | None
    padding: Tensor | None


@dataclass(frozen=True)
class SharedTokens:
    """A row of T tokens in which documents of D tokens in all share some: each document sees the shared ones as its
    own, and what is computed of a token by itself (all but attention) is computed once.

    Attributes:
        places: [D] where in the row each token of each document stands.
        firsts: [T] of each token of the row, its first place among the documents' tokens.
        repeats: of the second and every further document that has it: tokens of the row, and places of theirs.
    """

    places: Tensor
    firsts: Tensor
    repeats: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def of(cls, places: Tensor) -> SharedTokens:
        order = places.cpu().argsort(stable=True)
        token = places.cpu()[order]
        counts = token.bincount()
        starts = counts.cumsum(0) - counts
        nth = torch.arange(len(token)) - starts[token]  # which of its documents this is
        parts = [(token[nth == n], order[nth == n]) for n in range(int(counts.max()))]
        (_, firsts), *repeats = [(a.to(places.device), b.to(places.device)) for a, b in parts]
        return cls(places, firsts, tuple(repeats))


class _Repeat(torch.autograd.Function):
    """Rows of tokens [T, ...] for every document that has them [D, ...]; the gradients of one token are summed, in fp32
    and always in the same order."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, shared: SharedTokens) -> Tensor:
        ctx.shared = shared
        return rows.index_select(0, shared.places)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        shared: SharedTokens = ctx.shared
        total = grads[0].index_select(0, shared.firsts)
        if shared.repeats:
            several = shared.repeats[0][0]  # whoever has a third place has a second
            summed = torch.zeros(total.shape, dtype=torch.float32, device=total.device)
            summed[several] = total[several].float()
            for tokens, places in shared.repeats:
                summed[tokens] += grads[0][places].float()
            total[several] = summed[several].to(total.dtype)
        return total, None


class _First(torch.autograd.Function):
    """What was computed for documents' tokens [D, ...], once a token of the row [T, ...]: it is equal in all."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, shared: SharedTokens) -> Tensor:
        ctx.shared = shared
        return rows.index_select(0, shared.firsts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        shared: SharedTokens = ctx.shared
        rows = grads[0].new_zeros(shared.places.shape[0], *grads[0].shape[1:])
        rows[shared.firsts] = grads[0]
        return rows, None


@dataclass(frozen=True)
class DocumentLayout:
    """Where the documents of a packed row are; computed once a batch and used by every layer.

    Attributes:
        lengths: of the documents, in order.
        shared: where documents share tokens of the row.
    """

    lengths: tuple[int, ...]
    device: torch.device | str = "cpu"
    shared: SharedTokens | None = None

    @classmethod
    def of(
        cls, lengths: Sequence[int], device: torch.device | str = "cpu", places: Tensor | None = None
    ) -> DocumentLayout:
        """Args:
        places: [sum of lengths], where in the row each token of each document stands, if some share tokens.
        """
        return cls(tuple(lengths), device, None if places is None else SharedTokens.of(places))

    def and_one_of(self, tokens: int) -> DocumentLayout:
        """This layout with one more document, which shares no tokens, at the end of the row."""
        if self.shared is None:
            return DocumentLayout((*self.lengths, tokens), self.device)
        end = len(self.shared.firsts)
        places = torch.cat([self.shared.places, torch.arange(end, end + tokens, device=self.shared.places.device)])
        return DocumentLayout.of((*self.lengths, tokens), self.device, places)

    @cached_property
    def longest(self) -> int:
        return max(self.lengths)

    @cached_property
    def starts(self) -> Tensor:
        """[documents + 1] int64, on the CPU: where each document begins, and the number of tokens."""
        return torch.tensor([0, *self.lengths]).cumsum(0)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Neighbours of similar length as grids, for where attention is not fused."""
        groups: list[Group] = []
        start = first = 0
        for index in range(len(self.lengths) + 1):
            if index < len(self.lengths) and index > first:
                grown = self.lengths[first : index + 1]
                if min(grown) >= SHORTEST_SHARE * max(grown):
                    continue
            if index > first:
                groups.append(_group(start, self.lengths[first:index], self.device))
                start, first = groups[-1].stop, index
        return tuple(groups)


def _group(start: int, lengths: Sequence[int], device: torch.device | str) -> Group:
    size, longest, total = len(lengths), max(lengths), sum(lengths)
    if min(lengths) == longest:
        return Group(start, start + total, size, longest, None, None, None)
    document_lengths = torch.tensor(lengths)
    starts = document_lengths.cumsum(0) - document_lengths
    column = torch.arange(longest)
    padding = column >= document_lengths[:, None]
    slots = starts[:, None] + torch.minimum(column, document_lengths[:, None] - 1)
    cells = (~padding).view(-1).nonzero().view(-1)
    on_device = [t.to(device) for t in (slots.view(-1), cells, padding.view(-1))]
    return Group(start, start + total, size, longest, *on_device)


class _Spread(torch.autograd.Function):
    """Packed rows to grid cells. A permutation apart from padding, so its backward is a gather, not a scatter-add."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, slots: Tensor, cells: Tensor) -> Tensor:
        ctx.save_for_backward(cells)
        return rows.index_select(0, slots)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (cells,) = ctx.saved_tensors
        # A padded cell's output is never read and causality hides its key from real queries: its gradient is zero.
        return grads[0].index_select(0, cells), None, None


class _Collect(torch.autograd.Function):
    """Grid cells back to packed rows; padded cells receive a zero gradient."""

    @staticmethod
    def forward(ctx: Any, grid: Tensor, slots: Tensor, cells: Tensor, padding: Tensor) -> Tensor:
        ctx.save_for_backward(slots, padding)
        return grid.index_select(0, cells)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        slots, padding = ctx.saved_tensors
        return grads[0].index_select(0, slots).masked_fill_(padding[:, None, None], 0), None, None, None


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    document_layout: DocumentLayout | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention function given to `transformers`: query [1, H, T, E], key and value [1, K, T, E] -> [1, T, H, E].

    Raises:
        ValueError: no layout was passed, or a mask was.
        ModelError: the model's sliding window is shorter than a document.
    """
    if document_layout is None or attention_mask is not None or query.shape[0] != 1:
        raise ValueError("packed attention needs one packed row, its document_layout, and no attention mask")
    refuse_beyond_window(
        document_layout.longest,
        sliding_window,
        hint="cut documents to it: `max_item_tokens` in fine-tuning, else `length`",
    )
    causal = bool(getattr(module, "is_causal", True))
    packed = [t[0].transpose(0, 1) for t in (query, key, value)]  # [T, heads, E]
    shared = document_layout.shared
    if shared is not None:
        packed = [_Repeat.apply(t, shared) for t in packed]  # type: ignore[no-untyped-call]
    if dropout == 0 and fused.is_fused(packed[0]):
        scale = packed[0].shape[-1] ** -0.5 if scaling is None else scaling
        query, key, value = packed
        output = fused.packed_attention(query, key, value, document_layout.starts, scale=scale, causal=causal)
    else:
        outputs = [_group_attention(group, packed, causal, scaling, dropout) for group in document_layout.groups]
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    if shared is not None:
        output = _First.apply(output, shared)  # type: ignore[no-untyped-call]
    return output[None], None


def refuse_beyond_window(tokens: int, window: int | None, *, hint: str) -> None:
    """Attention here sees whole documents: it equals a sliding window's only if none is longer than the window.

    Raises:
        ModelError: one may be.
    """
    if window is not None and window < tokens:
        raise ModelError(f"{tokens} tokens in one document, and the model's sliding window is {window}", hint=hint)


def _group_attention(group: Group, packed: list[Tensor], causal: bool, scaling: float | None, dropout: float) -> Tensor:
    rows = [t[group.start : group.stop] for t in packed]
    key_mask = None
    if group.slots is not None and group.cells is not None and group.padding is not None:
        rows = [_Spread.apply(t, group.slots, group.cells) for t in rows]  # type: ignore[no-untyped-call]
        if not causal:
            key_mask = ~group.padding.view(group.documents, 1, 1, group.longest)
    query, key, value = (t.reshape(group.documents, group.longest, -1, t.shape[-1]).transpose(1, 2) for t in rows)
    if key.shape[1] != query.shape[1]:
        repeats = query.shape[1] // key.shape[1]
        key, value = (t.repeat_interleave(repeats, dim=1) for t in (key, value))
    grid = F.scaled_dot_product_attention(
        query, key, value, attn_mask=key_mask, dropout_p=dropout, is_causal=causal, scale=scaling
    )
    grid = grid.transpose(1, 2).reshape(group.documents * group.longest, -1, query.shape[-1])
    if group.cells is None:
        return grid
    collected: Tensor = _Collect.apply(grid, group.slots, group.cells, group.padding)  # type: ignore[no-untyped-call]
    return collected


@torch.no_grad()
def use_packed_attention(model: PreTrainedModel) -> bool:
    """Switch `model` to packed attention; False, with nothing changed, if its architecture does not let it.

    Some architectures (Falcon, Bloom, MPT) do not ask transformers' registry for their attention: they accept the name,
    ignore the layout and let documents see one another. So the switch is tried on two packed rows that differ in their
    first document alone: if the second document's hidden states differ by one bit, it saw the first.
    """
    attention, training = model.config._attn_implementation, model.training
    model.set_attn_implementation(PACKED_ATTENTION)
    model.eval()
    try:
        if model.config._attn_implementation == PACKED_ATTENTION and _confined(model):
            return True
    finally:
        model.train(training)
    model.set_attn_implementation(attention)
    return False


def _confined(model: PreTrainedModel) -> bool:
    device = model.get_input_embeddings().weight.device
    layout = DocumentLayout.of((2, 3), device)
    rows = torch.tensor([[0, 1, 2, 3, 4], [5, 6, 2, 3, 4]], device=device) % model.config.vocab_size
    positions = torch.tensor([[0, 1, 0, 1, 2]], device=device)
    one, other = (
        model.base_model(input_ids=row[None], position_ids=positions, use_cache=False, document_layout=layout)
        for row in rows
    )
    return torch.equal(one.last_hidden_state[:, 2:], other.last_hidden_state[:, 2:])


def _no_mask(*_: Any, **__: Any) -> None:
    """The layout confines attention; building a mask here would cost memory quadratic in length."""


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
AttentionMaskInterface.register(PACKED_ATTENTION, _no_mask)
