"""Which tokens a masked language model must guess (Devlin et al. 2019, section 3.1; Liu et al. 2019, section 4.1)."""

from __future__ import annotations

import numpy as np

from quilate.data.packing import Example

MASKED_SHARE = 0.15
REPLACED_BY_MASK, REPLACED_BY_RANDOM = 0.8, 0.1  # the remaining tenth stays as it is, and is predicted all the same


def mask_tokens(
    id: str, tokens: np.ndarray, stream: np.random.Generator, *, mask_token: int, vocabulary: int, keep: frozenset[int]
) -> Example:
    """Hide 15 % of a document's tokens (at least one): 80 % become the mask, 10 % a random token, 10 % stay.

    Args:
        keep: special tokens; they are never hidden and never drawn.
    """
    candidates = np.flatnonzero(~np.isin(tokens, list(keep)))
    count = min(len(candidates), max(1, round(MASKED_SHARE * len(candidates))))
    chosen = stream.permutation(candidates)[:count]
    fate = stream.random(count)
    hidden = tokens.copy()
    hidden[chosen[fate < REPLACED_BY_MASK]] = mask_token
    random = chosen[(fate >= REPLACED_BY_MASK) & (fate < REPLACED_BY_MASK + REPLACED_BY_RANDOM)]
    ordinary = np.array([t for t in range(vocabulary) if t not in keep]) if len(random) else np.empty(0, dtype=np.int64)
    hidden[random] = stream.choice(ordinary, len(random)) if len(random) else hidden[random]
    supervised = np.zeros(len(tokens), dtype=bool)
    supervised[chosen] = True
    return Example(id, hidden, supervised, answers=tokens)
