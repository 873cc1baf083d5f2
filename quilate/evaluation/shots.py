"""The k-shot curve: what each number of solved examples scores on the development items, and how far that depends on
the seed, the template and the order of the examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from quilate.evaluation import metrics
from quilate.evaluation.schema import Notice, ShotsEvidence
from quilate.evaluation.statistics import bootstrap
from quilate.tasks.task import LabelMetric

Shots = int | Literal["fit"]


@dataclass(frozen=True)
class TriedPrompt:
    """One way of prompting: its number of shots and what it scored every label of every dev item, [items, labels]."""

    shots: Shots
    scores: NDArray[np.floating]


def shots_curve(
    tried: Sequence[TriedPrompt],
    gold: NDArray[np.integer],
    labels: int,
    groups: Sequence[str] | None,
    *,
    metric: LabelMetric,
    resamples: int,
) -> list[ShotsEvidence]:
    """The curve of one arm, fewest shots first.

    Args:
        tried: of all seeds.
        gold: (items,) label indices of the dev items; groups: their clusters, or None.
    """
    numbers = sorted({t.shots for t in tried}, key=lambda n: (n == "fit", 0 if n == "fit" else n))
    probabilities = [[metrics.with_temperature(t.scores, 1.0) for t in tried if t.shots == n] for n in numbers]
    draws = bootstrap(
        gold,
        [[metrics.predictions(p) for p in runs] for runs in probabilities],
        labels,
        metric=metric,
        groups=groups,
        resamples=resamples,
    )
    curve = []
    for index, (shots, runs) in enumerate(zip(numbers, probabilities, strict=True)):
        interval = draws.score(index)
        scores = [getattr(metrics, metric)(gold, p) for p in runs]
        curve.append(
            ShotsEvidence(
                shots=shots,
                score=interval.estimate,
                ci95=(interval.low, interval.high),
                interval_over=interval.over,
                lowest=min(scores),
                highest=max(scores),
                runs=len(runs),
                items=len(gold),
            )
        )
    return curve


def spread_notice(arm: str, curve: Sequence[ShotsEvidence]) -> Notice:
    """How many ways were tried, and how far apart they were."""
    values = {
        "arm": arm,
        "runs": sum(point.runs for point in curve),
        "low": min(point.lowest for point in curve),
        "high": max(point.highest for point in curve),
        "items": curve[0].items,
    }
    return Notice(code="prompts_tried", values=values)
