"""Where a language model divides into a body (hidden states) and an output head (logits).

Dividing it lets a loss or a score multiply the head only at the positions that count. Some architectures do more after
the head (Gemma 2 caps logits, Cohere scales them); the division is therefore checked on a probe, never assumed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from quilate.errors import ModelError
from quilate.models.tuning.virtual import VirtualTokens, virtual_tokens_of

COUNTS_FROM_PADDING = ("roberta", "xlm-roberta", "camembert", "longformer")


@dataclass(frozen=True)
class Divided:
    """`head(transform(body(...).last_hidden_state))` equals the model's logits, over words or over tags.

    Attributes:
        transform: nothing for a causal model; a masked model's dense layer, activation and norm.
        first_position: the position of a document's first token; RoBERTa counts from its padding index on.
        virtual: learned tokens that are to stand before every document, if there are any.
    """

    body: nn.Module
    head: nn.Linear
    transform: Callable[[Tensor], Tensor] = nn.Identity()  # noqa: RUF009 (it has no state)
    first_position: int = 0
    virtual: VirtualTokens | None = None


def divide(model: PreTrainedModel, *, virtual_tokens: bool = False) -> Divided:
    """Divide a causal or masked model, or a classifier of tokens or of texts (an adapter's wrapping is looked through;
    the adapter stays active).

    Args:
        virtual_tokens: the caller puts a model's learned tokens before every document.

    Raises:
        ModelError: the model's logits are not such a map of its last hidden states; or it has learned tokens and the
            caller would leave them out.
    """
    virtual = virtual_tokens_of(model)
    if virtual is not None and not virtual_tokens:
        raise ModelError(
            "a model with learned tokens (prefix or prompt tuning) can be trained and asked for labels, not this",
            hint="use `lora`, or plain peft",
        )
    inner: PreTrainedModel = model.get_base_model() if hasattr(model, "peft_config") else model
    body, head = inner.base_model, classifier_of(inner) or inner.get_output_embeddings()
    if isinstance(head, nn.Linear) and body is not inner:
        first = int(inner.config.pad_token_id) + 1 if inner.config.model_type in COUNTS_FROM_PADDING else 0
        divided = Divided(body, head, _transform_of(inner), first, virtual)
        if _agrees(inner, divided):
            return divided
    raise ModelError(
        f"{type(inner).__name__} computes its logits in a way quilate does not know (more than one linear map)",
        hint="use a Llama-, GPT-2-, Falcon-, Qwen-, Mistral-, BERT- or RoBERTa-like model",
    )


# What classifiers of tokens call their last layer: Llama, Mistral, Qwen and Gemma; GPT-2, Falcon, BERT and RoBERTa.
# Classifiers of texts on causal bodies all call it `score`.
CLASSIFIER_NAMES = ("score", "classifier")


def classifier_name(model: PreTrainedModel) -> list[str] | None:
    """The name of a classifier's last layer, in a list, as peft wants names; None for any other model."""
    if not type(model).__name__.endswith(("ForTokenClassification", "ForSequenceClassification")):
        return None
    return [next(name for name in CLASSIFIER_NAMES if hasattr(model, name))]


def classifier_of(model: PreTrainedModel) -> nn.Module | None:
    """The last layer of a classifier, of tokens or of texts; None for any other model."""
    names = classifier_name(model)
    if names is None:
        return None
    layer: nn.Module = getattr(model, names[0])
    wrapped = getattr(layer, "modules_to_save", None)  # peft keeps the trained copy of a whole layer there
    return layer if wrapped is None else wrapped["default"]


def _transform_of(model: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    """What a masked model does to hidden states before its output embeddings."""
    roberta, bert = getattr(model, "lm_head", None), getattr(model, "cls", None)
    if roberta is not None and hasattr(roberta, "layer_norm"):
        return partial(_roberta_transform, roberta)
    if bert is not None and hasattr(bert, "predictions"):
        transform: nn.Module = bert.predictions.transform
        return transform
    return nn.Identity()


def _roberta_transform(lm_head: Any, hidden: Tensor) -> Tensor:
    transformed: Tensor = lm_head.layer_norm(functional.gelu(lm_head.dense(hidden)))
    return transformed


@torch.no_grad()
def _agrees(model: PreTrainedModel, divided: Divided) -> bool:
    attention, training = model.config._attn_implementation, model.training
    model.set_attn_implementation("eager")  # the probe is a plain row of tokens, whatever attention is in use
    model.eval()
    try:
        # Counted down from the top of the vocabulary: no padding token among them, which a masked model would skip.
        probe = model.config.vocab_size - 1 - torch.arange(8, device=divided.head.weight.device)[None]
        logits: Tensor = model(input_ids=probe).logits
        ours = divided.head(divided.transform(divided.body(input_ids=probe).last_hidden_state))
        return torch.equal(logits, ours if logits.dim() == 3 else ours[:, -1])  # of a text: read at its last token
    finally:
        model.set_attn_implementation(attention)
        model.train(training)
