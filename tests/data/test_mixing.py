"""Mixing weights against the formulas of Raffel et al. 2020, and what is visited against the weights."""

from __future__ import annotations

from collections import Counter

import pytest

from quilate.data.mixing import apportion, mixing_weights, visits

SIZES = {"sentimiento": 100, "preguntas": 400, "entidades": 1600}


def test_proportional_temperature_and_capped() -> None:
    assert mixing_weights(SIZES) == pytest.approx({"sentimiento": 1 / 21, "preguntas": 4 / 21, "entidades": 16 / 21})
    # Square roots: 10, 20, 40.
    tempered = mixing_weights(SIZES, temperature=2)
    assert tempered == pytest.approx({"sentimiento": 1 / 7, "preguntas": 2 / 7, "entidades": 4 / 7})
    # Counted as 100, 200, 200.
    capped = mixing_weights(SIZES, cap=200)
    assert capped == pytest.approx({"sentimiento": 0.2, "preguntas": 0.4, "entidades": 0.4})
    assert mixing_weights({"a": 100, "b": 1600}, temperature=2, cap=400) == pytest.approx({"a": 1 / 3, "b": 2 / 3})
    assert mixing_weights(SIZES, temperature=1e9) == pytest.approx(dict.fromkeys(SIZES, 1 / 3), rel=1e-6)


def test_visits_follow_the_weights_to_less_than_one() -> None:
    for total in (7, 100, 1001):
        weights = mixing_weights(SIZES, temperature=3)
        counts = apportion(total, weights)
        assert sum(counts.values()) == total
        assert all(abs(counts[name] - total * weight) < 1 for name, weight in weights.items())


def test_none_is_visited_again_before_all_of_its_part_were() -> None:
    parts = {"a": [f"a{i}" for i in range(4)], "b": [f"b{i}" for i in range(10)]}
    chosen = visits(parts, {"a": 11, "b": 3}, seed=5)
    seen = Counter(chosen)
    assert len(chosen) == 14
    assert sorted(seen[name] for name in parts["a"]) == [2, 3, 3, 3]
    assert sorted(seen[name] for name in parts["b"]) == [0] * 7 + [1] * 3
    assert visits(parts, {"a": 11, "b": 3}, seed=5) == chosen != visits(parts, {"a": 11, "b": 3}, seed=6)
    assert {name[0] for name in chosen[:5]} == {"a", "b"} or {name[0] for name in chosen[:9]} == {"a", "b"}  # shuffled
