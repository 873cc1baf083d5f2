"""Training against every configuration of a peer, without measuring the hopeless ones again and again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.harness import (
    Disagreement,
    Measurement,
    Quantity,
    Ratio,
    Side,
    best_of,
    compare,
    measured_peak,
    require_close,
    run_round,
)

TOKENS_A_SECOND = Quantity("training speed", "tokens/s", "higher")

# The first step's loss is the forward pass alone. In bf16 a logit of SmolLM2 has an error of about 0.1 and the mean
# over two thousand tokens one of about 0.005 (guess); another mask or another shift of the labels changes it by far
# more than this.
LOSS_TOLERANCE = 0.02

# In fp32 every step must agree, updates included: the same gradient, clipping, schedule and AdamW. What is left is the
# order of sums, which Adam's first steps amplify where a gradient is near zero (guesses).
FP32_TOLERANCE = {"first": 2e-4, "later": 2e-3}

# name -> format of the weights, and whether torch's autocast to bf16 is on.
PRECISIONS = {
    "fp32": {"weights": "float32", "autocast": False},
    "bf16 autocast": {"weights": "float32", "autocast": True},
    "bf16 weights": {"weights": "bfloat16", "autocast": False},
}


def quilate_side(*, lora: bool = False, precision: str = "auto") -> Side:
    """quilate as its stages run it."""
    settings = {"precision": precision, "lora": lora}
    return Side("quilate", "benchmarks.trainers:quilate", settings, stage=True, ours=True)


def peer_sides(peer: str, function: str, settings: dict[str, Any]) -> list[Side]:
    """The peer in three number formats, as its users run it and under the allocator of quilate's stages."""
    return [
        Side(f"{peer}, {name}{', mimalloc' if stage else ''}", function, settings | precision, stage=stage)
        for name, precision in PRECISIONS.items()
        for stage in (False, True)
    ]


def contest(
    sides: Sequence[Side], cases: Sequence[dict[str, Any]], *, rounds: int, quick: bool
) -> tuple[list[Measurement], list[dict[str, float]]]:
    """One round with every side; then the others with ours and the fastest peer of either environment alone.

    Returns:
        What was measured, and the machine's matmul peak, measured before every round.

    Raises:
        Disagreement: the sides do not start from the same loss.
    """
    measured: list[Measurement] = []
    peaks = []
    running = list(sides)
    for number in range(rounds):
        peaks.append(measured_peak(quick=quick))
        measured += run_round(number, running, cases)
        if number == 0:
            checked_losses(measured)  # before more time is spent on what must not be compared
            best = [side for case in cases for side in best_of(measured, TOKENS_A_SECOND, case["name"])]
            running = [side for side in sides if side.ours or side in best]
    return measured, peaks


def checked_losses(measured: Sequence[Measurement]) -> list[str]:
    """That all sides start from the same loss.

    Raises:
        Disagreement: they do not.
    """
    return [require_close(measured, "first loss", LOSS_TOLERANCE)]


def checked_trajectory(measured: Sequence[Measurement], cases: Sequence[dict[str, Any]], *, lora: bool) -> list[str]:
    """Train once more with quilate in fp32, and compare every loss with the peer's in fp32.

    An adapter starts from random numbers of its own, which the first loss does not depend on: only that is compared.

    Raises:
        Disagreement: the losses differ.
    """
    exact = run_round(0, [quilate_side(lora=lora, precision="fp32")], cases)
    checks = []
    for own in exact:
        peer = next(m for m in measured if m.case == own.case and m.side.name.endswith(", fp32"))
        pairs = list(zip(own.facts["losses"], peer.facts["losses"], strict=True))[: 1 if lora else None]
        first, *later = (abs(a - b) for a, b in pairs)
        if not (first <= FP32_TOLERANCE["first"] and all(d <= FP32_TOLERANCE["later"] for d in later)):
            raise Disagreement(f"{own.case}: in fp32 the losses differ by more than {FP32_TOLERANCE}: {pairs}")
        words = f"first loss in fp32 within {first:.1e} of {peer.side.name}"
        checks.append(f"{own.case}: {words}" + (f", after updates within {max(later):.1e}" if later else ""))
    return checks


def headline(measured: Sequence[Measurement], quantity: Quantity, case: str) -> Ratio:
    """Ours against the best peer as its users run it."""
    best = best_of(measured, quantity, case)[0]
    return next(r for r in compare(measured, quantity) if r.case == case and r.against == best.name)


def share_of_peak(tokens_a_second: float, parameters: int, peak_tflops: float, *, flops: float = 6.0) -> float:
    """Floating-point operations a token a parameter (Kaplan et al. 2020: 6 in training; attention is left out)."""
    return tokens_a_second * flops * parameters / (peak_tflops * 1e12)
