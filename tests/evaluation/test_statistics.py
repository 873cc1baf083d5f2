from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import f1_score

from quilate.evaluation.statistics import Bootstrap, bootstrap, holm, items_to_bound, least_half_width, mcnemar


def predictions(right: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Two labels; gold is all zeros."""
    return np.where(right, 0, 1)


def run(rights: list[list[NDArray[np.bool_]]], **options: object) -> Bootstrap:
    items = len(rights[0][0])
    predicted = [[predictions(right) for right in runs] for runs in rights]
    return bootstrap(np.zeros(items, dtype=int), predicted, 2, **options)  # type: ignore[arg-type]


def test_bootstrap_variance_is_the_analytic_one() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(400) < 0.8, rng.random(400) < 0.6
    difference = a.astype(float) - b
    found = run([[a], [b]], resamples=20_000).difference(0, 1)
    assert found.estimate == pytest.approx(difference.mean())
    assert found.variance_items == pytest.approx(difference.var() / 400, rel=0.04)
    half = 1.96 * difference.std() / math.sqrt(400)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.05)


def test_macro_f1_of_a_resample_is_scikit_learns() -> None:
    """Draws of the bootstrap against scikit-learn on explicitly repeated items."""
    rng = np.random.default_rng(1)
    gold, predicted = rng.integers(0, 4, 60), rng.integers(0, 5, 60)
    draws = bootstrap(gold, [[predicted]], 5, metric="macro_f1", resamples=3, seed=9)
    from quilate.rng import numpy_stream

    picks = numpy_stream(9, "bootstrap", "items").integers(0, 60, size=(3, 60))
    for row, found in zip(picks, draws.over_items[:, 0], strict=True):
        expected = f1_score(gold[row], predicted[row], labels=np.unique(gold[row]), average="macro", zero_division=0)
        assert found == pytest.approx(expected)
    assert draws.scores[0] == pytest.approx(f1_score(gold, predicted, labels=[0, 1, 2, 3], average="macro"))


def test_same_seed_same_interval_and_other_seed_other_draws() -> None:
    right = np.random.default_rng(2).random(100) < 0.5
    first, again, other = (run([[right]], resamples=500, seed=s).over_items for s in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def _coverage(draws: Bootstrap, pairs: int, truth: float) -> float:
    hits = 0
    for k in range(pairs):
        interval = draws.difference(2 * k, 2 * k + 1)
        hits += interval.low <= truth <= interval.high
    return hits / pairs


def test_nominal_95_percent_covers_93_to_97_percent() -> None:
    """2,000 simulated studies of 150 items; the two arms of a study agree more often than chance. Truth: 10 points."""
    rng = np.random.default_rng(11)
    rights = []
    for _ in range(2000):
        shared, own = rng.random(150), rng.random(150)
        mixed = np.where(rng.random(150) < 0.5, shared, own)
        rights += [[shared < 0.7], [mixed < 0.6]]
    assert 0.93 <= _coverage(run(rights, resamples=1000), 2000, 0.1) <= 0.97


def test_clustered_items_are_covered_only_if_whole_groups_are_drawn() -> None:
    """30 patients of 8 items; half of the difference between the arms is the patient's."""
    rng = np.random.default_rng(12)
    groups = [f"paciente {g}" for g in range(30) for _ in range(8)]
    rights = []
    for _ in range(1500):
        p_a, p_b = (rng.beta(2, 2, 30).repeat(8) for _ in range(2))
        rights += [[rng.random(240) < p_a], [rng.random(240) < p_b]]
    assert 0.93 <= _coverage(run(rights, resamples=1000, groups=groups), 1500, 0.0) <= 0.97
    assert _coverage(run(rights, resamples=1000), 1500, 0.0) < 0.88


@pytest.mark.parametrize("scatter", [0.0, 0.02, 0.04])
def test_five_seeds_are_covered_when_seeds_are_drawn_too(scatter: float) -> None:
    """5 runs an arm whose true accuracies scatter around the arm's mean; 200 items."""
    rng = np.random.default_rng(13)
    rights = []
    for _ in range(2000):
        item = rng.random(200)
        own = [np.where(rng.random(200) < 0.5, item, rng.random(200)) for _ in range(5)]
        rights.append([run_items < rng.normal(0.7, scatter) for run_items in own])
    draws = run(rights, resamples=1000)
    assert 0.93 <= _coverage(draws, 1000, 0.0) <= 0.97
    scores = [draws.score(k) for k in range(2000)]
    assert {s.over for s in scores} == {"items and seeds"}
    assert 0.93 <= np.mean([s.low <= 0.7 <= s.high for s in scores]) <= 0.97


def test_under_five_seeds_the_interval_is_over_items_only_and_says_so() -> None:
    rng = np.random.default_rng(14)
    few, many, one = ([rng.random(100) < 0.6 for _ in range(s)] for s in (4, 5, 1))
    draws = run([few, many, one], seed_independent=[False, False, True], resamples=500)
    assert draws.score(0).over == "items"
    assert draws.score(1).over == "items and seeds"
    assert draws.score(2).over == "items"
    assert draws.difference(0, 1).over == "items"
    assert draws.difference(1, 2).over == "items and seeds"  # a deterministic arm has no seeds to draw
    assert draws.score(0).estimate == pytest.approx(np.mean([r.mean() for r in few]))


def test_agreement_on_few_items_is_no_proof_of_equality() -> None:
    right = np.ones(20, dtype=bool)
    draws = run([[right], [right]], resamples=500)
    assert draws.score(0).low == pytest.approx(0.8316, abs=1e-4)  # Clopper-Pearson for 20 of 20
    assert draws.difference(0, 1).high == pytest.approx(1 - 0.8316, abs=1e-4)
    assert draws.difference(0, 1).p == pytest.approx(1.0)
    assert least_half_width(1, 0.95) == pytest.approx(0.975)
    assert run([[right], [right]], groups=["una"] * 20, resamples=100).difference(0, 1).high > 0.97


def test_p_value_agrees_with_the_t_test_on_many_items() -> None:
    rng = np.random.default_rng(15)
    a, b = rng.random(500) < 0.66, rng.random(500) < 0.6
    expected = stats.ttest_rel(a.astype(float), b.astype(float)).pvalue
    assert run([[a], [b]], resamples=20_000).difference(0, 1).p == pytest.approx(expected, rel=0.15)


def test_five_hundred_items_and_six_arms_take_a_moment() -> None:
    rng = np.random.default_rng(16)
    gold = rng.integers(0, 21, 500)
    predicted = [[rng.integers(0, 21, 500) for _ in range(2)] for _ in range(6)]
    start = time.perf_counter()
    bootstrap(gold, predicted, 21, metric="macro_f1")
    assert time.perf_counter() - start < 5


def _pair(both: int, only_a: int, only_b: int, neither: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    a = np.repeat([True, True, False, False], [both, only_a, only_b, neither])
    b = np.repeat([True, False, True, False], [both, only_a, only_b, neither])
    return a, b


def test_mcnemar_exact_is_the_binomial_closed_form() -> None:
    found = mcnemar(*_pair(50, 9, 2, 5))
    assert found.exact
    assert (found.only_a, found.only_b) == (9, 2)
    assert found.p == pytest.approx(2 * sum(math.comb(11, k) for k in range(3)) / 2**11)
    assert mcnemar(*_pair(50, 0, 0, 5)).p == 1.0


def test_mcnemar_chi_square_is_the_published_example() -> None:
    """Agresti, Categorical Data Analysis: approval ratings 794/150/86/570; with continuity correction 16.82."""
    found = mcnemar(*_pair(794, 150, 86, 570))
    assert not found.exact
    assert found.p == pytest.approx(stats.chi2.sf((64 - 1) ** 2 / 236, 1))
    assert found.p == pytest.approx(4.115e-5, rel=1e-3)  # R: mcnemar.test(matrix(c(794, 86, 150, 570), 2))


def test_mcnemar_switches_at_25_disagreements() -> None:
    assert mcnemar(*_pair(10, 14, 10, 10)).exact
    assert not mcnemar(*_pair(10, 15, 10, 10)).exact


def test_holm_is_the_worked_example_and_never_reorders() -> None:
    """R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_is_the_closed_test_of_bonferroni() -> None:
    """Holm's adjusted p is the largest Bonferroni p over all subsets of hypotheses that contain it."""
    p = [0.012, 0.2, 0.03, 0.04]
    for index, adjusted in enumerate(holm(p)):
        subsets = [s for size in range(1, 5) for s in itertools.combinations(range(4), size) if index in s]
        assert adjusted == pytest.approx(max(min(1.0, len(s) * min(p[j] for j in s)) for s in subsets))


def test_the_number_of_items_that_decides_does_decide() -> None:
    """At the returned size, 4 of 5 fresh studies bring the upper bound below the margin."""
    rng = np.random.default_rng(17)

    def study(items: int) -> list[list[NDArray[np.bool_]]]:
        shared = rng.random(items)
        return [[np.where(rng.random(items) < 0.8, shared, rng.random(items)) < 0.7] for _ in range(2)]

    pilot = run(study(20_000), resamples=1000).difference(0, 1)
    at_200 = type(pilot)(0.0, -1, 1, 1.0, "items", pilot.variance_items * 100, 0.0, 0.02)
    needed = math.ceil(items_to_bound(at_200, 200, 200, margin=0.04))
    draws = run([arm for _ in range(200) for arm in study(needed)], resamples=400)
    decided = np.mean([draws.difference(2 * k, 2 * k + 1).high < 0.04 for k in range(200)])
    assert 0.7 <= decided <= 0.9


def test_no_number_of_items_decides_against_the_observed_difference_or_the_seeds() -> None:
    right = np.random.default_rng(18).random(200) < 0.5
    behind = run([[np.ones(200, dtype=bool)], [right]], resamples=200).difference(0, 1)
    assert items_to_bound(behind, 200, 200, margin=0.02) == math.inf
    noisy = type(behind)(0.0, -1, 1, 1.0, "items and seeds", 1e-4, 1.0, 0.01)
    assert items_to_bound(noisy, 200, 200, margin=0.02) == math.inf
