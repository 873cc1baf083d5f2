"""The loss of a language model on packed documents: next tokens for a causal model, masked ones for a masked model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from quilate.data.packing import PackedBatch
from quilate.kernels.operations import plain_operations
from quilate.models.encoder import DocumentEncoder
from quilate.objectives.cross_entropy import cross_entropy_sum, linear_cross_entropy_sum, sample_targets
from quilate.optim.master import MasterOptimizer
from quilate.optim.rounding import draw_key
from quilate.optim.sophia import SophiaG, SophiaH


class LanguageModellingLoss:
    """Callable `(batch) -> sum of -log p(target)` in fp32, with logits only where there is a target.

    Args:
        model: a causal or masked model, adapted or not; see `DocumentEncoder` for what becomes of its attention.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.encoder = DocumentEncoder(model)

    def __call__(self, batch: PackedBatch) -> Tensor:
        batch = batch.to(self.encoder.device)
        return linear_cross_entropy_sum(*self._predictions(batch), batch.targets)

    def to_probe(self, optimizer: MasterOptimizer) -> Callable[[PackedBatch], Tensor] | None:
        """The loss in which the optimizer's estimator looks for curvature; None for an optimizer without one."""
        match optimizer:
            case SophiaG():
                return partial(self.of_sampled_targets, stream=optimizer.estimates)
            case SophiaH():
                return self.twice_differentiable
        return None

    def of_sampled_targets(self, batch: PackedBatch, stream: torch.Generator) -> Tensor:
        """The loss, were the targets what the model itself predicts: drawn from its softmax at every position.

        For the Gauss-Newton-Bartlett estimate of curvature. The draws depend on the division into micro-batches.
        """
        batch = batch.to(self.encoder.device)
        predictions = self._predictions(batch)
        generator = torch.Generator(self.encoder.device).manual_seed(draw_key(stream))
        return linear_cross_entropy_sum(*predictions, sample_targets(*predictions, generator))

    def twice_differentiable(self, batch: PackedBatch) -> Tensor:
        """The loss by operations whose gradients have gradients; it holds the logits of all targets at once."""
        batch = batch.to(self.encoder.device)
        with plain_operations(), sdpa_kernel(SDPBackend.MATH):
            return cross_entropy_sum(F.linear(*self._predictions(batch)), batch.targets)

    def _predictions(self, batch: PackedBatch) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the logits of the targets are the product of: hidden states [S, D], the head's weight and bias."""
        divided = self.encoder.divided
        hidden = self.encoder(batch.input_ids, batch.position_ids, batch.lengths)
        return divided.transform(hidden[batch.source_positions]), divided.head.weight, divided.head.bias
