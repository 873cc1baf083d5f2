"""New models with random weights: the shapes of Llama, GPT-2, Falcon and RoBERTa, in named small sizes."""

from __future__ import annotations

from typing import Literal

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    FalconConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
)

Shape = Literal["llama", "gpt2", "falcon", "roberta"]
Size = Literal["tiny", "3M", "11M", "30M"]

# Width, layers, heads of 32 or 64, so that the body with an 8k vocabulary has about the parameters the name says.
DIMENSIONS: dict[str, tuple[int, int, int]] = {
    "tiny": (32, 2, 2),
    "3M": (160, 6, 5),
    "11M": (320, 6, 5),
    "30M": (512, 8, 8),
}


def shape_config(shape: Shape, size: Size, *, vocabulary: int, context: int, end: int, pad: int) -> PretrainedConfig:
    """The `transformers` config of a named shape and size.

    Embeddings are tied: at these sizes an output table of its own would be a third of the model.
    """
    width, layers, heads = DIMENSIONS[size]
    special = {"vocab_size": vocabulary, "eos_token_id": end, "bos_token_id": end, "pad_token_id": pad}
    match shape:
        case "llama":  # Touvron et al. 2023: gated MLP of 8/3 the width, RMSNorm, rotary positions
            return LlamaConfig(
                hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads,
                intermediate_size=-(-8 * width // 3 // 32) * 32, max_position_embeddings=context,
                tie_word_embeddings=True, **special,
            )  # fmt: skip
        case "gpt2":  # Radford et al. 2019; dropout off, for small models see their data once or few times
            return GPT2Config(
                n_embd=width, n_layer=layers, n_head=heads, n_positions=context,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **special,
            )  # fmt: skip
        case "falcon":  # Almazrouei et al. 2023: one key head for all queries, attention and MLP in parallel, one norm
            return FalconConfig(
                hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, multi_query=True,
                parallel_attn=True, new_decoder_architecture=False, bias=False, alibi=False,
                max_position_embeddings=context, tie_word_embeddings=True, **special,
            )  # fmt: skip
        case "roberta":  # Liu et al. 2019; positions start after the padding index
            return RobertaConfig(
                hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * width,
                max_position_embeddings=context + pad + 1, type_vocab_size=1, hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0, **special,
            )  # fmt: skip


def create(config: PretrainedConfig, *, masked: bool) -> PreTrainedModel:
    """A model with fresh weights (drawn from torch's global stream), in fp32, untrained."""
    factory = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    model: PreTrainedModel = factory.from_config(config, dtype=torch.float32)
    return model
