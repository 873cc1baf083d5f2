"""The measures of in-context learning as fine-tuning, against closed forms; and the trap in the published one."""

from __future__ import annotations

import numpy as np
import pytest

from quilate.evaluation.implicit_tuning import (
    cosine,
    interval_of_mean,
    order_of_tokens,
    recall_of_gains,
    similarity_of_attention,
    similarity_of_attention_changes,
    similarity_of_updates,
)


def test_recall_counts_only_what_tuning_gained() -> None:
    zero_shot = np.array([1, 0, 0, 0, 0], dtype=bool)
    tuned = np.array([1, 1, 1, 1, 0], dtype=bool)
    in_context = np.array([0, 1, 1, 0, 1], dtype=bool)
    found = recall_of_gains(zero_shot, tuned, in_context)
    assert (found.share, found.found, found.gained) == (pytest.approx(2 / 3), 2, 3)


def test_recall_of_nothing_is_not_a_number_but_nothing() -> None:
    right = np.ones(3, dtype=bool)
    assert recall_of_gains(right, right, right).share is None


def test_cosine_of_nothing_is_zero() -> None:
    assert cosine(np.zeros((2, 3)), np.ones((2, 3))).tolist() == [0, 0]


def test_updates_along_one_line() -> None:
    z = np.array([[3.0, 4.0]])
    step = np.array([[1.0, -2.0]])
    assert similarity_of_updates(z, z + step, z + 5 * step) == pytest.approx(1)
    assert similarity_of_updates(z, z + step, z - step) == pytest.approx(-1)


def test_normalizing_makes_independent_noise_alike() -> None:
    """Two independent updates of squared length 3 |z|^2: cosine 0, and exactly 1/4 once all are normalized."""
    size = 400_000
    rng = np.random.default_rng(0)
    z, a, b = rng.standard_normal((3, 1, size))
    a, b = (x * np.sqrt(3) * np.linalg.norm(z) / np.linalg.norm(x) for x in (a, b))
    assert abs(similarity_of_updates(z, z + a, z + b)[0]) < 0.01
    assert similarity_of_updates(z, z + a, z + b, normalized=True)[0] == pytest.approx(0.25, abs=0.01)


def test_maps_are_compared_head_by_head() -> None:
    a = np.array([[1.0, 0.0], [0.0, 2.0]])
    b = np.array([[5.0, 0.0], [3.0, 0.0]])
    assert similarity_of_attention(a, b) == pytest.approx(0.5)


def test_changes_of_maps_leave_out_what_is_shared() -> None:
    shared = np.full((2, 3), 100.0)
    one, other = np.array([[1.0, 0, 0], [1, 0, 0]]), np.array([[0.0, 1, 0], [1, 0, 0]])
    assert similarity_of_attention(shared + one, shared + other) == pytest.approx(1, abs=1e-3)
    assert similarity_of_attention_changes(shared, shared + one, shared + other) == pytest.approx(0.5)


def test_order() -> None:
    assert order_of_tokens(np.array([1, 2, 3, 4.0]), np.array([10, 20, 40, 30.0])) == pytest.approx(4 / 6)
    assert order_of_tokens(np.arange(4.0), np.zeros(4)) == 0


def test_interval_holds_the_mean_and_narrows() -> None:
    values = np.random.default_rng(1).standard_normal(400)
    low, high = interval_of_mean(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.15)
