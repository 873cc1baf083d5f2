"""How often each of several tasks is trained on in one model.

Raffel et al. 2020 ("Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer"), section 3.5.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from quilate.rng import numpy_stream

T = TypeVar("T")


def mixing_weights(sizes: Mapping[str, int], *, temperature: float = 1.0, cap: int | None = None) -> dict[str, float]:
    """Each task's share: min(size, cap)^(1 / temperature), made to sum to 1.

    At temperature 1 it is proportional to the sizes; the higher, the more alike the shares become. `cap` keeps a large
    task from crowding out the others.
    """
    raised = {name: min(size, cap or size) ** (1 / temperature) for name, size in sizes.items()}
    return {name: value / sum(raised.values()) for name, value in raised.items()}


def apportion(total: int, weights: Mapping[str, float]) -> dict[str, int]:
    """`total` in whole numbers by weight, by largest remainders: no share is off by one or more."""
    counts = {name: int(total * weight) for name, weight in weights.items()}
    by_remainder = sorted(weights, key=lambda name: counts[name] - total * weights[name])
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def visits(parts: Mapping[str, Sequence[T]], counts: Mapping[str, int], seed: int) -> list[T]:
    """`counts[name]` things of each part; none twice before all of its part, in a new order each time."""
    chosen: list[T] = []
    for name, part in parts.items():
        for round_number in range(-(-counts[name] // len(part))):
            left = counts[name] - round_number * len(part)
            order = numpy_stream(seed, "visits", name, round_number).permutation(len(part))[:left]
            chosen += [part[i] for i in order]
    order = numpy_stream(seed, "visits").permutation(len(chosen))
    return [chosen[i] for i in np.asarray(order)]
