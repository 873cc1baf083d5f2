"""How alike in-context learning and fine-tuning on the demonstrations are.

The measures of Dai et al. 2022 ("Why can GPT learn in-context?", section 4), each as published and without what was
found wrong with it (Deutch et al. 2023, "In-context learning and gradient descent revisited").

A prompt is read three ways: by the model alone (zero-shot), after demonstrations (in context), and by the model
fine-tuned on them. All functions compare what the last token saw and became.

Shapes: N items, L layers, H heads, T tokens of the item, P tokens of the demonstrations, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Right = NDArray[np.bool_]


@dataclass(frozen=True)
class Recall:
    """Rec2FTP: of what fine-tuning gets right and the model alone wrong, the share that in-context learning gets right.

    Attributes:
        share: None where fine-tuning gained nothing.
        found, gained: the two numbers it is the quotient of.
    """

    share: float | None
    found: int
    gained: int


def recall_of_gains(zero_shot: Right, tuned: Right, in_context: Right) -> Recall:
    """Rec2FTP from which items [N] each of the three gets right."""
    gained = ~zero_shot & tuned
    found = int((gained & in_context).sum())
    total = int(gained.sum())
    return Recall(found / total if total else None, found, total)


def cosine(a: Array, b: Array) -> Array:
    """Along the last axis; 0 where one of the two is zero."""
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    products: Array = (a * b).sum(axis=-1)
    found: Array = np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)
    return found


def similarity_of_updates(zero_shot: Array, tuned: Array, in_context: Array, *, normalized: bool = False) -> Array:
    """SimAOU: the cosine between what the demonstrations and what fine-tuning change in attention's output.

    Args:
        zero_shot, tuned, in_context: [..., D] attention outputs.
        normalized: divide each by its length first, as the paper does. It makes alike what is not: updates by
            independent noise of three times the output's squared length then have a cosine of exactly 1/4.

    Returns:
        [...]
    """
    if normalized:
        zero_shot, tuned, in_context = (_unit(x) for x in (zero_shot, tuned, in_context))
    return cosine(in_context - zero_shot, tuned - zero_shot)


def similarity_of_attention(a: Array, b: Array) -> Array:
    """SimAM: the cosine of two attention maps [..., H, T] over the item's own tokens, averaged over heads: [...]."""
    similarity: Array = cosine(a, b).mean(axis=-1)
    return similarity


def similarity_of_attention_changes(zero_shot: Array, tuned: Array, in_context: Array) -> Array:
    """SimAM of the changes: what the three maps share anyway is taken off first. Arguments [..., H, T] -> [...]."""
    return similarity_of_attention(in_context - zero_shot, tuned - zero_shot)


def order_of_tokens(in_context: Array, tuned: Array) -> float:
    """Kendall's tau-b between two weightings [P] of the demonstrations' tokens; 0 if one of them is constant."""
    from scipy.stats import kendalltau

    tau = float(kendalltau(in_context, tuned).statistic)
    return 0.0 if np.isnan(tau) else tau


def interval_of_mean(values: Array, *, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of a mean over items [N]."""
    draws = np.random.default_rng(seed).integers(0, len(values), size=(resamples, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def _unit(x: Array) -> Array:
    lengths = np.linalg.norm(x, axis=-1, keepdims=True)
    unit: Array = np.divide(x, lengths, out=np.zeros_like(x), where=lengths > 0)
    return unit
