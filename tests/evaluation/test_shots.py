"""The k-shot curve against accuracies counted by hand, and the figure made of it."""

from __future__ import annotations

import numpy as np
import pytest

from quilate.evaluation.schema import ShotsEvidence
from quilate.evaluation.shots import TriedPrompt, shots_curve, spread_notice
from quilate.evaluation.statistics import STATISTICS, label_features
from quilate.evaluation.wording import say

GOLD = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])


def features_with(right: int) -> np.ndarray:
    return label_features("accuracy", GOLD, np.where(np.arange(10) < right, GOLD, (GOLD + 1) % 3), 3)


def curve_of(tried: list[TriedPrompt], groups: list[str] | None = None) -> list[ShotsEvidence]:
    return shots_curve(tried, STATISTICS["accuracy"].score, groups, resamples=1000)


def test_each_number_of_shots_has_its_mean_interval_and_spread() -> None:
    tried = [TriedPrompt(shots, features_with(right)) for shots, right in ((4, 6), ("fit", 9), (0, 3), (4, 8), (0, 3))]
    curve = curve_of(tried)
    assert [(p.shots, p.runs, p.items) for p in curve] == [(0, 2, 10), (4, 2, 10), ("fit", 1, 10)]
    assert [p.score for p in curve] == pytest.approx([0.3, 0.7, 0.9])
    assert [(p.lowest, p.highest) for p in curve] == [(0.3, 0.3), (0.6, 0.8), (0.9, 0.9)]
    assert all(p.ci95[0] < p.score < p.ci95[1] for p in curve)
    notice = spread_notice("k", curve)
    assert "5 prompts were tried on 10\u00a0items" in say(notice, "en") and "30.0% to 90.0%" in say(notice, "en")
    assert "de 30,0\u00a0% a 90,0\u00a0%" in say(notice, "es")


def test_groups_widen_the_interval() -> None:
    tried = [TriedPrompt(1, features_with(6))]
    alone = curve_of(tried)[0]
    tied = curve_of(tried, list("aaaaaabbbb"))[0]
    assert tied.ci95[1] - tied.ci95[0] > alone.ci95[1] - alone.ci95[0]
