"""Synthetic arms with known truth."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from quilate.evaluation.outcomes import ArmOutcome, Cost

LABELS = ["Infecciosas", "Tumores", "Endocrinas", "Mentales", "Ojo y oído", "Corazón", "Piel", "Riñón"]


def one_hot_like(predicted: NDArray[np.int64], labels: int, confidence: float = 0.7) -> NDArray[np.float64]:
    """Probabilities whose argmax is `predicted`."""
    rest = (1 - confidence) / (labels - 1)
    return np.where(np.arange(labels) == predicted[:, None], confidence, rest)


def answers(gold: NDArray[np.int64], right: NDArray[np.bool_], labels: int) -> NDArray[np.int64]:
    """Right where told, the next label elsewhere."""
    return np.where(right, gold, (gold + 1) % labels)


@pytest.fixture
def gold() -> NDArray[np.int64]:
    return np.random.default_rng(1).integers(0, len(LABELS), 1000)


MakeArm = Callable[..., ArmOutcome]


@pytest.fixture
def make_arm() -> MakeArm:
    def make(
        name: str,
        gold: NDArray[np.int64],
        rights: list[NDArray[np.bool_]],
        *,
        seconds: float = 10.0,
        phase: str = "fine-tuning",
        method: str = "lora",
        **more: object,
    ) -> ArmOutcome:
        return ArmOutcome(
            name=name,
            phase=phase,  # type: ignore[arg-type]
            method=method,
            seeds=list(range(1, len(rights) + 1)),
            probabilities=[one_hot_like(answers(gold, right, len(LABELS)), len(LABELS)) for right in rights],
            cost=more.pop("cost", Cost(seconds=seconds)),  # type: ignore[arg-type]
            cost_per_1000=1.0,
            **more,  # type: ignore[arg-type]
        )

    return make
