"""Freezing: only the last layers of a model learn; the layers below them, the embeddings and the head stay."""

from __future__ import annotations

from transformers import PreTrainedModel

from quilate.errors import ModelError
from quilate.models.tuning.layers import layers_of


def train_last_layers(model: PreTrainedModel, count: int) -> PreTrainedModel:
    """Freeze everything but the last `count` layers and the norm after them.

    The embeddings stay frozen also where they are tied to the head. No gradient is computed below the first layer that
    learns.

    Raises:
        ModelError: the model has no list of layers, or fewer than `count`.
    """
    layers = layers_of(model, wanted=f"the last {count} are to be trained")
    if len(layers) < count:
        raise ModelError(
            f"the last {count} layers are to be trained, and {type(model).__name__} has {len(layers)}",
            hint="lower `last_layers`",
        )
    model.requires_grad_(False)
    for layer in layers[-count:]:
        layer.requires_grad_(True)
    for module in model.base_model.children():  # the norm after the last layer
        if type(module).__name__.endswith("Norm"):
            module.requires_grad_(True)
    return model
