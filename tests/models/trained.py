"""A model after a few steps, and its logits on a fixed sentence."""

from __future__ import annotations

import torch
from support import SENTENCES, random_examples, tiny_tokenizer
from transformers import PreTrainedModel

from quilate.data.packing import pack
from quilate.engine.language_modelling import LanguageModellingLoss
from quilate.engine.loop import optimizer_step
from quilate.optim.adamw import AdamW

TOKENS = torch.tensor([tiny_tokenizer()(SENTENCES[0]).input_ids])


@torch.no_grad()
def logits_of(model: PreTrainedModel) -> torch.Tensor:
    return model.eval()(input_ids=TOKENS, use_cache=False).logits


def trained(model: PreTrainedModel, steps: int = 3) -> PreTrainedModel:
    loss = LanguageModellingLoss(model)
    optimizer = AdamW(model.named_parameters(), rounding=torch.Generator().manual_seed(0))
    batch = pack(random_examples([20, 14, 9]))
    for _ in range(steps):
        assert optimizer_step([batch], loss, optimizer, learning_rate=1e-2, clip_norm=1.0).applied
    optimizer.write_nearest()
    return model
