"""GPUs by name: what they can do and what an hour of one costs."""

from __future__ import annotations

from dataclasses import dataclass

from quilate.errors import UsageError


@dataclass(frozen=True)
class Gpu:
    """`peak_flops`: dense bf16 a second, from the maker's data sheet; `memory` in bytes; `price` of an hour in dollars.

    Prices are guesses of what renting one costs on demand; give your own with `--price`.
    """

    name: str
    peak_flops: float
    memory: float
    price: float


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("t4", 65e12, 16e9, 0.4),  # fp16: it has no bf16
        Gpu("l4", 121e12, 24e9, 0.7),
        Gpu("rtx4090", 165e12, 24e9, 0.5),
        Gpu("l40s", 362e12, 48e9, 1.2),
        Gpu("a100-40gb", 312e12, 40e9, 1.5),
        Gpu("a100-80gb", 312e12, 80e9, 2.0),
        Gpu("h100", 989e12, 80e9, 3.0),
        Gpu("h200", 989e12, 141e9, 3.5),
        Gpu("b200", 2250e12, 192e9, 6.0),
    )
}


def gpu_named(name: str) -> Gpu:
    """The GPU of the table.

    Raises:
        UsageError: it has none of that name.
    """
    if name.lower() not in GPUS:
        raise UsageError(f"no GPU '{name}' in the table", hint=f"known: {', '.join(GPUS)}")
    return GPUS[name.lower()]
