"""Multinomial logistic regression, for whatever gives items as vectors: TF-IDF, or a frozen model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quilate.errors import DataError

NEVER = -1e9  # the score of a label that no training row has


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
