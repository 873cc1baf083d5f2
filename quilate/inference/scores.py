"""What a scorer answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

# How an answer's log-probability is read: the sum over its tokens (`acc` of lm-evaluation-harness), their mean, that of
# the first alone, or the sum divided by the number of characters (`acc_norm` of lm-evaluation-harness).
Normalization = Literal["mean", "sum", "first", "characters"]

# How a linear model's numbers become scores: log-probabilities of labels of which a text has one, or each label's
# log-odds where it may have several.
Link = Literal["softmax", "sigmoid"]


@dataclass(frozen=True)
class LabelScores:
    """Scores of every label for every item.

    Attributes:
        scores: [items, labels] float64, higher is likelier: log-probabilities, up to a constant in each row; or, where
            an item may have several labels, their log-odds.
        truncated: items that were cut to fit the model.
        tokens: tokens computed; 0 for what is no language model.
        counts: what else befell the items: name -> how many.
        cost: money paid for them, in the currency of the prices.
    """

    scores: np.ndarray
    truncated: int
    tokens: int
    counts: dict[str, int] = field(default_factory=dict)
    cost: float = 0.0


def by_characters(found: LabelScores, answers: Sequence[Sequence[str]]) -> LabelScores:
    """Sums become sums over characters; `answers` are the texts of each item's, in the order of its scores."""
    scores = found.scores.copy()
    for row, texts in zip(scores, answers, strict=True):
        row[: len(texts)] /= [len(text) for text in texts]
    return replace(found, scores=scores)
