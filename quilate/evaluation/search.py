"""What a search tried, as evidence: the score on the development items against each setting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quilate.evaluation.schema import SearchedValue, SearchEvidence
from quilate.evaluation.statistics import Array, Bootstrap, resample

Value = bool | int | float | str


@dataclass(frozen=True)
class Tried:
    """One trial of one seed: its settings, and its answers to the development items as (items, features)."""

    seed: int
    values: Mapping[str, Value]
    features: NDArray[np.float32]
    trainable_parameters: int


def search_evidence(
    tried: Sequence[Tried],
    score: Callable[[Array], Array],
    groups: Sequence[str] | None,
    *,
    margin: float,
    resamples: int,
) -> list[SearchEvidence]:
    """The curve of every setting that was searched.

    Where several settings were, a value stands for the best trial that has it, in every seed alike.

    Args:
        score: summed features (..., features) to scores (...).
        groups: the clusters of the development items, or None.
        margin: a difference too small to pay for.
    """
    return [_curve(key, tried, score, groups, margin, resamples) for key in (tried[0].values if tried else ())]


def _curve(
    key: str,
    tried: Sequence[Tried],
    score: Callable[[Array], Array],
    groups: Sequence[str] | None,
    margin: float,
    resamples: int,
) -> SearchEvidence:
    def points(trial: Tried) -> float:
        return float(score(trial.features.sum(axis=0, dtype=np.float64)))

    best: dict[Value, dict[int, Tried]] = {}
    for trial in tried:
        of_value = best.setdefault(trial.values[key], {})
        if trial.seed not in of_value or points(trial) > points(of_value[trial.seed]):
            of_value[trial.seed] = trial
    if all(isinstance(value, int | float) for value in best):
        best = dict(sorted(best.items()))
    runs = [list(of_value.values()) for of_value in best.values()]
    draws = resample([[t.features for t in r] for r in runs], score, groups=groups, resamples=resamples)
    return SearchEvidence(
        key=key,
        points=[
            _point(value, run, [points(trial) for trial in run], draws, index)
            for index, (value, run) in enumerate(zip(best, runs, strict=True))
        ],
        enough=_enough(list(best), draws, margin),
    )


def _point(value: Value, runs: Sequence[Tried], scores: Sequence[float], draws: Bootstrap, index: int) -> SearchedValue:
    interval = draws.score(index)
    return SearchedValue(
        value=value,
        score=interval.estimate,
        ci95=(interval.low, interval.high),
        interval_over=interval.over,
        lowest=min(scores),
        highest=max(scores),
        runs=len(runs),
        items=draws.items,
        trainable_parameters=runs[0].trainable_parameters,
    )


def _enough(values: Sequence[Value], draws: Bootstrap, margin: float) -> int | float | None:
    """The least value from which more cannot be worth the margin: best - it stays below, at the upper 95 % bound."""
    best = int(np.argmax(draws.scores))
    for index, value in enumerate(values):
        if isinstance(value, int | float) and (index == best or draws.difference(best, index).high < margin):
            return value
    return None
