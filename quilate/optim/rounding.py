"""Stochastic rounding of fp32 to bf16.

A weight near 0.1 has bf16 neighbours 0.0005 apart; a fine-tuning step moves it by 0.00002. Rounded to nearest, such a
step is lost every time; rounded up with the probability of its remainder, it is kept on average (Gupta et al. 2015,
"Deep Learning with Limited Numerical Precision", section 3; Zamirai et al. 2020, "Revisiting BFloat16 Training").
"""

from __future__ import annotations

import torch
from torch import Tensor


def draw_key(generator: torch.Generator) -> int:
    """The 64-bit key of one rounding: the generator is asked once a parameter and not once an element."""
    return int(torch.randint(-(2**63), 2**63 - 1, (1,), generator=generator, device=generator.device))


def random_bits16(count: int, key: int, *, first: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """Uniform integers in [0, 65535] for elements `first` (an even number) to `first + count`, as int32.

    A hash of key and element number, so any part of an array can be rounded alone: on a GPU, in blocks, or in a fused
    kernel, with the same bits. The mixing is lowbias32 (Wellons 2018, "Prospecting for Hash Functions"), half of the
    key entering in its middle; one 32-bit word serves two elements.
    """
    words = torch.arange(first // 2, (first + count + 1) // 2, dtype=torch.int64, device=device).to(torch.int32)
    words ^= _as_int32(key)
    words ^= (words >> 16) & 0xFFFF  # the shift of a signed number drags its sign along
    words *= 0x7FEB352D
    words ^= _as_int32(key >> 32)
    words ^= (words >> 15) & 0x1FFFF
    words *= _as_int32(0x846CA68B)
    words ^= (words >> 16) & 0xFFFF
    return words.view(torch.int16)[:count].to(torch.int32).bitwise_and_(0xFFFF)


def stochastic_round_(target: Tensor, source: Tensor, key: int, *, first: int = 0) -> None:
    """Write `source` (fp32, contiguous, flat) into `target` (bf16, same shape), each value rounded at random.

    The 16 bits that bf16 drops are a fraction in [0, 1); adding a uniform 16-bit number carries into the kept bits with
    exactly that probability. Infinities and NaN pass through unharmed because the guard before the update refuses them.

    Args:
        key: from `draw_key`; first: the number of `source[0]` in the array it is a part of, an even number.
    """
    bits = source.view(torch.int32) + random_bits16(source.numel(), key, first=first, device=source.device)
    target.copy_(bits.bitwise_and_(-0x10000).view(torch.float32))


def _as_int32(value: int) -> int:
    """The low 32 bits as torch's int32 has them."""
    return (value + 2**31) % 2**32 - 2**31
