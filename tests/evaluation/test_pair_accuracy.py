"""Accuracy on pairs: against counting, with planted truth for the parts and the baseline."""

from __future__ import annotations

import numpy as np
import pytest

from quilate.evaluation.preferences import JudgedPairs, length_direction, pair_report


def planted(pairs: int = 400, seed: int = 0) -> JudgedPairs:
    """The clearer the margin, the likelier it is right; four pairs a group; longer answers are no better."""
    rng = np.random.default_rng(seed)
    size = rng.uniform(0, 3, pairs)
    right = rng.random(pairs) < 1 / (1 + np.exp(-size))
    return JudgedPairs(
        margin=np.where(right, size, -size),
        tokens_better=rng.integers(5, 60, pairs),
        tokens_worse=rng.integers(5, 60, pairs),
        strength=np.where(np.arange(pairs) % 2 == 0, np.nan, 1.0 + np.arange(pairs) % 3),
        groups=[f"g{i // 4}" for i in range(pairs)],
    )


def test_accuracy_is_the_share_and_lies_in_its_interval() -> None:
    pairs = planted()
    report = pair_report(pairs, direction=1, resamples=1000)
    assert report["pairs"] == 400 and report["groups"] == 100
    assert report["accuracy"]["estimate"] == pytest.approx((pairs.margin > 0).mean(), abs=1e-4)
    assert report["accuracy"]["low"] < report["accuracy"]["estimate"] < report["accuracy"]["high"]
    shorter = (pairs.tokens_better < pairs.tokens_worse).mean()
    ties = (pairs.tokens_better == pairs.tokens_worse).mean()
    assert report["length_only"]["estimate"] == pytest.approx(1 - shorter - ties / 2, abs=ties / 2 + 1e-4)
    assert report["difference"]["low"] > 0  # the model is better than length, and the pairing shows it


def test_accuracy_rises_with_the_margin_and_every_pair_is_in_one_part() -> None:
    report = pair_report(planted(), direction=1, resamples=1000)
    quarters = report["by_margin"]
    assert [q["pairs"] for q in quarters] == [100] * 4
    assert quarters[0]["accuracy"]["estimate"] + 0.15 < quarters[-1]["accuracy"]["estimate"]
    assert sum(part["pairs"] for part in report["by_length"]) == 400
    assert sum(part["pairs"] for part in report["by_strength"]) == 200  # of the others nothing is known


def test_a_model_that_follows_length_alone_is_found_out() -> None:
    pairs = planted()
    length = (pairs.tokens_better - pairs.tokens_worse).astype(float)
    follower = JudgedPairs(length, pairs.tokens_better, pairs.tokens_worse, pairs.strength, pairs.groups)
    report = pair_report(follower, direction=1, resamples=1000)
    assert report["difference"]["estimate"] == 0
    parts = {part["part"]: part["accuracy"]["estimate"] for part in report["by_length"]}
    assert (parts["better is longer"], parts["better is shorter"]) == (1.0, 0.0)


def test_ties_are_a_fair_coin() -> None:
    pairs = planted(100)
    equal = JudgedPairs(np.zeros(100), pairs.tokens_better, pairs.tokens_worse, np.full(100, np.nan), pairs.groups)
    report = pair_report(equal, direction=-1, resamples=1000)
    assert report["accuracy"]["estimate"] == 0.5
    assert report["prefers"] == "shorter" and report["by_strength"] == []
    assert [q["pairs"] for q in report["by_margin"]] == [100]


def test_which_length_is_preferred_is_learned() -> None:
    assert length_direction(np.array([5, 9, 2]), np.array([3, 2, 7])) == 1
    assert length_direction(np.array([5, 1, 2]), np.array([3, 2, 7])) == -1
