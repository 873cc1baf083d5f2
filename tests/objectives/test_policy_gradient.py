"""PPO's parts and group advantages against plain Python in float64, and the traps that others fell into."""

from __future__ import annotations

import math

import pytest
import torch

from quilate.objectives.policy_gradient import (
    adapted_beta,
    gae,
    grpo_advantages,
    has_spread,
    masked_mean,
    masked_whiten,
    penalize_missing_end,
    ppo_policy_loss,
    ppo_value_loss,
    rloo_advantages,
    token_kl,
    token_rewards,
)

LENGTHS = [5, 3, 1]
MASK = torch.arange(5) < torch.tensor(LENGTHS)[:, None]


def ragged(seed: int) -> torch.Tensor:
    """Numbers with NaN where the padding is: whatever looks there fails."""
    values = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.masked_fill(~MASK, math.nan)


def rows(values: torch.Tensor) -> list[list[float]]:
    return [row[:n].tolist() for row, n in zip(values, LENGTHS, strict=True)]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.7), (1.0, 1.0), (0.99, 0.0)])
def test_gae_is_the_discounted_sum_of_its_definition(gamma: float, lam: float) -> None:
    rewards, values = ragged(0), ragged(1)
    advantages, returns = gae(rewards, values, MASK, gamma=gamma, lam=lam)
    for got, back, r, v in zip(rows(advantages), rows(returns), rows(rewards), rows(values), strict=True):
        delta = [r[t] + gamma * (v[t + 1] if t + 1 < len(v) else 0.0) - v[t] for t in range(len(v))]
        expected = [sum((gamma * lam) ** k * d for k, d in enumerate(delta[t:])) for t in range(len(v))]
        assert got == pytest.approx(expected)
        assert back == pytest.approx([a + b for a, b in zip(expected, v, strict=True)])
    assert (advantages[~MASK] == 0).all() and (returns[~MASK] == 0).all()


def test_without_discount_returns_are_what_is_still_to_come() -> None:
    _, returns = gae(ragged(0), ragged(1), MASK, gamma=1.0, lam=1.0)
    for got, r in zip(rows(returns), rows(ragged(0)), strict=True):
        assert got == pytest.approx([sum(r[t:]) for t in range(len(r))])


@pytest.mark.parametrize("shift", [True, False])
def test_whitening_ignores_padding(shift: bool) -> None:
    """trlX's whitening counts the padding."""
    values = ragged(2)
    flat = [x for row in rows(values) for x in row]
    mean = sum(flat) / len(flat)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in flat) / len(flat))
    whitened = masked_whiten(values, MASK, shift_mean=shift)
    expected = [(x - mean) / deviation + (0 if shift else mean) for x in flat]
    assert [x for row in rows(whitened) for x in row] == pytest.approx(expected, abs=1e-6)
    assert (whitened[~MASK] == 0).all()
    assert masked_mean(whitened, MASK).item() == pytest.approx(0 if shift else mean, abs=1e-9)


def test_equal_values_whiten_to_zero_and_an_empty_mask_has_mean_zero() -> None:
    assert masked_whiten(torch.full((3, 5), 2.0), MASK).abs().max().item() == 0
    assert masked_mean(ragged(0), torch.zeros_like(MASK)).item() == 0


def test_estimators_of_kl_agree_with_the_exact_one_in_expectation() -> None:
    policy = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    reference = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
    exact = (policy * (policy / reference).log()).sum()
    for estimator in ("k1", "k3"):
        torch.testing.assert_close((policy * token_kl(policy.log(), reference.log(), estimator)).sum(), exact)
    assert (token_kl(policy.log(), reference.log(), "k3") >= 0).all()
    assert (token_kl(policy.log(), reference.log(), "k1") < 0).any()


def test_k3_has_no_gradient_where_policy_and_reference_agree() -> None:
    log_probs = torch.tensor([-1.0, -2.0], requires_grad=True)
    token_kl(log_probs, torch.tensor([-1.0, -1.0]), "k3").sum().backward()
    assert log_probs.grad.tolist() == pytest.approx([0.0, 1 - math.exp(1.0)])


def test_the_score_is_at_the_end_token_and_the_kl_at_every_one() -> None:
    kl = ragged(3)
    rewards = token_rewards(torch.tensor([1.0, 2.0, -1.0]), kl, MASK, beta=0.05)
    for got, k, score in zip(rows(rewards), rows(kl), [1.0, 2.0, -1.0], strict=True):
        expected = [-0.05 * x for x in k]
        expected[-1] += score
        assert got == pytest.approx(expected)
    assert (rewards[~MASK] == 0).all()


def test_a_completion_that_never_ends() -> None:
    """Huang et al. replace the score; TRL subtracts from it."""
    scores, ended = torch.tensor([5.0, 5.0]), torch.tensor([True, False])
    assert penalize_missing_end(scores, ended).tolist() == [5.0, -1.0]
    assert penalize_missing_end(scores, ended, replace=False).tolist() == [5.0, 4.0]


def test_policy_loss_is_the_clipped_one_and_says_where() -> None:
    new, old, advantages = ragged(4), ragged(5), ragged(6)
    losses, clipped = ppo_policy_loss(new, old, advantages, MASK, clip_low=0.2, clip_high=0.3)
    count = 0
    for got, n, o, a, where in zip(*map(rows, (losses, new, old, advantages, clipped)), strict=True):
        for loss, x, y, advantage, was in zip(got, n, o, a, where, strict=True):
            ratio = math.exp(x - y)
            surrogate = min(ratio * advantage, min(max(ratio, 0.8), 1.3) * advantage)
            assert loss == pytest.approx(-surrogate)
            assert was == (surrogate != pytest.approx(ratio * advantage))
            count += was
    assert 0 < count < sum(LENGTHS) and clipped.sum() == count
    assert (losses[~MASK] == 0).all()


def test_a_first_update_has_ratio_one_and_the_plain_policy_gradient() -> None:
    old, advantages = ragged(5), ragged(6)
    new = old.clone().requires_grad_()
    losses, clipped = ppo_policy_loss(new, old, advantages, MASK)
    losses.sum().backward()
    assert not clipped.any()
    torch.testing.assert_close(new.grad[MASK], -advantages[MASK])
    assert (new.grad[~MASK] == 0).all()


def test_padding_never_makes_a_gradient_nan() -> None:
    """Log-probabilities under the padding may be anything; an overflow there, multiplied by zero, would be NaN."""
    new = torch.full((3, 5), 900.0).masked_fill(MASK, -1.0).requires_grad_()
    ppo_policy_loss(new, torch.full((3, 5), -1.0), torch.ones(3, 5), MASK).losses.sum().backward()
    assert new.grad.isfinite().all()


def test_value_loss() -> None:
    values, old, returns = ragged(7), ragged(8), ragged(9)
    losses, clipped = ppo_value_loss(values, old, returns, MASK, clip=0.2)
    for got, v, o, r, where in zip(*map(rows, (losses, values, old, returns, clipped)), strict=True):
        for loss, x, y, goal, was in zip(got, v, o, r, where, strict=True):
            held = min(max(x, y - 0.2), y + 0.2)
            assert loss == pytest.approx(0.5 * max((x - goal) ** 2, (held - goal) ** 2))
            assert was == ((held - goal) ** 2 > (x - goal) ** 2)
    assert (losses[~MASK] == 0).all()


@pytest.mark.parametrize(("kl", "factor"), [(6.0, 1 + 0.1 * 0.2), (6.6, 1 + 0.1 * 0.1), (1.0, 1 - 0.1 * 0.2)])
def test_the_controller_moves_beta_at_most_a_fifth_a_horizon(kl: float, factor: float) -> None:
    assert adapted_beta(0.05, kl, target=5.0 if kl == 6.0 else 6.0, samples=100, horizon=1000) == pytest.approx(
        0.05 * factor
    )


def test_grpo_against_its_definition() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.3, 0.9, 0.1, 0.5]], dtype=torch.float64)
    for scale in (True, False):
        got = grpo_advantages(rewards, scale=scale)
        for row, r in zip(got.tolist(), rewards.tolist(), strict=True):
            mean = sum(r) / 4
            deviation = math.sqrt(sum((x - mean) ** 2 for x in r) / 3)
            assert row == pytest.approx([(x - mean) / (deviation + 1e-4 if scale else 1) for x in r])


def test_a_group_without_spread_teaches_nothing_even_in_fp32() -> None:
    """The mean of eleven times 0.1 is not 0.1 in fp32: without care equal rewards would get advantages."""
    rewards = torch.full((1, 11), 0.1)
    assert rewards.mean() != rewards[0, 0]
    assert grpo_advantages(rewards).tolist() == [[0.0] * 11]
    assert has_spread(torch.tensor([[0.1, 0.1], [0.1, 0.2]])).tolist() == [False, True]


def test_rloo_against_its_definition_and_sums_to_zero() -> None:
    rewards = torch.randn(3, 5, dtype=torch.float64)
    got = rloo_advantages(rewards)
    for row, r in zip(got.tolist(), rewards.tolist(), strict=True):
        assert row == pytest.approx([x - (sum(r) - x) / 4 for x in r])
    torch.testing.assert_close(got.sum(1), torch.zeros(3, dtype=torch.float64))
