"""The next-token loss of a causal model on packed documents."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from quilate.data.packing import PackedBatch
from quilate.models.attention import PACKED_ATTENTION, DocumentLayout
from quilate.models.heads import divide
from quilate.objectives.cross_entropy import linear_cross_entropy_sum


class NextTokenLoss:
    """Callable `(batch) -> sum of -log p(target)` in fp32, with logits only where there is a target.

    Args:
        model: a causal model, adapted or not; its attention is switched to the packed one.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.divided = divide(model)
        inner = model.get_base_model() if hasattr(model, "peft_config") else model
        inner.set_attn_implementation(PACKED_ATTENTION)

    def __call__(self, batch: PackedBatch) -> Tensor:
        body, head = self.divided.body, self.divided.head
        batch = batch.to(head.weight.device)
        hidden = body(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            use_cache=False,
            document_layout=DocumentLayout.of(batch.lengths, head.weight.device),
        ).last_hidden_state[0]
        return linear_cross_entropy_sum(hidden[batch.source_positions], head.weight, head.bias, batch.targets)
