"""What kinds of answers are judged by: one class for answers that are one label, one for answers that are sets: the
spans of a document, the labels of a text.

Everything else in the judgement (intervals, comparisons, the recommendation) is the same for both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quilate.errors import QuilateError
from quilate.evaluation import metrics
from quilate.evaluation.answers import ANSWER_SCORES, EXACT_MATCH
from quilate.evaluation.outcomes import ArmOutcome
from quilate.evaluation.schema import BinEvidence, CalibrationEvidence, ClassEvidence, Notice
from quilate.evaluation.spans import EXACT, GOLD, PARTIAL, PREDICTED, f1
from quilate.evaluation.statistics import (
    COUNT_SCORES,
    LABEL_SET_METRICS,
    SPAN_METRICS,
    STATISTICS,
    Array,
    label_features,
    mean_score,
)
from quilate.tasks.task import AnswerMetric, LabelMetric, Metric

RARE_ITEMS = 10  # guess, from simulation: below it nominal 95 % intervals of macro-F1 cover about 90 %

Ints = NDArray[np.integer]


class Measure(Protocol):
    """How the outcomes of arms are scored on the same items.

    Attributes:
        items: how many there are.
        score: summed features (..., features) to scores (...).
    """

    items: int
    score: Callable[[Array], Array]

    def checked(self, outcome: ArmOutcome) -> ArmOutcome:
        """The outcome, its numbers possible ones.

        Raises:
            QuilateError: they are not, or are not about these items.
        """
        ...

    def features(self, outcome: ArmOutcome) -> list[NDArray[np.float32]]:
        """(items, features) for every run."""
        ...

    def scores(self, outcome: ArmOutcome) -> dict[Metric, list[float]]:
        """Every metric of this kind of answer, for every run."""
        ...

    def per_class(self, outcome: ArmOutcome) -> list[ClassEvidence]: ...

    def confusion(self, outcome: ArmOutcome) -> list[list[int]] | None: ...

    def calibration(self, outcome: ArmOutcome) -> CalibrationEvidence | None: ...

    def right(self, outcome: ArmOutcome) -> NDArray[np.bool_] | None:
        """(items,) what a single run got right, where items are right or wrong and the metric is their share."""
        ...

    def warnings(self) -> list[Notice]: ...


class LabelMeasure:
    """Answers that are labels: probabilities (items, labels) against gold labels (items,)."""

    def __init__(self, metric: LabelMetric, gold: Ints, labels: Sequence[str]) -> None:
        self.metric, self.gold, self.labels = metric, gold, labels
        self.items = len(gold)
        self.score = STATISTICS[metric].score
        if not (len(gold) and gold.min() >= 0 and gold.max() < len(labels)):
            raise QuilateError("gold: there must be items, and every label must be an index into the list of labels")

    def checked(self, outcome: ArmOutcome) -> ArmOutcome:
        shape = self.items, len(self.labels)
        probabilities = [
            metrics.checked_probabilities(p, *shape, of=f"arm {outcome.name}") for p in outcome.probabilities
        ]
        return dataclasses.replace(outcome, probabilities=list(probabilities))

    def features(self, outcome: ArmOutcome) -> list[NDArray[np.float32]]:
        answers = [metrics.predictions(p) for p in outcome.probabilities]
        return [label_features(self.metric, self.gold, answer, len(self.labels)) for answer in answers]

    def scores(self, outcome: ArmOutcome) -> dict[Metric, list[float]]:
        return {
            "accuracy": [metrics.accuracy(self.gold, p) for p in outcome.probabilities],
            "macro_f1": [metrics.macro_f1(self.gold, p) for p in outcome.probabilities],
        }

    def per_class(self, outcome: ArmOutcome) -> list[ClassEvidence]:
        runs = [metrics.per_class(self.gold, p) for p in outcome.probabilities]
        return [
            ClassEvidence(
                label=label,
                precision=float(np.mean([run[k].precision for run in runs])),
                recall=float(np.mean([run[k].recall for run in runs])),
                f1=float(np.mean([run[k].f1 for run in runs])),
                items=runs[0][k].items,
            )
            for k, label in enumerate(self.labels)
        ]

    def confusion(self, outcome: ArmOutcome) -> list[list[int]]:
        total: list[list[int]] = np.sum([metrics.confusion(self.gold, p) for p in outcome.probabilities], 0).tolist()
        return total

    def calibration(self, outcome: ArmOutcome) -> CalibrationEvidence:
        runs = [metrics.calibration(self.gold, p) for p in outcome.probabilities]
        pooled = metrics.reliability(np.tile(self.gold, len(runs)), np.concatenate(outcome.probabilities))
        return CalibrationEvidence(
            ece=float(np.mean([run.ece for run in runs])),
            brier=float(np.mean([run.brier for run in runs])),
            log_loss=float(np.mean([run.log_loss for run in runs])),
            bins=[BinEvidence(**dataclasses.asdict(b)) for b in pooled],
        )

    def right(self, outcome: ArmOutcome) -> NDArray[np.bool_] | None:
        if self.metric != "accuracy":
            return None
        return np.asarray(metrics.predictions(outcome.probabilities[0]) == self.gold)

    def warnings(self) -> list[Notice]:
        return _label_warnings(
            self.labels, [int((self.gold == k).sum()) for k in range(len(self.labels))],
            weigh_alike=self.metric == "macro_f1",
        )  # fmt: skip


class CountMeasure:
    """Answers that are sets: counts (items, labels, 4) as `count_spans` gives them for a document, `count_labels` for a
    text."""

    def __init__(self, metric: Metric, gold: Ints, labels: Sequence[str]) -> None:
        """`gold` (items, labels): how many there are to find."""
        self.gold, self.labels = gold, labels
        self.items = len(gold)
        self._own = COUNT_SCORES[metric]
        self._shown: list[Metric] = [*(SPAN_METRICS if metric in SPAN_METRICS else LABEL_SET_METRICS)]
        self.score = self._own.score

    def checked(self, outcome: ArmOutcome) -> ArmOutcome:
        shape = self.items, len(self.labels), 4
        for counts in outcome.found:
            if counts.shape != shape or not self.items:
                raise QuilateError(f"arm {outcome.name}: counts have shape {counts.shape}, the rule is {shape}")
            found = counts[..., EXACT] + counts[..., PARTIAL]
            if (counts < 0).any() or (found > np.minimum(counts[..., PREDICTED], counts[..., GOLD])).any():
                raise QuilateError(f"arm {outcome.name}: more was found than predicted, or than there is")
            if (counts[..., GOLD] != self.gold).any():
                raise QuilateError(f"arm {outcome.name}: it was not scored on the same gold answers as the others")
        return outcome

    def features(self, outcome: ArmOutcome) -> list[NDArray[np.float32]]:
        return [self._own.features(counts) for counts in outcome.found]

    def scores(self, outcome: ArmOutcome) -> dict[Metric, list[float]]:
        return {metric: [COUNT_SCORES[metric].of(counts) for counts in outcome.found] for metric in self._shown}

    def per_class(self, outcome: ArmOutcome) -> list[ClassEvidence]:
        """Of exact matches; `items` are gold spans or labels."""
        runs = np.stack([counts.sum(axis=0) for counts in outcome.found]).astype(np.float64)  # (runs, labels, 4)
        exact, predicted, gold = runs[..., EXACT], runs[..., PREDICTED], runs[..., GOLD]
        precision, recall = exact / np.maximum(predicted, 1), exact / np.maximum(gold, 1)
        means = [values.mean(axis=0) for values in (precision, recall, f1(exact, predicted, gold))]
        return [
            ClassEvidence(
                label=label,
                precision=float(means[0][k]),
                recall=float(means[1][k]),
                f1=float(means[2][k]),
                items=int(gold[0, k]),
            )
            for k, label in enumerate(self.labels)
        ]

    def confusion(self, outcome: ArmOutcome) -> None:
        return None

    def calibration(self, outcome: ArmOutcome) -> None:
        return None

    def right(self, outcome: ArmOutcome) -> None:
        return None

    def warnings(self) -> list[Notice]:
        gold = [int(count) for count in self.gold.sum(axis=0)]
        return _label_warnings(self.labels, gold, weigh_alike=self._own.by_label)


class AnswerMeasure:
    """Answers that are texts: each has scores of its own, and an arm their mean."""

    labels: Sequence[str] = ()

    def __init__(self, metric: AnswerMetric, items: int) -> None:
        self.metric, self.items = metric, items
        self.score: Callable[[Array], Array] = mean_score

    def checked(self, outcome: ArmOutcome) -> ArmOutcome:
        shape = self.items, len(ANSWER_SCORES)
        for scores in outcome.scored:
            if scores.shape != shape or not self.items:
                raise QuilateError(f"arm {outcome.name}: scores have shape {scores.shape}, the rule is {shape}")
            if not ((scores >= 0) & (scores <= 1)).all():
                raise QuilateError(f"arm {outcome.name}: an answer's score is not between 0 and 1")
        return outcome

    def features(self, outcome: ArmOutcome) -> list[NDArray[np.float32]]:
        own = [scores[:, ANSWER_SCORES[self.metric]] for scores in outcome.scored]
        return [np.stack([scores, np.ones(self.items)], axis=1).astype(np.float32) for scores in own]

    def scores(self, outcome: ArmOutcome) -> dict[Metric, list[float]]:
        places = ANSWER_SCORES.items()
        return {metric: [float(scores[:, place].mean()) for scores in outcome.scored] for metric, place in places}

    def per_class(self, outcome: ArmOutcome) -> list[ClassEvidence]:
        return []

    def confusion(self, outcome: ArmOutcome) -> None:
        return None

    def calibration(self, outcome: ArmOutcome) -> None:
        return None

    def right(self, outcome: ArmOutcome) -> NDArray[np.bool_] | None:
        return np.asarray(outcome.scored[0][:, EXACT_MATCH] == 1) if self.metric == "exact_match" else None

    def warnings(self) -> list[Notice]:
        return []


def _label_warnings(labels: Sequence[str], gold: Sequence[int], *, weigh_alike: bool) -> list[Notice]:
    """Labels that the test items say nothing, or little, about."""
    found = []
    absent = [label for label, count in zip(labels, gold, strict=True) if not count]
    if absent:
        values = {"count": len(absent), "labels": len(labels), "names": absent}
        found.append(Notice(code="absent_labels", values=values))
    rare = sum(0 < count < RARE_ITEMS for count in gold)
    if weigh_alike and rare:
        found.append(Notice(code="rare_labels", values={"count": rare, "items": RARE_ITEMS}))
    return found
