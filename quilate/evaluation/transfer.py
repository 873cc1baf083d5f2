"""What models know of several tasks: what each step gained on one and lost on others, and what learning together cost.

Sources: Phang et al. 2018 ("Sentence Encoders on STILTs": an intermediate task, judged by what it is worth on the
target); Lopez-Paz & Ranzato 2017 ("Gradient Episodic Memory": the matrix of scores after each step).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quilate.evaluation.schema import TaskEffect, TaskScore
from quilate.evaluation.statistics import Array, Bootstrap, resample
from quilate.tasks.task import Metric


@dataclass(frozen=True)
class AskedTask:
    """A task that the models were asked: its clusters of test items, or None, and the score of summed features."""

    metric: Metric
    score: Callable[[Array], Array]
    groups: Sequence[str] | None


@dataclass(frozen=True)
class AskedModel:
    """A model's answers to the test items of one task.

    Attributes:
        on: the model it was trained from; None for one that was not trained here.
        method: how.
        trained_on: the tasks of its own step.
        features: (items, features) of every run.
    """

    model: str
    on: str | None
    method: str | None
    task: str
    trained_on: Sequence[str]
    features: Sequence[NDArray[np.float32]]


def transfer_evidence(
    asked: Sequence[AskedModel], tasks: Mapping[str, AskedTask], *, resamples: int
) -> tuple[list[TaskScore], list[TaskEffect]]:
    """Every model's score on every task, and the paired differences that say what a step was worth.

    Effects are of three kinds. `step`: a model against the one it was trained from, on every task: what it gained and
    what it forgot. `transfer`: a model trained on a task after others, against one trained on it directly by the same
    method, on that task. `interference`: a model of several tasks, against one of each alone by the same method from
    the same start.
    """
    scores: list[TaskScore] = []
    effects: list[TaskEffect] = []
    for name, task in tasks.items():
        rows = [row for row in asked if row.task == name]
        draws = resample(
            [list(row.features) for row in rows], task.score, groups=task.groups,
            seed_independent=[len(row.features) == 1 for row in rows], resamples=resamples,
        )  # fmt: skip
        scores += [_score(row, task, draws, index) for index, row in enumerate(rows)]
        place = {row.model: index for index, row in enumerate(rows)}
        for kind, one, other in _pairs(rows, name):
            interval = draws.difference(place[one], place[other])
            effects.append(
                TaskEffect(
                    kind=kind,
                    model=one,
                    against=other,
                    task=name,
                    difference=interval.estimate,
                    ci95=(interval.low, interval.high),
                    interval_over=interval.over,
                    items=draws.items,
                )
            )
    return scores, effects


def _score(row: AskedModel, task: AskedTask, draws: Bootstrap, index: int) -> TaskScore:
    interval = draws.score(index)
    return TaskScore(
        model=row.model,
        on=row.on,
        task=row.task,
        metric=task.metric,
        score=interval.estimate,
        ci95=(interval.low, interval.high),
        interval_over=interval.over,
        runs=[float(task.score(run.sum(axis=0, dtype=np.float64))) for run in row.features],
        items=draws.items,
        trained_on=list(row.trained_on),
    )


def _pairs(rows: Sequence[AskedModel], task: str) -> list[tuple[str, str, str]]:
    """(kind of effect, model, what it is set against) for one task, from the models' rows of it."""
    by_name = {row.model: row for row in rows}
    pairs = []
    for row in rows:
        if row.trained_on and row.on in by_name:
            pairs.append(("step", row.model, row.on))
        start = _start(row, by_name)
        for other in rows:
            alone = other.model != row.model and list(other.trained_on) == [task] and other.method == row.method
            if alone and len(row.trained_on) > 1 and task in row.trained_on and other.on == row.on:
                pairs.append(("interference", row.model, other.model))
            if alone and list(row.trained_on) == [task] and row.on != start and other.on == start:
                pairs.append(("transfer", row.model, other.model))
    return pairs


def _start(row: AskedModel, by_name: Mapping[str, AskedModel]) -> str | None:
    """The model at the bottom of a chain of trained ones, itself trained on no task here."""
    below = row.on
    while below is not None and below in by_name and by_name[below].trained_on:
        below = by_name[below].on
    return below
