"""Entity F1 by hand, by brute force, and resampled as a ratio of sums over documents."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from quilate.errors import QuilateError
from quilate.evaluation.judgement import judge
from quilate.evaluation.outcomes import ArmOutcome, Cost, Rules
from quilate.evaluation.spans import count_spans
from quilate.evaluation.statistics import COUNT_SCORES, resample
from quilate.tasks.bio import spans_of, tag_names
from quilate.tasks.extraction import Span

LABELS = ["FECHA", "LUGAR"]


def spans(*triples: tuple[int, int, str]) -> list[Span]:
    return [Span(*triple) for triple in triples]


@pytest.mark.parametrize(
    ("gold", "predicted", "counts"),
    [
        ([(0, 4, "LUGAR")], [(0, 4, "LUGAR")], [1, 0, 1, 1]),
        ([(0, 4, "LUGAR")], [(0, 5, "LUGAR")], [0, 1, 1, 1]),
        ([(0, 4, "LUGAR")], [(4, 8, "LUGAR")], [0, 0, 1, 1]),  # neighbours share no character
        ([(0, 4, "LUGAR"), (6, 9, "LUGAR")], [(0, 9, "LUGAR")], [0, 1, 1, 2]),  # one prediction stands for one
        ([(0, 9, "LUGAR")], [(0, 4, "LUGAR"), (5, 9, "LUGAR")], [0, 1, 2, 1]),
        ([(0, 9, "LUGAR"), (2, 5, "LUGAR")], [(0, 9, "LUGAR")], [1, 0, 1, 2]),  # the exact one is not used again
        ([], [(0, 4, "LUGAR")], [0, 0, 1, 0]),
        ([(0, 4, "LUGAR")], [], [0, 0, 0, 1]),
        ([(0, 4, "LUGAR"), (0, 4, "LUGAR")], [(0, 4, "LUGAR")], [1, 0, 1, 1]),
    ],
)
def test_counts_by_hand(
    gold: list[tuple[int, int, str]], predicted: list[tuple[int, int, str]], counts: list[int]
) -> None:
    found = count_spans(spans(*gold), spans(*predicted), LABELS)
    assert found.tolist() == [[0, 0, 0, 0], counts]


def test_another_label_is_no_find_and_counts_against_both() -> None:
    found = count_spans(spans((0, 4, "LUGAR")), spans((0, 4, "FECHA")), LABELS)
    assert found.tolist() == [[0, 0, 1, 0], [0, 0, 0, 1]]


def test_exact_counts_are_set_intersections_and_partial_ones_never_exceed_the_best_matching() -> None:
    rng = np.random.default_rng(4)
    for _ in range(60):
        gold, predicted = (
            {
                Span(int(s), int(s + w), "LUGAR")
                for s, w in zip(rng.integers(0, 12, 4), rng.integers(1, 5, 4), strict=True)
            }
            for _ in range(2)
        )
        exact, part, said, wanted = count_spans(gold, predicted, LABELS)[1]
        assert (exact, said, wanted) == (len(gold & predicted), len(predicted), len(gold))
        left, right = sorted(gold - predicted), sorted(predicted - gold)
        best = largest_matching(left, right)
        assert best / 2 <= part <= best  # greedy: maximal, hence at least half of the maximum


def largest_matching(left: list[Span], right: list[Span]) -> int:
    small, large = sorted([left, right], key=len)
    return max(
        sum(a.start < b.end and b.start < a.end for a, b in zip(small, order, strict=False))
        for order in itertools.permutations(large, len(small))
    )


def test_micro_f1_is_a_ratio_of_sums_by_hand() -> None:
    """Two documents: 1 of 1 found; 1 of 9 found with 1 predicted and 2 more in part."""
    counts = np.array([[[1, 0, 1, 1]], [[1, 2, 3, 9]]])
    total = counts.sum(axis=(0, 1)).astype(float)
    assert COUNT_SCORES["span_f1"].score(total) == pytest.approx(2 * 2 / (4 + 10))
    assert COUNT_SCORES["span_f1_partial"].score(total) == pytest.approx(2 * 3 / (4 + 10))
    assert COUNT_SCORES["span_f1"].score(np.zeros(4)) == 0


def test_exact_f1_is_that_of_seqeval() -> None:
    """Random tags of whole words, read as spans and counted here, and scored by seqeval in its strict IOB2 mode."""
    seqeval = pytest.importorskip("seqeval.metrics", reason="seqeval is not installed (the dev extra has it)")
    from seqeval.scheme import IOB2

    rng = np.random.default_rng(6)
    names = tag_names(LABELS)
    gold, predicted = random_tags(rng, 40, share_changed=0), random_tags(rng, 40, share_changed=0.2)
    counts = np.zeros(4)
    for wanted, said in zip(gold, predicted, strict=True):
        starts = 6 * np.arange(len(wanted))
        found = [spans_of(tags, starts, starts + 5, LABELS) for tags in (wanted, said)]
        counts += count_spans(*found, LABELS).sum(axis=0)
    words = [[[names[tag] for tag in tags] for tags in side] for side in (gold, predicted)]
    theirs = seqeval.f1_score(*words, mode="strict", scheme=IOB2)
    assert 0.2 < theirs < 0.95
    assert COUNT_SCORES["span_f1"].score(counts) == pytest.approx(theirs)


def random_tags(rng: np.random.Generator, documents: int, *, share_changed: float) -> list[np.ndarray]:
    """Well-formed tags, the same for every call but for whole entities that are given another label or left out."""
    drawn, fixed = [], np.random.default_rng(8)
    for _ in range(documents):
        tags: list[int] = []
        for _ in range(6):
            label, length = int(fixed.integers(0, 2)), int(fixed.integers(1, 4))
            if rng.random() < share_changed:
                label = 1 - label if rng.random() < 0.5 else 2
            tags += [0] * length if label == 2 else [1 + 2 * label, *[2 + 2 * label] * (length - 1)]
            tags += [0] * int(fixed.integers(0, 2))
        drawn.append(np.array(tags))
    return drawn


def simulated(rng: np.random.Generator, documents: int, recall: float) -> np.ndarray:
    """Counts of documents of very different lengths and difficulty."""
    gold = rng.integers(1, 6, documents)
    found = rng.binomial(gold, np.clip(rng.normal(recall, 0.3, documents), 0, 1))
    predicted = found + rng.poisson(1, documents)
    return np.stack([found, np.zeros_like(found), predicted, gold], axis=1)[:, None]


def test_a_resample_scores_sums_of_drawn_documents() -> None:
    counts = simulated(np.random.default_rng(1), 40, 0.6)
    draws = resample([[counts.sum(axis=1).astype(np.float32)]], COUNT_SCORES["span_f1"].score, resamples=3, seed=5)
    from quilate.rng import numpy_stream

    picks = numpy_stream(5, "bootstrap", "items").integers(0, 40, size=(3, 40))
    expected = [2 * c[..., 0].sum() / (c[..., 2].sum() + c[..., 3].sum()) for c in (counts[p] for p in picks)]
    assert draws.over_items[:, 0] == pytest.approx(expected)


def test_nominal_95_percent_of_a_ratio_covers_93_to_97_percent() -> None:
    """1,500 studies of 200 documents; truth from a million."""
    rng = np.random.default_rng(2)
    large = simulated(rng, 1_000_000, 0.6).sum(axis=(0, 1)).astype(float)
    truth = float(COUNT_SCORES["span_f1"].score(large))
    arms = [[simulated(rng, 200, 0.6).sum(axis=1).astype(np.float32)] for _ in range(1500)]
    draws = resample(arms, COUNT_SCORES["span_f1"].score, resamples=1000)
    intervals = [draws.score(arm) for arm in range(1500)]
    assert 0.93 <= np.mean([i.low <= truth <= i.high for i in intervals]) <= 0.97


def outcome(name: str, counts: np.ndarray, seconds: float, **keys: object) -> ArmOutcome:
    return ArmOutcome(name, "fine-tuning", "lora", [1], [], Cost(seconds), 1.0, found=[counts], **keys)  # type: ignore[arg-type]


def test_extractors_are_judged_like_classifiers() -> None:
    rng = np.random.default_rng(3)
    good = simulated(rng, 200, 0.9)
    bad = good.copy()
    bad[..., 0] //= 3
    rules = Rules(metric="span_f1", resamples=1000)
    found = judge([outcome("LoRA", good, 50), outcome("diccionario", bad, 1)], None, ["LUGAR"], None, rules)
    assert found.recommendation.arm == "LoRA"
    assert found.items == 200
    assert next(r.code for r in found.recommendation.reasons) == "scored_span_f1"
    arm = found.arms[0]
    sums = good.sum(axis=(0, 1))
    assert arm.score == arm.scores["span_f1"] == pytest.approx(2 * sums[0] / (sums[2] + sums[3]))
    assert arm.per_class[0].items == sums[3]
    assert arm.per_class[0].recall == pytest.approx(sums[0] / sums[3])
    assert (arm.confusion, arm.calibration) == (None, None)
    assert {c.test for c in found.comparisons} == {"bootstrap"}


def test_impossible_counts_are_refused() -> None:
    good = simulated(np.random.default_rng(3), 20, 0.9)
    rules = Rules(metric="span_f1", resamples=1000)
    more = good.copy()
    more[3, 0, 0] += 1 + more[3, 0, 3]
    with pytest.raises(QuilateError, match="arm X: more was found"):
        judge([outcome("X", more, 1)], None, ["LUGAR"], None, rules)
    with pytest.raises(QuilateError, match="arm Y: counts have shape"):
        judge([outcome("X", good, 1), outcome("Y", good[:-1], 1)], None, ["LUGAR"], None, rules)
    other = good.copy()
    other[0, 0, 3] += 1
    with pytest.raises(QuilateError, match="not scored on the same gold"):
        judge([outcome("X", good, 1), outcome("Y", other, 1)], None, ["LUGAR"], None, rules)
