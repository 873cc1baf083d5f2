"""Schedules at points whose value is known in closed form."""

from __future__ import annotations

from functools import partial

import pytest

from quilate.optim.schedules import learning_rate


def test_warm_up_is_linear_and_never_zero() -> None:
    rate = partial(learning_rate, peak=1.0, total_steps=100, warmup_steps=10, decay="linear")
    assert [rate(step) for step in range(10)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert rate(10) == 1.0


@pytest.mark.parametrize(
    ("decay", "points"),
    [
        ("constant", {10: 2.0, 60: 2.0, 109: 2.0}),
        ("linear", {10: 2.0, 35: 1.5, 60: 1.0, 85: 0.5, 109: 0.02}),
        ("cosine", {10: 2.0, 35: 1.7071067811865475, 60: 1.0, 85: 0.2928932188134524}),
    ],
)
def test_decay(decay: str, points: dict[int, float]) -> None:
    for step, expected in points.items():
        rate = learning_rate(step, peak=2.0, total_steps=110, warmup_steps=10, decay=decay)
        assert rate == pytest.approx(expected)


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_the_floor_is_approached_and_the_last_step_still_trains(decay: str) -> None:
    rate = partial(learning_rate, peak=1.0, total_steps=1000, warmup_steps=0, decay=decay, floor=0.1)
    assert rate(0) == 1.0
    assert rate(500) == pytest.approx(0.55)
    assert rate(999) == pytest.approx(0.1, abs=1e-3)
    assert learning_rate(9, peak=1.0, total_steps=10, warmup_steps=0, decay=decay) > 0


def test_without_decay_steps_nothing_divides_by_zero() -> None:
    assert learning_rate(4, peak=1.0, total_steps=5, warmup_steps=5, decay="linear") == 1.0
    assert learning_rate(0, peak=1.0, total_steps=0, warmup_steps=0, decay="cosine") == 1.0
