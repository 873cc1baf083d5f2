"""The loss of a language model on packed documents: next tokens for a causal model, masked ones for a masked model."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from quilate.data.packing import PackedBatch
from quilate.models.encoder import DocumentEncoder
from quilate.objectives.cross_entropy import linear_cross_entropy_sum


class LanguageModellingLoss:
    """Callable `(batch) -> sum of -log p(target)` in fp32, with logits only where there is a target.

    Args:
        model: a causal or masked model, adapted or not; see `DocumentEncoder` for what becomes of its attention.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.encoder = DocumentEncoder(model)

    def __call__(self, batch: PackedBatch) -> Tensor:
        divided = self.encoder.divided
        batch = batch.to(self.encoder.device)
        hidden = self.encoder(batch.input_ids, batch.position_ids, batch.lengths)
        predicting = divided.transform(hidden[batch.source_positions])
        return linear_cross_entropy_sum(predicting, divided.head.weight, divided.head.bias, batch.targets)
