"""What watches over a training run: losses that spike, and memory that does not suffice."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean, pstdev
from typing import Generic, Literal, Protocol, TypeVar

import torch
from pydantic import Field

from quilate.config import Config
from quilate.errors import MachineError, is_out_of_memory
from quilate.optim.master import MasterOptimizer
from quilate.rng import Streams

# OLMo-core's SkipStepOptimizer has these two.
WINDOW = 128
DEVIATIONS = 6.0
# Losses before any is called a spike (guess; OLMo-core waits for half a window, which short runs never see).
ENOUGH = 16
LEAST_DEVIATION = 0.01  # of the mean: losses that hardly differ would make a spike of every rise (guess)

MEGABYTE = 1e6


class Guards(Config):
    """What a training run does when something is out of line."""

    loss_spike: Literal["warn", "skip", "stop", "rewind"] = "warn"
    """What follows a loss more than six standard deviations above the mean of the last 128 steps. `warn` says so;
    `skip` leaves the update out; `stop` ends the run before it, saved (exit code 5); `rewind` takes parameters and
    optimizer back to the last rewind point and goes on behind the spike, without the batches in between (Chowdhery et
    al. 2022, section 5.1). The step's samples are named in `spike-step-….jsonl` either way."""
    rewinds: int = Field(default=3, ge=1)
    """For `loss_spike: rewind`: the run stops at the spike after so many."""
    rewind_steps: int = Field(default=100, ge=1)
    """For `loss_spike: rewind`: steps from one rewind point to the next, each the size of a checkpoint."""


class LossWatch:
    """The last losses that were trained on, and what they make of the next. A run's checkpoints keep `losses`."""

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=WINDOW)

    @property
    def losses(self) -> list[float]:
        return list(self._losses)

    def restore(self, losses: Iterable[float]) -> None:
        self._losses = deque(losses, maxlen=WINDOW)

    def add(self, loss: float) -> None:
        self._losses.append(loss)

    def limit(self) -> float:
        """A loss above it is a spike; infinity while too few are known."""
        if len(self._losses) < ENOUGH:
            return math.inf
        mean = fmean(self._losses)
        return mean + DEVIATIONS * max(pstdev(self._losses), LEAST_DEVIATION * abs(mean))


class Measurable(Protocol):
    @property
    def tokens(self) -> int: ...


M = TypeVar("M", bound=Measurable)
M_co = TypeVar("M_co", bound=Measurable, covariant=True)
T = TypeVar("T")


class Divisible(Protocol[M_co]):
    """Batches whose steps are divided into micro-batches of at most `micro_batch_tokens`, which may be lowered."""

    micro_batch_tokens: int

    def __getitem__(self, step: int) -> Sequence[M_co]: ...


class MicroBatching(Generic[M]):
    """A step's micro-batches, halved for the rest of the run when memory does not suffice for them.

    The global batch and its samples stay the same, and so does the gradient, but for the order of its sums. With
    dropout the masks are others. Of several processes none can do so alone: there it is an error.

    Args:
        discard: called when an attempt failed, to forget what was measured in it.

    Attributes:
        limit: the `micro_batch_tokens` that the run came down to; None while it has not.
        halvings: how often it came down, in this process and those before it.
    """

    def __init__(
        self,
        batches: Divisible[M],
        optimizer: MasterOptimizer,
        streams: Streams,
        warn: Callable[[str], None],
        *,
        discard: Callable[[], object] = lambda: None,
        alone: bool = True,
    ) -> None:
        self.batches, self.optimizer, self.streams, self.warn, self.alone = batches, optimizer, streams, warn, alone
        self.discard = discard
        self.limit: int | None = None
        self.halvings = 0

    def lower(self, limit: int | None, halvings: int) -> None:
        """What an earlier process came down to."""
        self.halvings = halvings
        if limit is not None:
            self.limit = self.batches.micro_batch_tokens = limit

    def run(self, step: int, micro_batches: Sequence[M], compute: Callable[[Sequence[M]], T]) -> tuple[T, Sequence[M]]:
        """What `compute` gives, and the micro-batches for which it did.

        Args:
            step: from 0; micro_batches: its own. compute: must leave all as it was, but for gradients and random
                streams, when memory ends before the optimizer's update.

        Raises:
            MachineError: memory does not suffice for one sample either.
        """
        while True:
            random, updates = self.streams.state(), self.optimizer.updates
            try:
                return compute(micro_batches), micro_batches
            except Exception as error:
                if not is_out_of_memory(error) or self.optimizer.updates != updates or not self.alone:
                    raise
                shortage = str(error).strip().partition("\n")[0]
            # Not in the handler, where the error's traceback still holds the activations.
            self.optimizer.clear_gradients()
            self.streams.restore(random)
            self.discard()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            micro_batches = self._halved(step, micro_batches, shortage)

    def _halved(self, step: int, micro_batches: Sequence[M], shortage: str) -> Sequence[M]:
        largest = limit = max(batch.tokens for batch in micro_batches)
        while limit > 1:
            limit //= 2
            self.batches.micro_batch_tokens = limit
            smaller = self.batches[step]
            if len(smaller) > len(micro_batches):
                self.limit = limit
                self.halvings += 1
                self.warn(
                    f"step {step + 1}: memory does not suffice for {largest:,} tokens at once ({shortage}): from here "
                    f"on at most {limit:,}, {len(smaller)} micro-batches instead of {len(micro_batches)}, the same step"
                )
                return smaller
        raise MachineError(
            f"step {step + 1}: memory does not suffice for one sample of {largest:,} tokens ({shortage}); "
            f"{self._in_use()} besides its activations",
            hint="shorten the samples (`length`, `max_item_tokens`), use `method: lora` or `precision: bf16`, or more "
            "memory; the last checkpoint is intact",
        )

    def _in_use(self) -> str:
        """The memory of what is trained: gradients are there while a step is computed."""
        parameters = list(self.optimizer.parameters.values())
        gradients = sum(p.numel() * p.element_size() for p in parameters) / MEGABYTE
        kept = sum(t.numel() * t.element_size() for t in self.optimizer.state().values()) / MEGABYTE
        return f"trained weights and optimizer take {kept:,.0f} MB and gradients {gradients:,.0f} MB"
