"""The k-shot curve: what each number of solved examples scores on the development items, and how far that depends on
the seed, the template and the order of the examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from quilate.evaluation.schema import Notice, ShotsEvidence
from quilate.evaluation.statistics import Array, resample

Shots = int | Literal["fit"]


@dataclass(frozen=True)
class TriedPrompt:
    """One way of prompting: its number of shots, and its answers to the dev items as (items, features)."""

    shots: Shots
    features: NDArray[np.float32]


def shots_curve(
    tried: Sequence[TriedPrompt],
    score: Callable[[Array], Array],
    groups: Sequence[str] | None,
    *,
    resamples: int,
) -> list[ShotsEvidence]:
    """The curve of one arm, fewest shots first.

    Args:
        tried: of all seeds.
        score: summed features (..., features) to scores (...).
        groups: the clusters of the dev items, or None.
    """
    numbers = sorted({t.shots for t in tried}, key=lambda n: (n == "fit", 0 if n == "fit" else n))
    runs = [[t.features for t in tried if t.shots == n] for n in numbers]
    draws = resample(runs, score, groups=groups, resamples=resamples)
    curve = []
    for index, (shots, own) in enumerate(zip(numbers, runs, strict=True)):
        interval = draws.score(index)
        scores = [float(score(features.sum(axis=0, dtype=np.float64))) for features in own]
        curve.append(
            ShotsEvidence(
                shots=shots,
                score=interval.estimate,
                ci95=(interval.low, interval.high),
                interval_over=interval.over,
                lowest=min(scores),
                highest=max(scores),
                runs=len(own),
                items=draws.items,
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
