"""What kinds of answers are judged by: one class for answers that are labels, one for answers that are spans.

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
from quilate.evaluation.outcomes import ArmOutcome
from quilate.evaluation.schema import BinEvidence, CalibrationEvidence, ClassEvidence, Notice
from quilate.evaluation.spans import EXACT, GOLD, PARTIAL, PREDICTED, f1
from quilate.evaluation.statistics import SPAN_SCORES, STATISTICS, Array, label_features
from quilate.tasks.task import LabelMetric, Metric

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


class SpanMeasure:
    """Answers that are spans: counts (items, labels, 4) as `count_spans` gives them for a document."""

    def __init__(self, metric: Metric, gold: Ints, labels: Sequence[str]) -> None:
        """`gold` (items, labels): how many spans there are to find."""
        self.gold, self.labels = gold, labels
        self.items = len(gold)
        self.score = SPAN_SCORES[metric]

    def checked(self, outcome: ArmOutcome) -> ArmOutcome:
        shape = self.items, len(self.labels), 4
        for counts in outcome.spans:
            if counts.shape != shape or not self.items:
                raise QuilateError(f"arm {outcome.name}: counts have shape {counts.shape}, the rule is {shape}")
            found = counts[..., EXACT] + counts[..., PARTIAL]
            if (counts < 0).any() or (found > np.minimum(counts[..., PREDICTED], counts[..., GOLD])).any():
                raise QuilateError(f"arm {outcome.name}: more spans were found than predicted, or than there are")
            if (counts[..., GOLD] != self.gold).any():
                raise QuilateError(f"arm {outcome.name}: it was not scored on the same gold spans as the others")
        return outcome

    def features(self, outcome: ArmOutcome) -> list[NDArray[np.float32]]:
        return [counts.sum(axis=1).astype(np.float32) for counts in outcome.spans]

    def scores(self, outcome: ArmOutcome) -> dict[Metric, list[float]]:
        sums = [counts.sum(axis=(0, 1)).astype(np.float64) for counts in outcome.spans]
        return {
            "span_f1": [float(SPAN_SCORES["span_f1"](total)) for total in sums],
            "span_f1_partial": [float(SPAN_SCORES["span_f1_partial"](total)) for total in sums],
        }

    def per_class(self, outcome: ArmOutcome) -> list[ClassEvidence]:
        """Of exact matches; `items` are gold spans."""
        runs = np.stack([counts.sum(axis=0) for counts in outcome.spans]).astype(np.float64)  # (runs, labels, 4)
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
        return _label_warnings(self.labels, [int(count) for count in self.gold.sum(axis=0)], weigh_alike=False)


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
