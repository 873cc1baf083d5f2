"""What an examination might have found, for the pages that show it."""

from __future__ import annotations

from typing import Any


def make_privacy() -> dict[str, Any]:
    """A model that kept what stood in its text a hundred times, and fails one of its gates."""

    def estimate(value: float, half: float) -> dict[str, float]:
        return {"value": value, "low": value - half, "high": value + half}

    exposure = [
        {"repeats": r, "canaries": 8, "bits": estimate(bits, 0.9), "bits_reference": estimate(1.5, 1.0),
         "written": written, "written_reference": 0}
        for r, bits, written in ((0, 1.4, 0), (1, 1.9, 0), (10, 5.25, 1), (100, 9.97, 8))
    ]  # fmt: skip
    attacks = [
        {"name": name, "auc": estimate(0.55, 0.04), "true_positives": estimate(0.03, 0.02)}
        for name in ("loss", "reference", "zlib", "min_k")
    ]
    return {
        "stage": "kept-s1", "model": "adapted-s1", "reference": "base", "corpus": "clínica", "epochs": 3.5,
        "members": 300, "others": 280, "controls": 1000, "exposure": exposure, "attacks": attacks,
        "extraction": {"asked": 290, "model": 3, "reference": 1, "alone": 2, "share": estimate(0.0069, 0.006),
                       "held_out_asked": 270, "held_out": 1},
        "gates": [{"name": "exposure", "limit": 2.0, "seen": 2.8, "passed": False},
                  {"name": "auc", "limit": 0.6, "seen": 0.59, "passed": True}],
    }  # fmt: skip
