"""Mean rewards with what is known about their uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
SEED = 20  # of the resampling alone


def mean_report(values: NDArray[np.floating[Any]], groups: Sequence[str]) -> dict[str, Any]:
    """The mean of values of any range with its 95 % percentile interval, whole groups drawn together; JSON-able.

    Args:
        values: [items]; groups: of each item, what is resampled together.
    """
    _, unit = np.unique(np.array(groups), return_inverse=True)
    units = int(unit.max()) + 1
    sums = np.bincount(unit, weights=values.astype(np.float64), minlength=units)
    sizes = np.bincount(unit, minlength=units)
    drawn = np.random.default_rng(SEED).integers(0, units, size=(RESAMPLES, units))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(means, (0.025, 0.975))
    numbers = {"mean": float(np.mean(values)), "low": float(low), "high": float(high)}
    return {name: round(number, 4) for name, number in numbers.items()} | {"items": len(values), "groups": units}
