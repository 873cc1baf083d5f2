"""How many of a document's spans were found: counts, of which every score of an extractor is a ratio of sums.

A span is found exactly if start, end and label are right. After the exact ones, each remaining predicted span may stand
for at most one remaining gold span of its label that it overlaps, those of the longest overlap first: the "partial"
matches of MUC-5 (Chinchor & Sundheim 1993), worth half, here with the label right.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from quilate.tasks.extraction import Span

EXACT, PARTIAL, PREDICTED, GOLD = range(4)
PARTIAL_CREDIT = 0.5  # MUC-5


def count_spans(gold: Iterable[Span], predicted: Iterable[Span], labels: Sequence[str]) -> NDArray[np.int64]:
    """(labels, 4): spans found exactly, found in part only, predicted, gold; a span given twice counts once."""
    counts = np.zeros((len(labels), 4), dtype=np.int64)
    wanted, given = set(gold), set(predicted)
    for k, label in enumerate(labels):
        own_gold = {span for span in wanted if span.label == label}
        own_given = {span for span in given if span.label == label}
        exact = own_gold & own_given
        counts[k] = len(exact), _partial(own_gold - exact, own_given - exact), len(own_given), len(own_gold)
    return counts


def _partial(gold: set[Span], predicted: set[Span]) -> int:
    pairs = [
        (min(g.end, p.end) - max(g.start, p.start), g, p)
        for g in gold for p in predicted if g.start < p.end and p.start < g.end
    ]  # fmt: skip
    taken: set[tuple[str, Span]] = set()
    found = 0
    for _, g, p in sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2])):
        if ("gold", g) not in taken and ("predicted", p) not in taken:
            taken |= {("gold", g), ("predicted", p)}
            found += 1
    return found


def f1(found: NDArray[np.float64], predicted: NDArray[np.float64], gold: NDArray[np.float64]) -> NDArray[np.float64]:
    """2 x found / (predicted + gold); 0 where there is neither."""
    return np.asarray(2 * found / np.maximum(predicted + gold, 1))
