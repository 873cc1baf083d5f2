"""Momentum attention against its formula, and read after a cache as in one piece."""

from __future__ import annotations

import pytest
import torch
from support import tiny_llama

from quilate.inference.prefix import Prefix
from quilate.models.momentum_attention import _attend, momentum_attention

TOKENS = [5, 9, 200, 31, 7, 80]


def test_it_adds_the_decaying_sum_of_earlier_values() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)
    module = torch.nn.Module()
    module.momentum = 0.3
    found, _ = _attend(module, query, key, value, None)
    for head in range(4):
        q, k, v = (x[0, i].double() for x, i in ((query, head), (key, head // 2), (value, head // 2)))
        for t in range(5):
            weights = (k[: t + 1] @ q[t] / 8**0.5).softmax(0)
            wanted = weights @ v[: t + 1] + sum(0.3 ** (t - i) * v[i] for i in range(t))
            torch.testing.assert_close(found[0, t, head].double(), wanted, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_without_momentum_the_model_is_as_it_was() -> None:
    model = tiny_llama()
    ids = torch.tensor([TOKENS])
    plain = model(ids).logits
    with momentum_attention(model, 0.0):
        torch.testing.assert_close(model(ids).logits, plain, rtol=1e-5, atol=1e-6)
    with momentum_attention(model, 0.1):
        assert not torch.allclose(model(ids).logits, plain, atol=1e-4)
    assert torch.equal(model(ids).logits, plain)


@torch.no_grad()
def test_after_a_cache_it_reads_the_same() -> None:
    model = tiny_llama()
    with momentum_attention(model, 0.2):
        whole = model.base_model(torch.tensor([TOKENS]), use_cache=False).last_hidden_state
        prefix = Prefix(model.base_model, TOKENS[:4], torch.device("cpu"))
        for _ in range(2):  # the cache does not grow
            rest = model.base_model(torch.tensor([TOKENS[4:]]), past_key_values=prefix.cache()).last_hidden_state
            torch.testing.assert_close(rest, whole[:, 4:], rtol=1e-4, atol=1e-5)


def test_a_momentum_that_grows_is_refused() -> None:
    with pytest.raises(ValueError, match="below 1"), momentum_attention(tiny_llama(), 1.0):
        pass
