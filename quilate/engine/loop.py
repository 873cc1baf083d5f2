"""The training loop. One optimizer step reads top to bottom in `optimizer_step`; `fit` repeats it and can be killed.

A phase brings a model, batches, and a loss function `(micro-batch) -> sum of losses`, over its supervised tokens say.
Batches are a function of the step alone, so the data order needs no state and a resumed run cannot lose or repeat any.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from quilate import faults
from quilate.engine.checkpoint import Checkpoint, Checkpointer
from quilate.engine.distributed import ALONE, World, this_world
from quilate.engine.guards import Guards, LossWatch, MicroBatching
from quilate.engine.interrupts import StopRequest
from quilate.engine.runlog import ProgressListener, RunLog
from quilate.errors import CheckpointError, ConfigError, GateError, Interrupted, QuilateError
from quilate.files import write_jsonl
from quilate.kernels.operations import why_missing
from quilate.optim.master import MasterOptimizer
from quilate.optim.sophia import Sophia
from quilate.rng import Streams

Schedule = Callable[[int], float]

# A run whose updates are refused this many times in a row is broken, not unlucky (guess).
MAX_REFUSED_IN_A_ROW = 5

DEFAULT_GUARDS = Guards()


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
    """All batches of a run: `batches[step]` gives that optimizer step's micro-batches, the same at every call.

    `micro_batch_tokens` is the most tokens in one; lowered, the same step comes in more of them. It is no part of what
    the fingerprint is taken of after construction."""

    fingerprint: str
    micro_batch_tokens: int

    def __len__(self) -> int: ...

    def __getitem__(self, step: int) -> Sequence[B_co]: ...


@dataclass(frozen=True)
class StepResult:
    """Of one optimizer step: mean loss over its weight, gradient norm before clipping, and what was used.

    `finite_here` is of this process's own part of the loss; all else is alike in all processes."""

    loss: float
    gradient_norm: float
    tokens: int
    supervised_tokens: int
    applied: bool
    finite_here: bool


@dataclass(frozen=True)
class FitResult:
    steps: int
    tokens: int
    supervised_tokens: int
    refused_updates: int
    curvature_tokens: int = 0
    refused_estimates: int = 0
    loss_spikes: int = 0
    rewinds: int = 0
    memory_halvings: int = 0

    def incidents(self) -> dict[str, int]:
        """What a stage counts in its manifest: refused updates, and what else happened."""
        counted = dict(
            zip(INCIDENTS, (self.refused_updates, self.loss_spikes, self.rewinds, self.memory_halvings), strict=True)
        )
        return {name: count for name, count in counted.items() if count or name == REFUSED}


REFUSED = "refused updates"
INCIDENTS = (REFUSED, "loss spikes", "rewinds after a loss spike", "times micro-batches were halved")
COUNTS = tuple(field.name for field in fields(FitResult) if field.name != "steps")


@dataclass(frozen=True)
class Followers:
    """Tensors that change without being trained, such as the target values of Q-learning.

    Attributes:
        move: called after every step with how many there were.
    """

    tensors: Mapping[str, Tensor]
    move: Callable[[int], None]


def optimizer_step(
    micro_batches: Sequence[B],
    loss_function: LossFunction[B],
    optimizer: MasterOptimizer,
    *,
    learning_rate: float,
    clip_norm: float,
    loss_limit: float = math.inf,
    world: World = ALONE,
) -> StepResult:
    """One update from one batch, given as micro-batches, of which each process of `world` does its share.

    The loss is normalized by the weight of the *whole* step, so any division into micro-batches gives the
    same gradient. A loss or gradient that is not finite, or a loss above `loss_limit`, changes nothing: no parameter,
    no optimizer state.
    """
    weight = sum(batch.weight for batch in micro_batches)
    loss = 0.0
    for batch, factor in world.share(micro_batches):
        faults.at("fit.forward")
        loss_sum = faults.through("fit.loss", loss_function(batch)) * factor
        loss += float(loss_sum.detach()) / weight
        faults.at("fit.backward")
        (loss_sum * world.loss_scale / weight).backward()  # type: ignore[no-untyped-call]
        if len(micro_batches) > 1:
            optimizer.accumulate()
    finite_here = math.isfinite(loss)
    loss = world.sum(loss)
    world.add_up(optimizer.gradients())
    norm = world.norm(optimizer.gradient_norm())
    applied = math.isfinite(loss) and math.isfinite(norm) and loss <= loss_limit
    if applied:
        optimizer.step(learning_rate, gradient_scale=min(1.0, clip_norm / max(norm, 1e-12)))
    else:
        optimizer.clear_gradients()
    tokens, supervised = sum(b.tokens for b in micro_batches), sum(b.supervised_tokens for b in micro_batches)
    return StepResult(loss, norm, tokens, supervised, applied, finite_here)


def curvature_step(micro_batches: Sequence[B], loss_function: LossFunction[B], optimizer: Sophia) -> bool:
    """One estimate of curvature from one batch, for the updates that follow; False if it was not finite and refused.

    Args:
        loss_function: the loss that the optimizer's estimator probes, as a sum like the loss of a step.
    """
    weight = sum(batch.weight for batch in micro_batches)
    for batch in micro_batches:
        probed = optimizer.probe(loss_function(batch) / weight)
        faults.at("fit.curvature")
        probed.backward()  # type: ignore[no-untyped-call]
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
    guards: Guards = DEFAULT_GUARDS,
    measured: Callable[[], Mapping[str, float]] = dict,
    followers: Followers | None = None,
) -> FitResult:
    """Train until the batches end, from the last whole checkpoint in `folder` if there is one.

    Saves every `checkpoint_seconds` (and every `checkpoint_steps` if given), and when a stop is requested. Saving never
    changes the trajectory: an interrupted run ends with the same bits as an undisturbed one.

    Several processes (`quilate.engine.distributed`) take the same steps and save together.

    Args:
        curvature_loss: the loss that a `Sophia` optimizer probes for curvature; no other has a use for it.
        followers: tensors that follow the trained ones; saved and restored with the rest.
        measured: asked after every step what else to write into its row of `metrics.jsonl`.

    Raises:
        Interrupted: stopped on request, after saving.
        CheckpointError: the checkpoint is damaged, or belongs to other data.
        GateError: a loss spiked and `guards` do not let the run go on.
        MachineError: memory does not suffice for one sample; the disk is full.
        QuilateError: updates were refused again and again.
    """
    world = this_world()
    if isinstance(optimizer, Sophia):
        _check_curvature(curvature_loss, world)
    slower = why_missing() if _computes_in_bf16_on_the_cpu(model) else None
    if slower is not None:
        warn(f"training without quilate's fused operations, which is slower: {slower}")
    checkpointer = Checkpointer(folder / "checkpoints", warn=warn, world=world)
    rewind_points = Checkpointer(folder / "checkpoints" / "rewind", warn=warn, world=world)
    run = _Run(batches, optimizer, streams, warn, folder, world, followers, discard=measured)
    run.resume(checkpointer)
    log = RunLog(folder, resumed_step=run.step, listener=listener, writes=world.leads)
    last_saved = time.monotonic()
    model.train()
    while run.step < len(batches):
        if guards.loss_spike == "rewind" and run.step % guards.rewind_steps == 0:
            checkpointer.save(run.snapshot())  # first: a resumed run never starts before its rewind point
            rewind_points.save(run.snapshot())
        faults.at("fit.data")
        micro_batches = batches[run.step]
        rate, limit = schedule(run.step), run.watch.limit()
        if curvature_loss is not None and isinstance(optimizer, Sophia) and optimizer.estimate_due():
            estimate = partial(curvature_step, loss_function=curvature_loss, optimizer=optimizer)
            finite, micro_batches = run.memory.run(run.step, micro_batches, estimate)
            run.count_estimate(micro_batches, finite)
        update = partial(
            optimizer_step, loss_function=loss_function, optimizer=optimizer, learning_rate=rate, clip_norm=clip_norm,
            loss_limit=math.inf if guards.loss_spike == "warn" else limit, world=world,
        )  # fmt: skip
        result, micro_batches = run.memory.run(run.step, micro_batches, update)
        faults.at("fit.step")
        spike = limit < result.loss < math.inf
        if spike and guards.loss_spike == "stop":
            checkpointer.save(run.snapshot())
            run.name_samples("spike", micro_batches, run.step + 1)
            raise _spike_error(run.step + 1, result.loss, limit, folder)
        run.count(micro_batches, result, limit)
        if followers is not None:
            followers.move(run.step)
        log.step(
            run.step, len(batches), tokens=result.tokens, loss=result.loss,
            learning_rate=rate, gradient_norm=result.gradient_norm, supervised_tokens=result.supervised_tokens,
            **(optimizer.measured() if result.applied else {}),
            **measured(),
        )  # fmt: skip
        if spike and guards.loss_spike == "rewind":
            if run.counts["rewinds"] == guards.rewinds:
                raise _spike_error(run.step, result.loss, limit, folder)
            run.rewind(rewind_points)
        run.end_if_refused_again_and_again()
        due = time.monotonic() - last_saved > checkpoint_seconds
        due = due or (checkpoint_steps is not None and run.step % checkpoint_steps == 0)
        stopping, due = world.any(bool(stop), world.leads and due)
        if (due or stopping) and run.step < len(batches):
            checkpointer.save(run.snapshot())
            last_saved = time.monotonic()
        if stopping and run.step < len(batches):
            by = stop.signal or "a request to another process"
            raise Interrupted(
                f"stopped by {by} after step {run.step}, saved", hint="run the same command again to continue"
            )
    return FitResult(run.step, **run.counts)


def _check_curvature(curvature_loss: LossFunction[Any] | None, world: World) -> None:
    if curvature_loss is None:
        raise ValueError("Sophia needs a curvature_loss: without estimates it would only follow signs")
    if world.size > 1:
        raise ConfigError("Sophia estimates curvature in one process", hint="use `optimizer: adamw`, or one process")


class _Run(Generic[B]):
    """Where a run stands: what a checkpoint holds of it, how it comes back, and what is counted.

    Attributes:
        step: optimizer steps whose batches were used.
    """

    def __init__(
        self,
        batches: Batches[B],
        optimizer: MasterOptimizer,
        streams: Streams,
        warn: Callable[[str], None],
        folder: Path,
        world: World,
        followers: Followers | None,
        *,
        discard: Callable[[], object],
    ) -> None:
        self.batches, self.optimizer, self.streams, self.warn, self.folder = batches, optimizer, streams, warn, folder
        self.world, self.following = world, {} if followers is None else dict(followers.tensors)
        self.step = 0
        self.counts = dict.fromkeys(COUNTS, 0)
        self.refused_in_a_row = 0
        self.watch = LossWatch()
        self.memory = MicroBatching(batches, optimizer, streams, warn, discard=discard, alone=world.size == 1)
        world.seed_dropout(streams.seed, self.step)

    def snapshot(self) -> Checkpoint:
        tensors = {"optimizer": self.optimizer.state(), self.world.own("streams"): self.streams.state()}
        if self.following:
            tensors["followers"] = self.following
        state = {
            "counts": dict(self.counts),
            "refused_in_a_row": self.refused_in_a_row,
            "batches": self.batches.fingerprint,
            "total_steps": len(self.batches),
            "losses": self.watch.losses,
            "micro_batch_tokens": self.memory.limit,
        }
        return Checkpoint(self.step, tensors, state, self.optimizer.rows())

    def resume(self, checkpointer: Checkpointer) -> None:
        """Go on from the last whole checkpoint, if there is one.

        Raises:
            CheckpointError: none is whole, or it is of other data or another model.
        """
        checkpoint = checkpointer.latest(self.optimizer.rows())
        if checkpoint is None:
            return
        state = checkpoint.state
        if state["batches"] != self.batches.fingerprint or state["total_steps"] != len(self.batches):
            raise CheckpointError(
                "the training data or its order changed since this run was interrupted",
                hint=f"restore the data, or remove {checkpointer.folder} to train this stage again from its start",
            )
        try:
            self._restore(checkpoint)
        except KeyError as error:
            raise CheckpointError(
                f"the checkpoint belongs to another model or optimizer: {error.args[0]}",
                hint=f"remove {checkpointer.folder}",
            ) from error
        self.step, self.counts = checkpoint.step, dict(state["counts"])
        self.refused_in_a_row = state["refused_in_a_row"]
        self.memory.lower(state["micro_batch_tokens"], self.counts["memory_halvings"])

    def rewind(self, points: Checkpointer) -> None:
        """Back to a rewind point in everything but the data: no batch is used twice.

        Raises:
            CheckpointError: the point is gone or damaged.
        """
        point = points.latest(self.optimizer.rows())
        if point is None or point.step > self.step:
            raise CheckpointError(
                f"there is no rewind point before step {self.step}",
                hint=f"remove {points.folder.parent} to train this stage again from its start",
            )
        self._restore(point)
        self.counts["rewinds"] += 1
        self.refused_in_a_row = 0
        self.warn(f"step {self.step}: went back to the parameters of step {point.step}; the batches since are left out")

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.optimizer.restore(checkpoint.tensors["optimizer"])
        self.streams.restore(checkpoint.tensors["streams"])
        if not self.world.leads:  # its dropout is its own, saved unless there were fewer processes then
            self.world.seed_dropout(self.streams.seed, checkpoint.step)
            self.streams.restore(checkpoint.tensors.get(self.world.own("streams"), {}))
        for name, tensor in self.following.items():
            tensor.data.copy_(checkpoint.tensors["followers"][name])
        self.watch.restore(checkpoint.state["losses"])

    def count(self, micro_batches: Sequence[B], result: StepResult, limit: float) -> None:
        """One step more; an incident is said, and the samples it happened with are named."""
        self.step += 1
        self.counts["tokens"] += result.tokens
        self.counts["supervised_tokens"] += result.supervised_tokens
        self.counts["memory_halvings"] = self.memory.halvings
        self.refused_in_a_row = 0 if result.applied else self.refused_in_a_row + 1
        if result.applied:
            self.watch.add(result.loss)
        if limit < result.loss < math.inf:
            self.counts["loss_spikes"] += 1
            left_out = "" if result.applied else ": update left out"
            self.warn(f"step {self.step}: loss {result.loss:.4g} is a spike, above {limit:.4g}{left_out}")
            self.name_samples("spike", micro_batches, self.step)
        elif not result.applied:
            self.counts["refused_updates"] += 1
            self.warn(f"step {self.step}: loss {result.loss}, gradient norm {result.gradient_norm}: update refused")
            self.name_samples("refused", micro_batches, self.step, not result.finite_here)

    def count_estimate(self, micro_batches: Sequence[B], finite: bool) -> None:
        self.counts["curvature_tokens"] += sum(b.tokens for b in micro_batches)
        if not finite:
            self.counts["refused_estimates"] += 1
            self.warn(f"step {self.step + 1}: the estimate of curvature is not finite: refused")

    def name_samples(self, incident: str, micro_batches: Sequence[B], step: int, here: bool = False) -> None:
        """Leave the ids of a step's samples, a micro-batch a line; of several processes with each one's rank, and
        whether it was there (`here` in this one) that the loss was not finite."""
        world = self.world
        broken = world.any(*(here and rank == world.rank for rank in range(world.size)))
        rows: list[dict[str, Any]] = [{"step": step, "ids": list(batch.ids)} for batch in micro_batches]
        if world.size > 1:
            for place, row in enumerate(rows):
                row |= {"rank": place % world.size, "finite": not broken[place % world.size]}
        if world.leads:
            write_jsonl(self.folder / f"{incident}-step-{step:08d}.jsonl", rows)

    def end_if_refused_again_and_again(self) -> None:
        if self.refused_in_a_row >= MAX_REFUSED_IN_A_ROW:
            raise QuilateError(
                f"{self.refused_in_a_row} updates in a row were refused, the last at step {self.step}",
                hint=f"lower the learning rate; the samples are named in {self.folder}/refused-step-*.jsonl and "
                "spike-step-*.jsonl",
            )


def _spike_error(step: int, loss: float, limit: float, folder: Path) -> GateError:
    return GateError(
        f"step {step}: loss {loss:.4g} is a spike, above {limit:.4g}, and `guards` end the run there",
        hint=f"look at its samples, named in {folder}/spike-step-{step:08d}.jsonl; lower the rate, or choose another "
        "`guards.loss_spike`",
    )


def _computes_in_bf16_on_the_cpu(model: nn.Module) -> bool:
    return any(p.dtype == torch.bfloat16 and p.device.type == "cpu" for p in model.parameters())
