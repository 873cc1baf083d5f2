"""Learning-rate schedules: pure functions of the step."""

from __future__ import annotations

import math
from typing import Literal

Decay = Literal["linear", "cosine", "constant"]


def learning_rate(
    step: int, *, peak: float, total_steps: int, warmup_steps: int, decay: Decay, floor: float = 0.0
) -> float:
    """The learning rate of `step` (from 0): linear warm-up to `peak`, then decay to `floor * peak`.

    The first step trains at `peak / warmup_steps`, not at zero; the last step still trains.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    match decay:
        case "constant":
            factor = 1.0
        case "linear":
            factor = floor + (1 - floor) * (1 - progress)
        case "cosine":
            factor = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    return peak * factor
