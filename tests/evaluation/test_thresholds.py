"""Thresholds against brute force, counts and F1 against scikit-learn, judged with intervals."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from quilate.evaluation.judgement import judge
from quilate.evaluation.outcomes import ArmOutcome, Cost, Rules
from quilate.evaluation.spans import GOLD
from quilate.evaluation.statistics import COUNT_SCORES
from quilate.evaluation.thresholds import FEWEST_TEXTS, best_cut, choose_thresholds, count_labels, given_labels


def drawn(seed: int, texts: int = 80, labels: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Gold labels of unequal frequency, and scores that know something of them, with ties."""
    rng = np.random.default_rng(seed)
    gold = rng.random((texts, labels)) < np.linspace(0.1, 0.5, labels)
    return gold, np.round(gold + rng.normal(scale=0.8, size=gold.shape), 1)


def f1(gold: np.ndarray, given: np.ndarray) -> float:
    return float(2 * (gold & given).sum() / (gold.sum() + given.sum()))


@pytest.mark.parametrize("seed", range(5))
def test_the_best_cut_is_the_one_that_brute_force_finds(seed: int) -> None:
    gold, scores = (array[:, 1] for array in drawn(seed))
    best = max(f1(gold, scores >= cut) for cut in scores)
    cut = best_cut(gold, scores)
    assert f1(gold, scores >= cut) == pytest.approx(best)
    assert cut not in scores  # half way: as much room above as below
    assert best_cut(np.zeros_like(gold), scores) == 0


def test_one_cut_for_micro_and_one_a_label_for_macro() -> None:
    gold, scores = drawn(1, texts=200)
    scores += np.array([0.0, 3.0, -2.0, 5.0])  # each label has its own zero
    shared = choose_thresholds(gold, scores, "micro_f1")
    assert len(set(shared)) == 1
    own = choose_thresholds(gold, scores, "macro_f1")
    assert own == [best_cut(gold[:, k], scores[:, k]) for k in range(4)]
    gold[:, 2] = False
    gold[: FEWEST_TEXTS - 1, 2] = True  # one text too few
    own = choose_thresholds(gold, scores, "macro_f1")
    assert own[2] == choose_thresholds(gold, scores, "micro_f1")[0]
    assert given_labels(np.array([0.1, 2.0, -1.0]), [0.0, 0.0, -1.0]) == [1, 0, 2]


@pytest.mark.parametrize(("metric", "average"), [("micro_f1", "micro"), ("macro_f1", "macro")])
def test_scores_are_scikit_learns_and_judged_with_intervals(metric: str, average: str) -> None:
    gold, scores = drawn(2, texts=300)
    counts = count_labels(gold, scores >= 0.5)
    expected = f1_score(gold, scores >= 0.5, average=average)
    assert COUNT_SCORES[metric].of(counts) == pytest.approx(expected)
    assert counts[..., GOLD].sum() == gold.sum()
    noise = count_labels(gold, np.random.default_rng(3).random(gold.shape) < 0.3)
    outcomes = [
        ArmOutcome(name, "fine-tuning", "lora", [1], [], Cost(seconds), 1.0, found=[found])
        for name, seconds, found in (("sigmoide", 9.0, counts), ("azar", 1.0, noise))
    ]
    judged = judge(outcomes, None, list("aeño"), None, Rules(metric=metric, resamples=1000))  # type: ignore[arg-type]
    assert judged.recommendation.arm == "sigmoide"
    arm = judged.arms[0]
    assert arm.score == pytest.approx(expected) and arm.ci95[0] < expected < arm.ci95[1]
    assert set(arm.scores) == {"micro_f1", "macro_f1"}
    assert [c.f1 for c in arm.per_class] == pytest.approx(list(f1_score(gold, scores >= 0.5, average=None)))


def test_a_label_without_gold_does_not_count_in_the_mean() -> None:
    gold = np.array([[True, False], [False, False]])
    assert COUNT_SCORES["macro_f1"].of(count_labels(gold, gold)) == 1
    assert COUNT_SCORES["macro_f1"].of(count_labels(np.zeros_like(gold), gold)) == 0
