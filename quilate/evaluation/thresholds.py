"""From log-odds of labels to sets of labels: thresholds chosen on dev (the "SCut" of Yang 2001)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quilate.evaluation.spans import EXACT, GOLD, PREDICTED
from quilate.tasks.task import LabelSetMetric

# A label that fewer dev texts have is cut where all labels together are: its own best cut would be chance (guess; Yang
# 2001 shows that thresholds of rare categories overfit).
FEWEST_TEXTS = 10
EVEN = 0.0  # log-odds of one half: where there is nothing to choose by


def choose_thresholds(gold: NDArray[np.bool_], scores: NDArray[np.floating], metric: LabelSetMetric) -> list[float]:
    """The log-odds from which on a label is given, one a label, that do best on these texts.

    One for all labels for `micro_f1`, whose best thresholds are equal (Lipton, Elkan & Naryanaswamy 2014). For
    `macro_f1` each label's own, where at least `FEWEST_TEXTS` texts have it.

    Args:
        gold, scores: [texts, labels].
    """
    shared = best_cut(gold.ravel(), scores.ravel())
    if metric == "micro_f1":
        return [shared] * gold.shape[1]
    by_label = zip(gold.T, scores.T, strict=True)
    return [best_cut(has, score) if has.sum() >= FEWEST_TEXTS else shared for has, score in by_label]


def best_cut(gold: NDArray[np.bool_], scores: NDArray[np.floating]) -> float:
    """The threshold with the highest F1: between two scores, half way. Of equally good ones the highest.

    Args:
        gold, scores: [pairs] whether a text has a label, and the label's score.
    """
    if not gold.any():
        return EVEN
    order = np.argsort(-scores, kind="stable")
    ordered = np.asarray(scores, dtype=np.float64)[order]
    given = np.arange(1, len(ordered) + 1)
    f1 = 2 * np.cumsum(gold[order]) / (given + gold.sum())
    last_of_equals = np.append(ordered[1:] < ordered[:-1], True)
    best = int(np.argmax(np.where(last_of_equals, f1, -1.0)))
    below = ordered[best + 1] if best + 1 < len(ordered) else ordered[best] - 1.0
    return float((ordered[best] + below) / 2)


def count_labels(gold: NDArray[np.bool_], given: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[texts, labels, 4], as `evaluation.spans.count_spans` counts spans: a label is found exactly or not at all."""
    counts = np.zeros((*gold.shape, 4), dtype=np.int64)
    counts[..., EXACT], counts[..., PREDICTED], counts[..., GOLD] = gold & given, given, gold
    return counts


def given_labels(scores: Sequence[float] | NDArray[np.floating], thresholds: Sequence[float]) -> list[int]:
    """The places of the labels that a text is given, likeliest first."""
    above = [place for place, cut in enumerate(thresholds) if scores[place] >= cut]
    return sorted(above, key=lambda place: -scores[place])
