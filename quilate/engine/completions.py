"""Log-probabilities of whole completions under a causal model, many of them packed in a row."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from quilate import faults
from quilate.data.preference_batches import PreferenceBatch
from quilate.models.encoder import DocumentEncoder
from quilate.objectives.cross_entropy import linear_token_log_probs


class CompletionLogProbs:
    """Callable `(batch) -> [N]`, log p(completion | prompt) of every document: its tokens' sum, the end's included."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.encoder = DocumentEncoder(model)

    @property
    def head(self) -> tuple[Tensor, Tensor | None]:
        return self.encoder.divided.head.weight, self.encoder.divided.head.bias

    def predicting(self, batch: PreferenceBatch) -> Tensor:
        """[S, D] hidden states, each of the position that predicts a completion's token."""
        packed = batch.packed.to(self.encoder.device)
        hidden = self.encoder(packed.input_ids, packed.position_ids, packed.lengths)
        return self.encoder.divided.transform(hidden[packed.source_positions])

    def __call__(self, batch: PreferenceBatch) -> Tensor:
        targets = batch.packed.targets.to(self.encoder.device)
        return batch.sum_by_document(linear_token_log_probs(self.predicting(batch), *self.head, targets))


@torch.no_grad()
def by_document(
    function: Callable[[PreferenceBatch], Tensor],
    model: nn.Module,
    batches: Iterable[PreferenceBatch],
    check_stop: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """What `function` gives for every document, by the document's id; `model` is in evaluation mode meanwhile."""
    training = model.training
    model.eval()
    values: dict[str, float] = {}
    try:
        for batch in batches:
            faults.at("evaluate.batch")
            check_stop()
            values |= dict(zip(batch.ids, function(batch).double().tolist(), strict=True))
    finally:
        model.train(training)
    return values


class WithoutDropout(nn.Module):
    """A model that stays in evaluation mode when told to train.

    With dropout a policy differs from its own reference before the first update: the first log-ratios would not be 0
    and the first ratios not 1 (Huang et al. 2024).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.train()

    def train(self, mode: bool = True) -> WithoutDropout:
        return super().train(False)
