"""The loss of a language model on packed documents: next tokens for a causal model, masked ones for a masked model."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from quilate.data.packing import PackedBatch
from quilate.models.attention import DocumentLayout, use_packed_attention
from quilate.models.heads import divide
from quilate.objectives.cross_entropy import linear_cross_entropy_sum


class LanguageModellingLoss:
    """Callable `(batch) -> sum of -log p(target)` in fp32, with logits only where there is a target.

    Args:
        model: a causal or masked model, adapted or not. Its attention is switched to the packed one where its
            architecture allows it; where it does not (Falcon), each document becomes a row of its own, padded among
            similar lengths.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.divided = divide(model)
        inner = model.get_base_model() if hasattr(model, "peft_config") else model
        self.packed = use_packed_attention(inner)

    def __call__(self, batch: PackedBatch) -> Tensor:
        head = self.divided.head
        batch = batch.to(head.weight.device)
        layout = DocumentLayout.of(batch.lengths, head.weight.device)
        hidden = self._packed_hidden(batch, layout) if self.packed else self._padded_hidden(batch, layout)
        predicting = self.divided.transform(hidden[batch.source_positions])
        return linear_cross_entropy_sum(predicting, head.weight, head.bias, batch.targets)

    def _packed_hidden(self, batch: PackedBatch, layout: DocumentLayout) -> Tensor:
        """[T, D], the documents side by side in one row."""
        output = self.divided.body(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids + self.divided.first_position,
            use_cache=False,
            document_layout=layout,
        )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def _padded_hidden(self, batch: PackedBatch, layout: DocumentLayout) -> Tensor:
        """[T, D], each document in a row. Padding stands at the right and is masked, for masked models look there
        too."""
        parts = []
        for group in layout.groups:
            shape = group.documents, group.longest
            tokens = batch.input_ids[0, group.start : group.stop]
            rows = (tokens if group.slots is None else tokens[group.slots]).view(shape)
            mask = None if group.padding is None else (~group.padding).long().view(shape)
            hidden = self.divided.body(input_ids=rows, attention_mask=mask, use_cache=False).last_hidden_state.flatten(
                0, 1
            )
            parts.append(hidden if group.cells is None else hidden[group.cells])
        return torch.cat(parts)
