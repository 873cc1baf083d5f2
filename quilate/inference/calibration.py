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
        scores: [I, L]; content_free: [C, L], the same for all items, or [I, C, L].
    """
    mean = _softmax(content_free).mean(axis=-2)
    result: NDArray[np.float64] = np.asarray(scores, dtype=np.float64) - np.log(mean)
    return result


def domain_pmi(scores: Floats, unconditional: Floats) -> NDArray[np.float64]:
    """PMI_DC (Holtzman et al. 2021, section 3): log P(y | x) - log P(y | domain premise).

    Args:
        scores: [I, L]; unconditional: [L], the labels' scores after the premise alone.
    """
    result: NDArray[np.float64] = np.asarray(scores, dtype=np.float64) - unconditional
    return result


def _softmax(scores: Floats) -> NDArray[np.float64]:
    powers = np.exp(np.asarray(scores, dtype=np.float64) - scores.max(axis=-1, keepdims=True))
    result: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return result
