"""Scores freed from what the prompt alone makes a model say. Pure functions of scores; see the papers for why.

Shapes: I items, C content-free inputs, L labels.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Calibration = Literal["none", "contextual", "domain_pmi"]
Floats = NDArray[np.floating]

CONTENT_FREE = ("N/A", "", "[MASK]")  # Zhao et al. 2021, section 5


def contextual(scores: Floats, content_free: Floats) -> NDArray[np.float64]:
    """Contextual calibration (Zhao et al. 2021): divide by what the model says of nothing.

    softmax(result) is W p, renormalized, with W = diag(p_cf)^-1 and p_cf the mean of the content-free distributions.

    Args:
        scores: [I, L], -inf where an item has no such answer; content_free: [C, L], the same for all items, or
            [I, C, L].
    """
    with np.errstate(divide="ignore"):
        mean = np.log(_softmax(content_free).mean(axis=-2))
    return _less(scores, mean)


def domain_pmi(scores: Floats, unconditional: Floats) -> NDArray[np.float64]:
    """PMI_DC (Holtzman et al. 2021, section 3): log P(y | x) - log P(y | domain premise).

    Args:
        scores: [I, L], -inf where an item has no such answer; unconditional: [L] or [I, L], the answers' scores after
            the premise alone.
    """
    return _less(scores, unconditional)


def _less(scores: Floats, prior: Floats) -> NDArray[np.float64]:
    """The difference; an answer that an item does not have stays at -inf."""
    whole = np.asarray(scores, dtype=np.float64)
    result: NDArray[np.float64] = np.full(whole.shape, -np.inf)
    np.subtract(whole, prior, out=result, where=np.isfinite(whole))
    return result


def _softmax(scores: Floats) -> NDArray[np.float64]:
    powers = np.exp(np.asarray(scores, dtype=np.float64) - scores.max(axis=-1, keepdims=True))
    result: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return result
