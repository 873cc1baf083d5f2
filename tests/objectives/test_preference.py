"""Preference losses against float64 closed forms written with other functions, and against TRL's formulas by hand."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch

from quilate.objectives.preference import (
    bradley_terry,
    dpo,
    ipo,
    kto,
    kto_reference_point,
    mean_over_rankings,
    orpo,
)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.fixture
def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    better, worse = (3 * torch.randn(40, generator=generator, dtype=torch.float64) for _ in range(2))
    return better, worse


def test_all_pairs_of_a_ranking_are_instructgpts_equation() -> None:
    """-1/C(K,2) sum log sigmoid(r_w - r_l) for K = 4 and K = 2, each ranking weighing the same."""
    rewards = [[1.3, 0.2, -0.7, -0.9], [0.1, 0.4]]  # the second one in the wrong order
    better, worse, ranking, expected = [], [], [], []
    for number, ordered in enumerate(rewards):
        losses = [-math.log(sigmoid(a - b)) for a, b in combinations(ordered, 2)]
        assert len(losses) == math.comb(len(ordered), 2)
        expected.append(sum(losses) / len(losses))
        better += [a for a, _ in combinations(ordered, 2)]
        worse += [b for _, b in combinations(ordered, 2)]
        ranking += [number] * len(losses)
    losses = bradley_terry(torch.tensor(better).double(), torch.tensor(worse).double())
    means = mean_over_rankings(losses, torch.tensor(ranking), 2)
    torch.testing.assert_close(means, torch.tensor(expected, dtype=torch.float64), rtol=1e-7, atol=0)


def test_the_mean_over_rankings_carries_the_gradient() -> None:
    losses = torch.tensor([1.0, 2.0, 6.0], requires_grad=True)
    mean_over_rankings(losses, torch.tensor([0, 0, 1]), 2).sum().backward()
    assert losses.grad.tolist() == [0.5, 0.5, 1.0]


@pytest.mark.parametrize(("beta", "smoothing"), [(0.1, 0.0), (0.5, 0.0), (0.1, 0.2)])
def test_dpo(pairs: tuple[torch.Tensor, torch.Tensor], beta: float, smoothing: float) -> None:
    better, worse = pairs
    expected = [
        -(1 - smoothing) * math.log(sigmoid(beta * (b - w))) - smoothing * math.log(1 - sigmoid(beta * (b - w)))
        for b, w in zip(better.tolist(), worse.tolist(), strict=True)
    ]
    ours = dpo(better, worse, beta=beta, label_smoothing=smoothing)
    torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-12)


def test_dpo_equals_trls_formula_from_the_four_log_probabilities() -> None:
    """TRL: logits = (chosen - rejected) - (ref_chosen - ref_rejected)."""
    chosen, rejected, ref_chosen, ref_rejected = torch.randn(4, 9, dtype=torch.float64)
    logits = (chosen - rejected) - (ref_chosen - ref_rejected)
    trl = torch.log1p(torch.exp(-0.1 * logits))
    torch.testing.assert_close(dpo(chosen - ref_chosen, rejected - ref_rejected, beta=0.1), trl)


def test_dpo_starts_at_log_2_and_its_gradient_is_the_papers() -> None:
    """Rafailov et al., section 4: the gradient is -beta sigmoid(r_l - r_w); half of beta where policy = reference."""
    zero = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    losses = dpo(zero, torch.zeros(3, dtype=torch.float64), beta=0.3)
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([math.log(2)] * 3)
    assert zero.grad.tolist() == pytest.approx([-0.15] * 3)


def test_conservative_dpo_is_flat_at_the_label_noise() -> None:
    """Mitchell's point: the optimum is finite, where sigmoid(beta d) = 1 - e."""
    optimum = math.log(0.8 / 0.2) / 0.1
    margin = torch.tensor([optimum], dtype=torch.float64, requires_grad=True)
    dpo(margin, torch.zeros(1), beta=0.1, label_smoothing=0.2).sum().backward()
    assert margin.grad.item() == pytest.approx(0, abs=1e-12)


def test_far_margins_stay_finite() -> None:
    far = torch.tensor([1e4, -1e4], requires_grad=True)
    losses = dpo(far, torch.zeros(2), beta=1.0, label_smoothing=0.1)
    losses.sum().backward()
    assert losses.isfinite().all() and far.grad.isfinite().all()


def test_ipo(pairs: tuple[torch.Tensor, torch.Tensor]) -> None:
    better, worse = pairs
    expected = [(b - w - 1 / (2 * 0.2)) ** 2 for b, w in zip(better.tolist(), worse.tolist(), strict=True)]
    torch.testing.assert_close(ipo(better, worse, beta=0.2), torch.tensor(expected, dtype=torch.float64))


def test_kto(pairs: tuple[torch.Tensor, torch.Tensor]) -> None:
    ratios, mismatched = pairs
    desirable = torch.arange(40) % 3 == 0
    point = max(0.0, sum(mismatched.tolist()) / 40)
    expected = [
        1.0 * (1 - sigmoid(0.1 * (r - point))) if good else 1.5 * (1 - sigmoid(0.1 * (point - r)))
        for r, good in zip(ratios.tolist(), desirable.tolist(), strict=True)
    ]
    ours = kto(ratios, desirable, kto_reference_point(mismatched), beta=0.1, undesirable_weight=1.5)
    torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64))


def test_the_reference_point_of_kto_is_never_negative_and_has_no_gradient() -> None:
    mismatched = torch.tensor([1.0, 2.0], requires_grad=True)
    assert not kto_reference_point(mismatched).requires_grad
    assert kto_reference_point(mismatched).item() == 1.5
    assert kto_reference_point(-mismatched).item() == 0.0


def test_orpo(pairs: tuple[torch.Tensor, torch.Tensor]) -> None:
    better, worse = (-t.abs() - 0.01 for t in pairs)

    def odds(x: float) -> float:
        return math.exp(x) / (1 - math.exp(x))

    expected = [
        -b - 0.25 * math.log(sigmoid(math.log(odds(b) / odds(w))))
        for b, w in zip(better.tolist(), worse.tolist(), strict=True)
    ]
    torch.testing.assert_close(
        orpo(better, worse, weight=0.25), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0
    )


def test_orpo_equals_trls_formula() -> None:
    better, worse = -torch.rand(20, dtype=torch.float64) - 0.05, -torch.rand(20, dtype=torch.float64) - 0.05
    log_odds = (better - worse) - (torch.log1p(-torch.exp(better)) - torch.log1p(-torch.exp(worse)))
    trl = -better + 0.1 * torch.log1p(torch.exp(-log_odds))
    torch.testing.assert_close(orpo(better, worse, weight=0.1), trl)


def test_orpo_of_a_completion_known_by_heart_is_finite_with_its_gradient() -> None:
    better = torch.tensor([0.0, -1e-9, -200.0, -0.5], requires_grad=True)
    losses = orpo(better, torch.tensor([-0.1, 0.0, -1e-9, -300.0]))
    losses.sum().backward()
    assert losses.isfinite().all()
    assert better.grad.isfinite().all()
