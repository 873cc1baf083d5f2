"""Learned tokens that stand before every document, through peft; the model itself stays as it is.

Prompt tuning (Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning") learns their embeddings,
prefix tuning (Li & Liang 2021, "Prefix-Tuning") their keys and values in every layer. In a causal model what comes
first sees nothing after it, and what follows sees it by its keys and values only. So both are the same thing here: a
cache that every document begins with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from quilate.errors import ModelError

VirtualMethod = Literal["prefix", "prompt"]
PEFT_TYPES = ("PREFIX_TUNING", "PROMPT_TUNING")


def add_virtual_tokens(model: PreTrainedModel, method: VirtualMethod, count: int, *, base: Path) -> PreTrainedModel:
    """Freeze a causal `model` and give it `count` learned tokens, which start as words drawn from its vocabulary.

    Li & Liang (section 7.4) and Lester et al. (section 3.2) find random starts to learn worse. Drawn from torch's
    global stream.

    Args:
        base: the base model's directory, recorded so that plain peft finds it.

    Raises:
        ModelError: the model is no causal one, or peft lays its keys and values out otherwise (Falcon).
    """
    import peft

    if not model.can_generate():
        raise ModelError(
            f"{type(model).__name__} sees both sides: tokens before a text are no prompt", hint="use `lora`"
        )
    words = torch.randint(0, model.config.vocab_size, (1, count), device=model.device)
    settings: Any
    if method == "prompt":
        settings = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=count)
    else:
        settings = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=count)
    start = _embeddings(model, words) if method == "prompt" else _keys_and_values(model, words)
    model.config._name_or_path = str(base)
    adapted = peft.get_peft_model(model, settings, autocast_adapter_dtype=False)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    weight = adapted.prompt_encoder["default"].embedding.weight
    if weight.shape != start.shape:
        raise ModelError(
            f"{type(model).__name__} keeps {start.shape[1]} numbers a token in its cache and peft expects "
            f"{weight.shape[1]}",
            hint="use `prompt`, or `lora`",
        )
    weight.data = start
    return adapted


@torch.no_grad()
def _embeddings(model: PreTrainedModel, words: Tensor) -> Tensor:
    """[P, D]."""
    embedded: Tensor = model.get_input_embeddings()(words[0])
    return embedded.clone()


@torch.no_grad()
def _keys_and_values(model: PreTrainedModel, words: Tensor) -> Tensor:
    """[P, layers x 2 x K x E], as peft's prefix encoder keeps them."""
    cache = DynamicCache()
    model.base_model(input_ids=words, past_key_values=cache, use_cache=True)
    parts = [part[0].transpose(0, 1).flatten(1) for layer in cache.layers for part in (layer.keys, layer.values)]
    return torch.cat(parts, dim=1)


class VirtualTokens:
    """The learned tokens of a model.

    Attributes:
        length: their number.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self.length = int(model.active_peft_config.num_virtual_tokens)

    def cache(self, documents: int) -> DynamicCache:
        """Their keys and values before each of so many documents; gradients reach what is learned."""
        learned = self._model.get_prompt(batch_size=1)
        if isinstance(learned, Tensor):  # embeddings [1, P, D]
            cache = DynamicCache()
            inner = self._model.get_base_model()
            inner.base_model(inputs_embeds=learned.to(inner.dtype), past_key_values=cache, use_cache=True)
            learned = cache
        spread = DynamicCache()
        for number, layer in enumerate(learned.layers):
            keys, values = (part.expand(documents, -1, -1, -1) for part in (layer.keys, layer.values))
            spread.update(keys, values, number)
        return spread


def virtual_tokens_of(model: PreTrainedModel) -> VirtualTokens | None:
    """The learned tokens that stand before every document; None for a model without."""
    configs, active = getattr(model, "peft_config", None), getattr(model, "active_adapter", None)
    if configs is None or active is None:  # peft leaves its configs on the model inside the adapted one, too
        return None
    if str(configs[active].peft_type).rpartition(".")[2] not in PEFT_TYPES:
        return None
    return VirtualTokens(model)
