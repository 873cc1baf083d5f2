"""The loss of a classifier of whole texts that may have several labels.

Shapes: N texts in a batch, L labels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from quilate.data.packing import PackedBatch
from quilate.models.encoder import DocumentEncoder


class LabelSetLoss:
    """Callable `(batch) -> sum over texts of the labels' mean binary cross-entropy`, fp32, one sigmoid a label.

    Args:
        model: a classifier of texts, adapted or not; each text is read at its one supervised position.
        targets: [L] of zeros and ones by the example's id.
    """

    def __init__(self, model: PreTrainedModel, targets: Mapping[str, Tensor]) -> None:
        self.encoder = DocumentEncoder(model)
        self.targets = targets

    def __call__(self, batch: PackedBatch) -> Tensor:
        batch = batch.to(self.encoder.device)
        head = self.encoder.divided.head
        hidden = self.encoder(batch.input_ids, batch.position_ids, batch.lengths)[batch.source_positions]
        bias = None if head.bias is None else head.bias.float()
        logits = F.linear(hidden.float(), head.weight.float(), bias)
        wanted = torch.stack([self.targets[name] for name in batch.ids]).to(logits)
        return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(-1).sum()
