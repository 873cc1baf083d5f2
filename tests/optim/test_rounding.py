"""Stochastic rounding: unbiased, only to the two neighbours, the same for the same seed."""

from __future__ import annotations

import pytest
import torch

from quilate.optim.rounding import draw_key, random_bits16, stochastic_round_


def rounded(source: torch.Tensor, seed: int = 0) -> torch.Tensor:
    target = torch.empty_like(source, dtype=torch.bfloat16)
    stochastic_round_(target, source, draw_key(torch.Generator().manual_seed(seed)))
    return target


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("low", [1.0, -1.0, 0.0625, -3.0e-30, 3.0e30])
def test_the_probability_of_the_far_neighbour_is_the_remainder(low: float, fraction: float) -> None:
    """n = 100,000 draws: the share lies within five standard deviations of the fraction."""
    near = torch.tensor(low).bfloat16().float()
    far = (near.view(torch.int32) + 0x10000).view(torch.float32)
    value = (near.double() + fraction * (far.double() - near.double())).float()
    exact_fraction = float((value.double() - near.double()) / (far.double() - near.double()))
    result = rounded(value.expand(100_000).contiguous()).float()
    assert ((result == near) | (result == far)).all()
    share = float((result == far).double().mean())
    assert abs(share - exact_fraction) <= 5 * (exact_fraction * (1 - exact_fraction) / 100_000) ** 0.5


def test_the_mean_over_many_values_is_unbiased() -> None:
    generator = torch.Generator().manual_seed(7)
    values = torch.randn(200_000, generator=generator)
    error = rounded(values).double() - values.double()
    spacing = values.abs().double() * 2**-7  # bf16 keeps 8 bits
    assert abs(float((error / spacing).mean())) < 5 * 0.5 / 200_000**0.5


def test_representable_values_are_never_moved() -> None:
    values = torch.randn(10_000).bfloat16()
    assert torch.equal(rounded(values.float()), values)


def test_the_seed_decides() -> None:
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(1))
    assert torch.equal(rounded(values, 4), rounded(values, 4))
    assert not torch.equal(rounded(values, 4), rounded(values, 5))


def test_the_bits_are_uniform_and_independent() -> None:
    """Each of the 16 bits is set half the time, neighbours (two to one word) do not correlate, and none is out of
    range."""
    bits = random_bits16(400_001, draw_key(torch.Generator().manual_seed(2)))
    assert bits.shape == (400_001,)
    assert int(bits.min()) >= 0
    assert int(bits.max()) <= 0xFFFF
    for place in range(16):
        assert float(((bits >> place) & 1).double().mean()) == pytest.approx(0.5, abs=5 * 0.5 / 400_001**0.5)
    centred = bits.double() - 32767.5
    for lag in (1, 2, 3, 4):
        correlation = float((centred[lag:] * centred[:-lag]).mean() / centred.square().mean())
        assert abs(correlation) < 5 / 400_000**0.5


def test_a_part_rounded_alone_has_the_same_bits() -> None:
    whole = random_bits16(1000, key=-12345678901234567)
    assert torch.equal(whole[300:701], random_bits16(401, key=-12345678901234567, first=300))


def test_keys_drawn_one_after_the_other_give_independent_bits() -> None:
    """Correlations of neighbouring keys' bits within 5 sigma."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.stack([random_bits16(100_000, draw_key(generator)).double() - 32767.5 for _ in range(6)])
    correlation = torch.corrcoef(rows).fill_diagonal_(0)
    assert float(correlation.abs().max()) < 5 / 100_000**0.5
