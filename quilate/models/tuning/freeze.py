"""Freezing: only the last layers of a model learn; the layers below them, the embeddings and the head stay."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from quilate.errors import ModelError


def train_last_layers(model: PreTrainedModel, count: int) -> PreTrainedModel:
    """Freeze everything but the last `count` layers and the norm after them.

    The embeddings stay frozen also where they are tied to the head. No gradient is computed below the first layer that
    learns.

    Raises:
        ModelError: the model has no list of layers, or fewer than `count`.
    """
    body = model.base_model
    lists = [module for module in body.modules() if isinstance(module, nn.ModuleList)]
    layers = max(lists, key=len, default=None)
    if layers is None or len(layers) < count:
        raise ModelError(
            f"the last {count} layers are to be trained, and {type(model).__name__} has {len(layers or [])}",
            hint="lower `last_layers`",
        )
    model.requires_grad_(False)
    for layer in layers[-count:]:
        layer.requires_grad_(True)
    for module in body.children():  # the norm after the last layer
        if type(module).__name__.endswith("Norm"):
            module.requires_grad_(True)
    return model
