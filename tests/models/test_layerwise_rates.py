"""Layer-wise learning rates: each group's factor by the closed form, and torch's own AdamW with a group a layer."""

from __future__ import annotations

import copy
from collections import defaultdict

import pytest
import torch
from support import ARCHITECTURES, random_examples
from transformers import PreTrainedModel

from quilate.data.packing import pack
from quilate.engine.language_modelling import LanguageModellingLoss
from quilate.models.create import create, shape_config
from quilate.models.tuning.layers import layerwise_rates
from quilate.optim.adamw import AdamW


def masked() -> PreTrainedModel:
    return create(shape_config("roberta", "tiny", vocabulary=384, context=64, end=0, pad=1), masked=True)


@pytest.mark.parametrize(
    ("make", "embeddings", "layer", "top"),
    [
        (ARCHITECTURES["llama"], ["model.embed_tokens."], "model.layers.{}.", ["model.norm."]),
        (ARCHITECTURES["gpt2"], ["transformer.wte.", "transformer.wpe."], "transformer.h.{}.", ["transformer.ln_f."]),
        (ARCHITECTURES["falcon"], ["transformer.word_embeddings."], "transformer.h.{}.", ["transformer.ln_f."]),
        (masked, ["roberta.embeddings."], "roberta.encoder.layer.{}.", ["lm_head."]),
    ],
    ids=["llama", "gpt2", "falcon", "roberta"],
)
def test_the_rate_falls_with_the_distance_from_the_output(
    make: type[PreTrainedModel], embeddings: list[str], layer: str, top: list[str]
) -> None:
    """Two layers and a decay of 0.5: 1, 1/2, 1/4, and 1/8 for what is below all of them."""
    rates = layerwise_rates(make(), 0.5)
    by_factor = defaultdict(set)
    for name, rate in rates.items():
        by_factor[rate].add(name)
    expected = {1.0: top, 0.5: [layer.format(1)], 0.25: [layer.format(0)], 0.125: embeddings}
    assert set(by_factor) == set(expected)
    for factor, beginnings in expected.items():
        assert all(name.startswith(tuple(beginnings)) for name in by_factor[factor]), by_factor[factor]
        assert all(any(name.startswith(b) for name in by_factor[factor]) for b in beginnings)


def test_training_follows_torch_with_a_group_a_layer() -> None:
    ours = ARCHITECTURES["llama"]()
    theirs = copy.deepcopy(ours)
    rates = layerwise_rates(ours, 0.7)
    groups = [
        {"params": [p], "lr": 1e-2 * rates[name], "weight_decay": 0.1 if p.dim() > 1 else 0.0}
        for name, p in theirs.named_parameters()
    ]
    reference = torch.optim.AdamW(groups, eps=1e-8)
    optimizer = AdamW(ours.named_parameters(), weight_decay=0.1, rates=rates)
    for step in range(3):
        batch = pack(random_examples([12, 9], seed=step))
        for model in (ours, theirs):
            loss = LanguageModellingLoss(model)(batch)
            (loss / batch.weight).backward()
        optimizer.step(1e-2)
        reference.step()
        reference.zero_grad()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6, msg=name)
