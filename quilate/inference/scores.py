"""What a scorer answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Normalization = Literal["mean", "sum", "first"]


@dataclass(frozen=True)
class LabelScores:
    """Scores of every label for every item.

    Attributes:
        scores: [items, labels] float64: log-probabilities, up to a constant in each row; higher is likelier.
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
