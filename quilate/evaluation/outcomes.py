"""What an arm hands over to be judged: its probabilities on the shared test items and what it cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from quilate.tasks.task import Metric

if TYPE_CHECKING:  # it stands on this module
    from quilate.evaluation.schema import SearchEvidence, ShotsEvidence

Phase = Literal["baseline", "in-context", "pretraining", "adaptation", "fine-tuning", "alignment"]


@dataclass(frozen=True)
class Cost:
    """What one run cost, everything it stands on included (upstream stages, hyper-parameter trials).

    Attributes:
        seconds: wall clock.
        train_tokens: tokens that training steps read.
        flops: floating-point operations of training.
        peak_memory_bytes: the largest resident memory of any of its processes.
        trainable_parameters: of the last training stage.
    """

    seconds: float
    train_tokens: int = 0
    flops: float = 0.0
    peak_memory_bytes: int = 0
    trainable_parameters: int = 0

    def __add__(self, later: Cost) -> Cost:
        """The cost of a stage and of a `later` one that builds on it."""
        return Cost(
            seconds=self.seconds + later.seconds,
            train_tokens=self.train_tokens + later.train_tokens,
            flops=self.flops + later.flops,
            peak_memory_bytes=max(self.peak_memory_bytes, later.peak_memory_bytes),
            trainable_parameters=later.trainable_parameters,
        )


@dataclass(frozen=True)
class ArmOutcome:
    """One way of solving the task, with what it answered.

    Attributes:
        name: as in the recipe; unique.
        phase: the last phase that shaped it.
        method: the field's term: "majority", "tfidf", "zero-shot", "lora", "full", ...
        seeds: the seeds of its runs.
        probabilities: for every seed (one array only if `seed_independent`): (items, labels), rows sum to 1; none
            where answers are sets.
        cost: of one run, the mean over seeds.
        cost_per_1000: seconds per 1,000 predictions.
        seed_independent: a deterministic arm: its one run stands for every seed.
        train_rows: labelled rows it saw, demonstrations included.
        counts: what was truncated, dropped, skipped, ...: name -> how many.
        learning_curves: per seed, rows {"step": int, "loss": float, "tokens": int, ...}; empty if nothing was trained.
        shots_curve: what each number of shots scored on dev, if several ways of prompting were tried.
        search: what each value of each searched setting scored on dev.
        stages: ids of the stages it stands on, for the lineage.
        leaked: its training text overlaps the test items.
        found: where answers are sets (spans of a document, labels of a text), for every seed: counts (items, labels, 4)
            as `evaluation.spans.count_spans` gives them.
        scored: where answers are texts, for every seed: (items, 2), exact match and token F1 of each.
    """

    name: str
    phase: Phase
    method: str
    seeds: list[int]
    probabilities: list[NDArray[np.floating]]
    cost: Cost
    cost_per_1000: float
    seed_independent: bool = False
    train_rows: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    learning_curves: list[list[dict[str, Any]]] = field(default_factory=list)
    shots_curve: list[ShotsEvidence] = field(default_factory=list)
    search: list[SearchEvidence] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)
    leaked: bool = False
    found: list[NDArray[np.integer]] = field(default_factory=list)
    scored: list[NDArray[np.floating]] = field(default_factory=list)

    @property
    def runs(self) -> int:
        """How many runs handed over their answers."""
        return len(self.probabilities) or len(self.found) or len(self.scored)


@dataclass(frozen=True)
class Rules:
    """The rules of evidence; fixed before anything is run.

    Attributes:
        metric: what is compared.
        margin: a difference too small to pay for, in 0..1 (0.02 is 2 points).
        confidence: of every interval.
        resamples: of the bootstrap.
        budget_seconds, budget_tokens: the same maximum for every arm; None is no limit.
        seed: of the bootstrap's random stream.
        allow_leak: judge in spite of a leak, with a warning.
    """

    metric: Metric = "accuracy"
    margin: float = 0.02
    confidence: float = 0.95
    resamples: int = 10_000
    budget_seconds: float | None = None
    budget_tokens: int | None = None
    seed: int = 0
    allow_leak: bool = False
