"""The training loop. One optimizer step reads top to bottom in `optimizer_step`; `fit` repeats it and can be killed.

A phase brings a model, batches, and a loss function `(micro-batch) -> sum of losses`, over its supervised tokens say.
Batches are a function of the step alone, so the data order needs no state and a resumed run cannot lose or repeat any.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from quilate import faults
from quilate.engine.checkpoint import Checkpoint, Checkpointer
from quilate.engine.interrupts import StopRequest
from quilate.engine.runlog import ProgressListener, RunLog
from quilate.errors import CheckpointError, Interrupted, QuilateError
from quilate.files import write_jsonl
from quilate.kernels.operations import why_missing
from quilate.optim.master import MasterOptimizer
from quilate.optim.sophia import Sophia
from quilate.rng import Streams

Schedule = Callable[[int], float]

# A run whose updates are refused this many times in a row is broken, not unlucky (guess).
MAX_REFUSED_IN_A_ROW = 5


class MicroBatch(Protocol):
    """What is in memory at once. `weight` is what the step's sum of losses is divided by, summed over the step: the
    supervised tokens of a language model, the prompts of a preference model."""

    @property
    def ids(self) -> tuple[str, ...]: ...

    @property
    def tokens(self) -> int: ...

    @property
    def supervised_tokens(self) -> int: ...

    @property
    def weight(self) -> int: ...


B = TypeVar("B", bound=MicroBatch)
B_co = TypeVar("B_co", bound=MicroBatch, covariant=True)

LossFunction = Callable[[B], Tensor]


class Batches(Protocol[B_co]):
    """All batches of a run: `batches[step]` gives that optimizer step's micro-batches, the same at every call."""

    fingerprint: str

    def __len__(self) -> int: ...

    def __getitem__(self, step: int) -> Sequence[B_co]: ...


@dataclass(frozen=True)
class StepResult:
    """Of one optimizer step: mean loss over its weight, gradient norm before clipping, and what was used."""

    loss: float
    gradient_norm: float
    tokens: int
    supervised_tokens: int
    applied: bool


@dataclass(frozen=True)
class FitResult:
    steps: int
    tokens: int
    supervised_tokens: int
    refused_updates: int
    curvature_tokens: int = 0
    refused_estimates: int = 0


def optimizer_step(
    micro_batches: Sequence[B],
    loss_function: LossFunction[B],
    optimizer: MasterOptimizer,
    *,
    learning_rate: float,
    clip_norm: float,
) -> StepResult:
    """One update from one batch, given as micro-batches.

    The loss is normalized by the weight of the *whole* step, so any division into micro-batches gives the
    same gradient. A loss or gradient that is not finite changes nothing: no parameter, no optimizer state.
    """
    weight = sum(batch.weight for batch in micro_batches)
    loss = 0.0
    for batch in micro_batches:
        loss_sum = loss_function(batch)
        loss += float(loss_sum.detach()) / weight
        (loss_sum / weight).backward()  # type: ignore[no-untyped-call]
        if len(micro_batches) > 1:
            optimizer.accumulate()
    norm = optimizer.gradient_norm()
    applied = math.isfinite(loss) and math.isfinite(norm)
    if applied:
        optimizer.step(learning_rate, gradient_scale=min(1.0, clip_norm / max(norm, 1e-12)))
    else:
        optimizer.clear_gradients()
    tokens, supervised = sum(b.tokens for b in micro_batches), sum(b.supervised_tokens for b in micro_batches)
    return StepResult(loss, norm, tokens, supervised, applied)


def curvature_step(micro_batches: Sequence[B], loss_function: LossFunction[B], optimizer: Sophia) -> bool:
    """One estimate of curvature from one batch, for the updates that follow; False if it was not finite and refused.

    Args:
        loss_function: the loss that the optimizer's estimator probes, as a sum like the loss of a step.
    """
    weight = sum(batch.weight for batch in micro_batches)
    for batch in micro_batches:
        optimizer.probe(loss_function(batch) / weight).backward()  # type: ignore[no-untyped-call]
        optimizer.accumulate()
    return optimizer.update_curvature(weight)


def fit(
    model: nn.Module,
    batches: Batches[B],
    loss_function: LossFunction[B],
    optimizer: MasterOptimizer,
    schedule: Schedule,
    streams: Streams,
    *,
    folder: Path,
    listener: ProgressListener,
    stop: StopRequest,
    warn: Callable[[str], None],
    curvature_loss: LossFunction[B] | None = None,
    clip_norm: float = 1.0,
    checkpoint_seconds: float = 300.0,
    checkpoint_steps: int | None = None,
    measured: Callable[[], Mapping[str, float]] = dict,
) -> FitResult:
    """Train until the batches end, from the last whole checkpoint in `folder` if there is one.

    Saves every `checkpoint_seconds` (and every `checkpoint_steps` if given), and when a stop is requested. Saving never
    changes the trajectory: an interrupted run ends with the same bits as an undisturbed one.

    Args:
        curvature_loss: the loss that a `Sophia` optimizer probes for curvature; no other has a use for it.
        measured: asked after every step what else to write into its row of `metrics.jsonl`.

    Raises:
        Interrupted: stopped on request, after saving.
        CheckpointError: the checkpoint is damaged, or belongs to other data.
        QuilateError: updates were refused again and again because they were not finite.
    """
    if isinstance(optimizer, Sophia) and curvature_loss is None:
        raise ValueError("Sophia needs a curvature_loss: without estimates it would only follow signs")
    slower = why_missing() if _computes_in_bf16_on_the_cpu(model) else None
    if slower is not None:
        warn(f"training without quilate's fused operations, which is slower: {slower}")
    checkpointer = Checkpointer(folder / "checkpoints", warn=warn)
    counts = _resume(checkpointer, batches, optimizer, streams)
    log = RunLog(folder, resumed_step=counts["step"], listener=listener)
    last_saved = time.monotonic()
    refused_in_a_row = 0
    model.train()
    while counts["step"] < len(batches):
        micro_batches = batches[counts["step"]]
        rate = schedule(counts["step"])
        if curvature_loss is not None and isinstance(optimizer, Sophia) and optimizer.estimate_due():
            finite = curvature_step(micro_batches, curvature_loss, optimizer)
            _count_estimate(counts, micro_batches, finite, warn)
        result = optimizer_step(micro_batches, loss_function, optimizer, learning_rate=rate, clip_norm=clip_norm)
        faults.at("fit.step")
        counts["step"] += 1
        counts["tokens"] += result.tokens
        counts["supervised_tokens"] += result.supervised_tokens
        refused_in_a_row = 0 if result.applied else refused_in_a_row + 1
        if not result.applied:
            counts["refused_updates"] += 1
            warn(f"step {counts['step']}: loss {result.loss}, gradient norm {result.gradient_norm}: update refused")
            ids = [{"step": counts["step"], "ids": list(b.ids)} for b in micro_batches]
            write_jsonl(folder / f"refused-step-{counts['step']:08d}.jsonl", ids)
        log.step(
            counts["step"], len(batches), tokens=result.tokens, loss=result.loss,
            learning_rate=rate, gradient_norm=result.gradient_norm, supervised_tokens=result.supervised_tokens,
            **(optimizer.measured() if result.applied else {}),
            **measured(),
        )  # fmt: skip
        if refused_in_a_row >= MAX_REFUSED_IN_A_ROW:
            raise QuilateError(
                f"{refused_in_a_row} updates in a row were not finite, the last at step {counts['step']}",
                hint=f"lower the learning rate; the documents are named in {folder}/refused-step-*.jsonl",
            )
        due = time.monotonic() - last_saved > checkpoint_seconds
        due = due or (checkpoint_steps is not None and counts["step"] % checkpoint_steps == 0)
        if (due or stop) and counts["step"] < len(batches):
            checkpointer.save(_snapshot(counts, batches, optimizer, streams))
            last_saved = time.monotonic()
        if stop and counts["step"] < len(batches):
            raise Interrupted(
                f"stopped by {stop.signal} after step {counts['step']}, saved",
                hint="run the same command again to continue",
            )
    steps = counts.pop("step")
    return FitResult(steps, **counts)


def _count_estimate(
    counts: dict[str, int], micro_batches: Sequence[B], finite: bool, warn: Callable[[str], None]
) -> None:
    counts["curvature_tokens"] += sum(b.tokens for b in micro_batches)
    if not finite:
        counts["refused_estimates"] += 1
        warn(f"step {counts['step'] + 1}: the estimate of curvature is not finite: refused")


def _computes_in_bf16_on_the_cpu(model: nn.Module) -> bool:
    return any(p.dtype == torch.bfloat16 and p.device.type == "cpu" for p in model.parameters())


def _snapshot(counts: dict[str, int], batches: Batches[B], optimizer: MasterOptimizer, streams: Streams) -> Checkpoint:
    state = {"counts": counts, "batches": batches.fingerprint, "total_steps": len(batches)}
    return Checkpoint(counts["step"], {"optimizer": optimizer.state(), "streams": streams.state()}, state)


def _resume(
    checkpointer: Checkpointer, batches: Batches[B], optimizer: MasterOptimizer, streams: Streams
) -> dict[str, int]:
    checkpoint = checkpointer.latest()
    if checkpoint is None:
        return {
            "step": 0, "tokens": 0, "supervised_tokens": 0, "refused_updates": 0,
            "curvature_tokens": 0, "refused_estimates": 0,
        }  # fmt: skip
    if checkpoint.state["batches"] != batches.fingerprint or checkpoint.state["total_steps"] != len(batches):
        raise CheckpointError(
            "the training data or its order changed since this run was interrupted",
            hint=f"restore the data, or remove {checkpointer.folder} to train this stage again from its start",
        )
    try:
        optimizer.restore(checkpoint.tensors["optimizer"])
    except KeyError as error:
        raise CheckpointError(
            f"the checkpoint belongs to another model or optimizer: {error.args[0]}",
            hint=f"remove {checkpointer.folder}",
        ) from error
    streams.restore(checkpoint.tensors["streams"])
    return dict(checkpoint.state["counts"])
