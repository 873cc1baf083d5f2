"""Win rates and Bradley-Terry strengths against brute force, a closed form, scipy's optimizer and simulated truth."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy.optimize import minimize

from quilate.errors import QuilateError
from quilate.evaluation.win_rates import bradley_terry_strengths, contest, mean_with_interval

GROUPS = [f"p{n}" for n in range(40)]


def drawn(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4, size=shape).astype(float)  # few values: there are ties


def test_rates_count_every_run_of_one_against_every_run_of_the_other() -> None:
    a, b = drawn(0, 2, 40), drawn(1, 3, 40)
    found = contest([a, b], GROUPS, resamples=1000)
    games = [(x, y) for n in range(40) for x, y in product(a[:, n].tolist(), b[:, n].tolist())]
    expected = sum(1.0 if x > y else 0.5 if x == y else 0.0 for x, y in games) / len(games)
    assert found.rates[0][1].estimate == pytest.approx(expected)
    assert found.rates[1][0].estimate == pytest.approx(1 - expected)
    assert found.rates[0][0].estimate == 0.5
    assert found.ties[0, 1] == pytest.approx(sum(x == y for x, y in games) / len(games))
    assert (found.prompts, found.groups) == (40, 40)


def test_two_policies_have_the_log_odds_of_their_rate() -> None:
    won = np.zeros((1, 40))
    won[0, :30] = 1
    found = contest([np.full((1, 40), 0.5), won], GROUPS, resamples=1000)
    assert found.strengths[0].estimate == 0
    assert found.strengths[1].estimate == pytest.approx(math.log(30.5 / 10.5))


def test_strengths_are_the_maximum_of_the_likelihood() -> None:
    wins = np.random.default_rng(5).uniform(1, 30, size=(4, 4))
    counted = np.where(np.eye(4, dtype=bool), 0, wins + 0.5)

    def minus_log_likelihood(free: np.ndarray) -> float:
        s = np.array([0.0, *free])
        return float((counted * np.logaddexp(0, -(s[:, None] - s[None]))).sum())

    expected = minimize(minus_log_likelihood, np.zeros(3), method="BFGS", options={"gtol": 1e-9}).x
    assert bradley_terry_strengths(wins[None])[0] == pytest.approx([0.0, *expected], abs=1e-5)


def test_a_clean_sweep_has_a_finite_strength() -> None:
    found = contest([np.zeros((1, 40)), np.ones((1, 40))], GROUPS, resamples=1000)
    assert found.rates[1][0].estimate == 1
    assert found.rates[1][0].low < 1, "forty wins of forty do not prove that no prompt is ever lost"
    assert math.isfinite(found.strengths[1].estimate)


def test_intervals_cover_a_planted_rate_when_prompts_come_in_groups() -> None:
    """Groups of four prompts that all go the same way: as if there were a quarter as many."""
    rng, truth, covered, narrow = np.random.default_rng(11), 0.6, 0, 0
    groups = [f"g{n // 4}" for n in range(240)]
    for _ in range(200):
        won = np.repeat(rng.random(60) < truth, 4).astype(float)[None]
        rate = contest([won, np.full((1, 240), 0.5)], groups, resamples=400).rates[0][1]
        covered += rate.low <= truth <= rate.high
        alone = contest([won, np.full((1, 240), 0.5)], [str(n) for n in range(240)], resamples=400).rates[0][1]
        narrow += alone.low <= truth <= alone.high
    assert 0.90 <= covered / 200 <= 1.0
    assert narrow / 200 < 0.8


def test_a_mean_reward_of_one_group_has_no_interval() -> None:
    one = mean_with_interval(np.array([1.0, 2.0]), ["p", "p"], resamples=100)
    assert (one.estimate, one.low, one.high) == (1.5, None, None)
    many = mean_with_interval(drawn(2, 40), GROUPS, resamples=1000)
    assert many.low < many.estimate < many.high


def test_policies_must_have_answered_the_same_prompts() -> None:
    with pytest.raises(QuilateError, match="all on the same prompts"):
        contest([np.zeros((1, 40)), np.zeros((1, 39))], GROUPS)
