"""Logistic regression, for whatever gives items as vectors: TF-IDF, or a frozen model. Multinomial where an item has
one label; one against the rest where it may have several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quilate.errors import DataError
from quilate.tasks.labels import Item
from quilate.tasks.multi_label import MultiLabelTask, indicators
from quilate.tasks.task import Task

NEVER = -1e9  # the score of a label that no training row has; its negative, of one that all rows have


@dataclass(frozen=True)
class Logistic:
    """`weights` [labels, F] and `bias` [labels], in the order of the labels; `iterations` of the solver."""

    weights: np.ndarray
    bias: np.ndarray
    iterations: int


def labels_present(targets: Sequence[str], labels: Sequence[str]) -> list[str]:
    """The labels that training items have, in the order of `labels`.

    Raises:
        DataError: fewer than two.
    """
    present = [label for label in labels if label in set(targets)]
    if len(present) < 2:
        raise DataError(f"the training rows have one label only: {present}", hint="a classifier needs at least two")
    return present


def fit_logistic(features: Any, targets: Sequence[str], labels: Sequence[str], *, regularization: float) -> Logistic:
    """Fit with scikit-learn's LBFGS.

    Args:
        features: [items, F], dense or sparse.
        targets: each item's label.
        labels: all labels, in the order of the result's rows.
        regularization: inverse strength C of the L2 penalty.

    Raises:
        DataError: the items have fewer than two labels.
    """
    from sklearn.linear_model import LogisticRegression

    present = labels_present(targets, labels)
    model = LogisticRegression(C=regularization, max_iter=1000)
    model.fit(features, [present.index(target) for target in targets])
    weights, bias = model.coef_, model.intercept_
    if len(present) == 2:  # scikit-learn keeps one row for two classes
        weights, bias = np.vstack([-weights, weights]) / 2, np.hstack([-bias, bias]) / 2
    if len(present) < len(labels):  # a label that only dev or test has gets the lowest score, not a crash
        rows = [present.index(label) if label in present else None for label in labels]
        weights = np.stack([np.zeros(weights.shape[1]) if r is None else weights[r] for r in rows])
        bias = np.array([NEVER if r is None else bias[r] for r in rows])
    return Logistic(np.ascontiguousarray(weights), bias, int(max(model.n_iter_)))


def fit_one_vs_rest(features: Any, targets: NDArray[np.bool_], *, regularization: float) -> Logistic:
    """Fit one binary regression a label with scikit-learn's LBFGS: scores are log-odds.

    Args:
        features: [items, F], dense or sparse.
        targets: [items, labels] which labels each item has.
        regularization: inverse strength C of the L2 penalty.
    """
    from sklearn.linear_model import LogisticRegression

    labels = targets.shape[1]
    weights, bias, iterations = np.zeros((labels, features.shape[1])), np.zeros(labels), 0
    for label, has in enumerate(targets.T):
        if has.all() or not has.any():  # nothing to tell apart
            bias[label] = -NEVER if has.all() else NEVER
            continue
        model = LogisticRegression(C=regularization, max_iter=1000).fit(features, has)
        weights[label], bias[label] = model.coef_[0], model.intercept_[0]
        iterations = max(iterations, int(max(model.n_iter_)))
    return Logistic(weights, bias, iterations)


def fit_labels(
    task: Task, items: Sequence[Item], labels: Sequence[str], features: Any, *, regularization: float
) -> Logistic:
    """Fit the labels of items, as many as the task lets each have; `features` are the items'.

    Raises:
        DataError: see `fit_logistic`.
    """
    if isinstance(task, MultiLabelTask):
        return fit_one_vs_rest(features, indicators(items, labels), regularization=regularization)
    return fit_logistic(features, [item.label for item in items], labels, regularization=regularization)
