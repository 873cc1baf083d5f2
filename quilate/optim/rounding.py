"""Stochastic rounding of fp32 to bf16.

A weight near 0.1 has bf16 neighbours 0.0005 apart; a fine-tuning step moves it by 0.00002. Rounded to nearest, such a
step is lost every time; rounded up with the probability of its remainder, it is kept on average (Gupta et al. 2015,
"Deep Learning with Limited Numerical Precision", section 3; Zamirai et al. 2020, "Revisiting BFloat16 Training").
"""

from __future__ import annotations

import torch
from torch import Tensor


def random_bits16(count: int, generator: torch.Generator) -> Tensor:
    """`count` independent uniform integers in [0, 65535], as int32: four a 64-bit draw, for draws are what costs."""
    draws = torch.empty((count + 3) // 4, dtype=torch.int64, device=generator.device)
    draws.random_(-(2**63), None, generator=generator)
    return draws.view(torch.int16)[:count].to(torch.int32).bitwise_and_(0xFFFF)


def stochastic_round_(target: Tensor, source: Tensor, generator: torch.Generator) -> None:
    """Write `source` (fp32, contiguous, flat) into `target` (bf16, same shape), each value rounded at random.

    The 16 bits that bf16 drops are a fraction in [0, 1); adding a uniform 16-bit number carries into the kept bits with
    exactly that probability. Infinities and NaN pass through unharmed because the guard before the update refuses them.
    """
    bits = source.view(torch.int32) + random_bits16(source.numel(), generator)
    target.copy_(bits.bitwise_and_(-0x10000).view(torch.float32))
