from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as oracle

from quilate.errors import QuilateError
from quilate.evaluation import metrics

RNG = np.random.default_rng(3)
GOLD = RNG.integers(0, 4, 300)
PROBABILITIES = RNG.dirichlet(np.ones(5) * 0.7, 300)  # a fifth label that is never gold
PREDICTED = PROBABILITIES.argmax(axis=1)


def test_accuracy_and_confusion_agree_with_scikit_learn() -> None:
    assert metrics.accuracy(GOLD, PROBABILITIES) == pytest.approx(oracle.accuracy_score(GOLD, PREDICTED))
    assert (metrics.confusion(GOLD, PROBABILITIES) == oracle.confusion_matrix(GOLD, PREDICTED, labels=range(5))).all()


def test_macro_f1_averages_over_the_labels_that_occur_in_gold() -> None:
    expected = oracle.f1_score(GOLD, PREDICTED, labels=[0, 1, 2, 3], average="macro")
    assert metrics.macro_f1(GOLD, PROBABILITIES) == pytest.approx(expected)
    assert expected != pytest.approx(oracle.f1_score(GOLD, PREDICTED, average="macro"))  # which counts the fifth as 0


def test_macro_f1_by_hand() -> None:
    gold = np.array([0, 0, 1])
    probabilities = np.eye(2)[[0, 1, 1]]
    assert metrics.macro_f1(gold, probabilities) == pytest.approx(2 / 3)  # both labels: precision and recall 1 and 1/2


def test_per_class_counts_gold_and_answers() -> None:
    scores = metrics.per_class(GOLD, PROBABILITIES)
    assert [s.items for s in scores] == np.bincount(GOLD, minlength=5).tolist()
    assert [s.predicted for s in scores] == np.bincount(PREDICTED, minlength=5).tolist()
    expected = oracle.f1_score(GOLD, PREDICTED, labels=range(5), average=None, zero_division=0)
    assert [s.f1 for s in scores] == pytest.approx(list(expected))


def test_brier_and_log_loss_by_hand() -> None:
    gold = np.array([0, 1])
    probabilities = np.array([[0.8, 0.2], [0.6, 0.4]])
    found = metrics.calibration(gold, probabilities)
    assert found.brier == pytest.approx((2 * 0.04 + 2 * 0.36) / 2)
    assert found.log_loss == pytest.approx(-(np.log(0.8) + np.log(0.4)) / 2)
    certain = metrics.calibration(gold, np.array([[1.0, 0.0], [1.0, 0.0]]))
    assert np.isfinite(certain.log_loss)


def test_ece_is_small_for_honest_and_large_for_boastful_probabilities() -> None:
    rng = np.random.default_rng(0)
    honest = rng.dirichlet(np.ones(3), 20_000)
    gold = (honest.cumsum(axis=1) < rng.random(20_000)[:, None]).sum(axis=1)
    boastful = honest**4 / (honest**4).sum(axis=1, keepdims=True)
    assert metrics.calibration(gold, honest).ece < 0.015
    assert metrics.calibration(gold, boastful).ece > 0.15


def test_ece_of_a_constant_answer_is_its_distance_from_the_truth() -> None:
    gold = np.array([0] * 30 + [1] * 70)
    found = metrics.calibration(gold, np.tile([0.1, 0.9], (100, 1)))
    assert len(found.bins) == 1
    assert found.ece == pytest.approx(0.2)


def test_bins_have_equal_mass_and_hold_every_item() -> None:
    bins = metrics.reliability(GOLD, PROBABILITIES)
    assert len(bins) == 15
    assert sum(b.items for b in bins) == 300
    assert {b.items for b in bins} <= {19, 20, 21}


def test_temperature_is_recovered() -> None:
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(20_000, 6)) * 2
    true = metrics.with_temperature(logits, 1.0)
    gold = (true.cumsum(axis=1) < rng.random(20_000)[:, None]).sum(axis=1).clip(0, 5)
    overconfident = logits * 2.5
    temperature = metrics.fit_temperature(gold, overconfident)
    assert temperature == pytest.approx(2.5, rel=0.05)
    losses = [oracle.log_loss(gold, metrics.with_temperature(overconfident, t)) for t in (1.0, temperature)]
    assert losses[1] < losses[0]


@pytest.mark.parametrize("damage", ["nan", "negative", "sum", "shape"])
def test_impossible_probabilities_are_refused(damage: str) -> None:
    bad = PROBABILITIES.copy()
    if damage == "nan":
        bad[7, 0] = np.nan
    elif damage == "negative":
        bad[7] = [-0.1, 1.1, 0, 0, 0]
    elif damage == "sum":
        bad[7] *= 0.9
    else:
        bad = bad[:-1]
    with pytest.raises(QuilateError, match="arm X"):
        metrics.checked_probabilities(bad, 300, 5, of="arm X")
