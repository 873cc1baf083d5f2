"""Draws against the softmax in float64."""

from __future__ import annotations

import pytest
import torch

from quilate.inference.sampling import BIN, Sampling, choose


def drawn_counts(logits: torch.Tensor, sampling: Sampling, draws: int = 40_000) -> torch.Tensor:
    uniforms = torch.rand(draws, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tokens = choose(logits.expand(draws, -1), uniforms, sampling)
    return torch.bincount(tokens, minlength=logits.shape[0]).double() / draws


@pytest.mark.parametrize("vocabulary", [5, BIN, BIN + 1, 3 * BIN - 7])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_shares_are_the_softmax(vocabulary: int, temperature: float) -> None:
    logits = torch.randn(vocabulary, generator=torch.Generator().manual_seed(vocabulary)) * 3
    expected = (logits.double() / temperature).softmax(-1)
    tolerance = 5 * (expected * (1 - expected) / 40_000).sqrt() + 1e-4
    assert ((drawn_counts(logits, Sampling(temperature)) - expected).abs() <= tolerance).all()


@pytest.mark.parametrize("vocabulary", [6, 2 * BIN + 3])
def test_a_draw_is_the_inverse_of_the_distribution(vocabulary: int) -> None:
    """Token k for every uniform number between the cumulative probabilities before and after k."""
    logits = torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(1)).double()
    probabilities = logits[0].softmax(-1)
    middles = probabilities.cumsum(-1) - probabilities / 2
    tokens = choose(logits.float().expand(vocabulary, -1), middles, Sampling(1.0))
    assert tokens.tolist() == list(range(vocabulary))


def test_a_token_of_no_probability_is_never_drawn() -> None:
    logits = torch.full((1, 3 * BIN), -torch.inf)
    logits[0, [4, 2 * BIN - 1]] = 0.0
    edges = torch.tensor([0.0, 0.5 - 1e-12, 0.5, 1 - 1e-16, 1 - 2**-53], dtype=torch.float64)
    tokens = choose(logits.expand(5, -1), edges, Sampling(1.0))
    assert set(tokens.tolist()) == {4, 2 * BIN - 1}
    assert tokens[0] == 4
    assert tokens[-1] == 2 * BIN - 1


@pytest.mark.parametrize("flat", [False, True])
def test_the_nucleus_is_the_fewest_likeliest_tokens_that_reach_the_share(flat: bool) -> None:
    """Also when it holds more tokens than are sorted at first."""
    vocabulary = 2000
    logits = torch.randn(vocabulary, generator=torch.Generator().manual_seed(2)) * (0.1 if flat else 4)
    ordered, tokens = logits.double().softmax(-1).sort(descending=True)
    size = int((ordered.cumsum(-1) < 0.8).sum()) + 1
    expected = torch.zeros(vocabulary, dtype=torch.float64)
    expected[tokens[:size]] = ordered[:size] / ordered[:size].sum()
    counts = drawn_counts(logits, Sampling(1.0, top_p=0.8), draws=20_000)
    assert float(counts[expected == 0].sum()) <= 1e-4  # a tie at the border may go either way
    assert ((counts - expected).abs() <= 5 * (expected / 20_000).sqrt() + 1e-4).all()


def test_greedy_is_the_likeliest_whatever_the_number() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    assert choose(logits, torch.tensor([0.999], dtype=torch.float64), Sampling()).tolist() == [1]
