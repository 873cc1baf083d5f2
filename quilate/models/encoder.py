"""Hidden states of documents that stand side by side in one row, none of them seeing another, for any architecture.

Shapes: T tokens in the row, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from quilate.kernels.rows import filled_rows
from quilate.models.attention import DocumentLayout, use_packed_attention
from quilate.models.heads import Divided, divide


class DocumentEncoder:
    """Callable `(input_ids [1, T], position_ids [1, T], lengths, places) -> hidden states [T, D]`; `places` as of a
    `PackedBatch`, for documents that share tokens.

    Args:
        model: a causal or masked model, adapted or not. Its attention is switched to the packed one where its
            architecture allows it; where it does not (Falcon), and where learned tokens stand before every document,
            each document becomes a row of its own, padded among similar lengths.
        divided: its body and head, where they are not a language model's.
    """

    def __init__(self, model: PreTrainedModel, divided: Divided | None = None) -> None:
        self.divided = divided or divide(model, virtual_tokens=True)
        inner = model.get_base_model() if hasattr(model, "peft_config") else model
        self.packed = self.divided.virtual is None and use_packed_attention(inner)

    @property
    def device(self) -> torch.device:
        return self.divided.head.weight.device

    def __call__(
        self, input_ids: Tensor, position_ids: Tensor, lengths: Sequence[int], places: Tensor | None = None
    ) -> Tensor:
        layout = DocumentLayout.of(lengths, self.device, places)
        if self.packed:
            return self._packed_hidden(input_ids, position_ids, layout)
        if layout.shared is None:
            return self._padded_hidden(input_ids, layout)
        return self._padded_hidden(input_ids[:, layout.shared.places], layout)[layout.shared.firsts]

    def _packed_hidden(self, input_ids: Tensor, position_ids: Tensor, layout: DocumentLayout) -> Tensor:
        tokens = input_ids.shape[1]
        fill = filled_rows(tokens, self.divided.head.weight) - tokens
        if fill:  # one more document, which nobody asks for
            layout = layout.and_one_of(fill)
            input_ids = functional.pad(input_ids, (0, fill))
            position_ids = functional.pad(position_ids, (0, fill))
        output = self.divided.body(
            input_ids=input_ids,
            position_ids=position_ids + self.divided.first_position,
            use_cache=False,
            document_layout=layout,
        )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden[:tokens]

    def _padded_hidden(self, input_ids: Tensor, layout: DocumentLayout) -> Tensor:
        """Padding stands at the right and is masked, for masked models look there too."""
        parts = []
        for group in layout.groups:
            shape = group.documents, group.longest
            tokens = input_ids[0, group.start : group.stop]
            rows = (tokens if group.slots is None else tokens[group.slots]).view(shape)
            mask = None if group.padding is None else (~group.padding).long().view(shape)
            output = self._body(rows, mask)
            hidden = output.last_hidden_state.flatten(0, 1)
            parts.append(hidden if group.cells is None else hidden[group.cells])
        return torch.cat(parts)

    def _body(self, rows: Tensor, mask: Tensor | None) -> Any:
        """The body's output for rows of tokens, which see the learned tokens first, if there are any."""
        virtual = self.divided.virtual
        if virtual is None:
            return self.divided.body(input_ids=rows, attention_mask=mask, use_cache=False)
        if mask is not None:
            mask = functional.pad(mask, (virtual.length, 0), value=1)
        return self.divided.body(input_ids=rows, attention_mask=mask, past_key_values=virtual.cache(rows.shape[0]))
