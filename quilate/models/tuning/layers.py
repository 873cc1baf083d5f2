"""The layers of a model, and a learning rate for each."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from quilate.errors import ModelError


def layers_of(model: PreTrainedModel, *, wanted: str) -> nn.ModuleList:
    """The layers of a model's body, first to last.

    Args:
        wanted: what they are wanted for, to be said if there are none.

    Raises:
        ModelError: the model has no list of layers.
    """
    lists = [module for module in model.base_model.modules() if isinstance(module, nn.ModuleList)]
    layers = max(lists, key=len, default=None)
    if layers is None:
        raise ModelError(f"{type(model).__name__} has no list of layers, and {wanted}", hint="train it in full")
    return layers


def layerwise_rates(model: PreTrainedModel, decay: float) -> dict[str, float]:
    """What each trained parameter's learning rate is multiplied by: less the nearer it is to the input.

    With L layers, layer i (from 0) gets decay^(L - i), the embeddings decay^(L + 1), and what follows the last layer
    the whole rate (Howard & Ruder 2018, section 3.2; the exponents are those of Bao et al. 2022, BEiT's code). A head
    tied to the embeddings is the embeddings.

    Raises:
        ModelError: the model has no list of layers.
    """
    layers = layers_of(model, wanted="its learning rate is to fall by layer")
    place = {id(p): number for number, layer in enumerate(layers) for p in layer.parameters()}
    embedded = {id(p) for m in model.base_model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    below = _before(layers, model)
    rates = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in embedded or id(parameter) in below:
            exponent = len(layers) + 1
        else:
            exponent = len(layers) - place.get(id(parameter), len(layers))
        rates[name] = decay**exponent
    return rates


def _before(layers: nn.ModuleList, model: PreTrainedModel) -> set[int]:
    """The parameters of modules beside the layers that have "embed" in their name: a norm over embeddings, say."""
    inside = {id(p) for p in layers.parameters()}
    named = model.base_model.named_parameters()
    return {id(p) for name, p in named if "embed" in name and id(p) not in inside}
