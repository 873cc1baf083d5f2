"""How often a model prefers what people preferred, on pairs it was not trained on.

Intervals come from the paired bootstrap of `quilate.evaluation.statistics`, whole groups (conversations, posts) drawn
together: pairs of one prompt are not independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quilate.evaluation.statistics import Interval, bootstrap

PARTS = 4  # margins and strengths are shown by quarters of the pairs


@dataclass(frozen=True)
class JudgedPairs:
    """Held-out pairs and what a model and a baseline make of them; all arrays are [P].

    Attributes:
        margin: the model's score of the better completion less that of the worse.
        tokens_better, tokens_worse: lengths of the completions.
        strength: how clear the judgement was; NaN where the source does not tell.
        groups: what is resampled together.
    """

    margin: NDArray[np.float64]
    tokens_better: NDArray[np.int64]
    tokens_worse: NDArray[np.int64]
    strength: NDArray[np.float64]
    groups: Sequence[str]


def length_direction(tokens_better: NDArray[np.int64], tokens_worse: NDArray[np.int64]) -> int:
    """1 if the longer completion is preferred more often (in training pairs), else -1."""
    return 1 if (np.sign(tokens_better - tokens_worse)).sum() >= 0 else -1


def pair_report(pairs: JudgedPairs, *, direction: int, resamples: int = 10_000) -> dict[str, Any]:
    """Accuracy on the pairs, beside that of preferring by length alone; JSON-able.

    Ties are decided by the parity of the pair's place, which is a coin that falls the same way every time.

    Args:
        direction: of `length_direction`, learned from the training pairs.
    """
    correct = _correct(pairs.margin)
    by_length = _correct(direction * (pairs.tokens_better - pairs.tokens_worse).astype(np.float64))
    drawn = bootstrap(
        np.ones(len(correct), dtype=np.int64), [[correct], [by_length]], 2, groups=list(pairs.groups),
        resamples=resamples,
    )  # fmt: skip
    longer = pairs.tokens_better - pairs.tokens_worse
    parts = {"better is longer": longer > 0, "better is shorter": longer < 0, "equally long": longer == 0}
    return {
        "pairs": len(correct),
        "groups": len(set(pairs.groups)),
        "accuracy": _numbers(drawn.score(0)),
        "length_only": _numbers(drawn.score(1)),
        "prefers": "longer" if direction > 0 else "shorter",
        "difference": _numbers(drawn.difference(0, 1)),
        "by_length": [
            {"part": name} | _part(correct, where, pairs, resamples) for name, where in parts.items() if where.any()
        ],
        "by_margin": _quarters(np.abs(pairs.margin), correct, pairs, resamples),
        "by_strength": _quarters(pairs.strength, correct, pairs, resamples),
    }


def _correct(margin: NDArray[np.float64]) -> NDArray[np.int64]:
    coin = np.arange(len(margin)) % 2
    return np.where(margin == 0, coin, margin > 0).astype(np.int64)


def _quarters(
    values: NDArray[np.float64], correct: NDArray[np.int64], pairs: JudgedPairs, resamples: int
) -> list[dict[str, Any]]:
    """Accuracy by quarters of the pairs in the order of `values`; equal values stay together, NaN is left out."""
    known = values[~np.isnan(values)]
    edges = np.unique(np.quantile(known, np.linspace(0, 1, PARTS + 1))) if len(known) else known
    if len(edges) == 1:
        edges = np.repeat(edges, 2)
    rows = []
    for low, high in pairwise(edges):
        where = (values >= low) & ((values < high) if high < edges[-1] else (values <= high))
        if where.any():
            rows.append({"from": float(low), "to": float(high)} | _part(correct, where, pairs, resamples))
    return rows


def _part(correct: NDArray[np.int64], where: NDArray[np.bool_], pairs: JudgedPairs, resamples: int) -> dict[str, Any]:
    chosen = np.flatnonzero(where).tolist()
    gold = np.ones(len(chosen), dtype=np.int64)
    groups = [pairs.groups[i] for i in chosen]
    drawn = bootstrap(gold, [[correct[chosen]]], 2, groups=groups, resamples=resamples)
    return {"pairs": len(chosen), "accuracy": _numbers(drawn.score(0))}


def _numbers(interval: Interval) -> dict[str, float]:
    return {name: round(float(getattr(interval, name)), 4) for name in ("estimate", "low", "high")}
