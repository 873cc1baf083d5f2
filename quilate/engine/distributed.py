"""Training in several processes: who does which micro-batches, how gradients meet, how a model is sharded.

The processes are started by `torchrun`. Every one goes through the same steps: a step's micro-batches are dealt out,
their gradients add up to those of the whole step, and what decides (a loss, a norm, a request to stop) is agreed upon
before anything changes. So no process can update, save or leave alone.

Two ways to hold the model. Replicated (DDP): every process has all of it, and the fp32 sums of gradients are added up
once a step. Sharded (FSDP2, `fully_shard`; Zhao et al. 2023): every process has its rows of each fp32 master and of the
optimizer's state; a layer is gathered in bf16 when it is needed. These rows may lie in main memory (ZeRO-Offload, Ren
et al. 2021): a GPU is brought a layer when it is needed, and the processor computes the update.

What comes before training and after it the first process does alone: it calls the others when there is something to
train. They then go through the stage's code up to that place, find everything written, and train with it.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Literal, TypeVar, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from quilate.errors import ConfigError, MachineError
from quilate.rng import derive_seed

B = TypeVar("B")
M = TypeVar("M", bound=nn.Module)

Sharding = Literal["ddp", "fsdp", "fsdp-offload"]

SHARDING = "QUILATE_SHARDING"  # the environment's name for it: how the processes of `torchrun` hold the model
TIMEOUT = timedelta(minutes=10)  # a collective that takes longer has lost a process (guess)
PATIENCE = timedelta(days=365)  # with the first process, which may tokenize a corpus for hours before it trains
TRAIN, OVER = "train", "over"  # what the first process says to those that wait
BUCKET = 25_000_000  # elements reduced at once, 100 MB of fp32 (DDP's own buckets have 25 MB)


@dataclass(frozen=True)
class World:
    """The processes that train together; one of them is `rank`."""

    rank: int = 0
    size: int = 1
    sharding: Sharding = "ddp"

    @property
    def sharded(self) -> bool:
        return self.sharding != "ddp"

    @property
    def offloads(self) -> bool:
        return self.sharding == "fsdp-offload"

    @property
    def leads(self) -> bool:
        """Whether this process writes what all share: logs, manifests, the finished model."""
        return self.rank == 0

    @property
    def loss_scale(self) -> int:
        """What the loss is to be multiplied with: FSDP takes the mean over processes, and the sum is wanted."""
        return self.size if self.sharded else 1

    def share(self, micro_batches: Sequence[B]) -> list[tuple[B, float]]:
        """This process's part of a step, dealt in turn, with the factor each counts with.

        All must go through equally many, for a sharded layer is gathered by all at once: who has one too few does
        another again, with a factor of 0.
        """
        if self.size == 1:
            return [(batch, 1.0) for batch in micro_batches]
        turns = -(-len(micro_batches) // self.size)
        places = [self.rank + turn * self.size for turn in range(turns)]
        return [(micro_batches[i % len(micro_batches)], float(i < len(micro_batches))) for i in places]

    def sum(self, value: float) -> float:
        """The sum over all processes; a NaN in one is a NaN in all."""
        return value if self.size == 1 else float(_reduced([value], dist.ReduceOp.SUM)[0])

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether some process has it set."""
        if self.size == 1:
            return flags
        return tuple(bool(flag) for flag in _reduced([float(flag) for flag in flags], dist.ReduceOp.MAX))

    def add_up(self, gradients: dict[str, Tensor]) -> None:
        """Replace each gradient by its sum over all processes, in place; FSDP has done so already."""
        if self.size == 1 or self.sharded:
            return
        for bucket in _buckets(list(gradients.values())):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            dist.all_reduce(flat)
            for gradient, part in zip(bucket, torch.split(flat, [g.numel() for g in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def norm(self, own: float) -> float:
        """The L2 norm of all gradients, from that of this process's."""
        return self.sum(own**2) ** 0.5 if self.sharded else own

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that ends for all at once; if it fails in one, none goes on. It must not hold another such block.

        Raises:
            MachineError: another process failed in it.
        """
        error = None
        try:
            yield
        except Exception as caught:
            error = caught
        (failed,) = self.any(error is not None)
        if error is not None:
            raise error
        if failed:
            raise MachineError(
                "another process of this run failed at the same time", hint="see its message in the stage's log.txt"
            )

    def own(self, group: str) -> str:
        """The name under which a checkpoint keeps what each process has its own of; the first has the plain name."""
        return group if self.leads else f"{group}-{self.rank}"

    def seed_dropout(self, seed: int, step: int) -> None:
        """Give this process dropout masks of its own; those of the first stay as they are with one process."""
        if not self.leads:
            torch.manual_seed(derive_seed(seed, "torch_global", self.rank, step))


ALONE = World()


def _reduced(values: list[float], operation: Any) -> Tensor:
    tensor = torch.tensor(values, dtype=torch.float64)  # on the CPU, where gloo is joined beside NCCL
    dist.all_reduce(tensor, operation)
    return tensor


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and (sum(t.numel() for t in bucket) + tensor.numel() > BUCKET or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def this_world() -> World:
    """The processes that `processes` joined; alone outside it.

    Raises:
        ConfigError: `QUILATE_SHARDING` is none of `Sharding`.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return World()
    asked = os.environ.get(SHARDING, "ddp")
    for sharding in get_args(Sharding):
        if asked == sharding:
            return World(dist.get_rank(), dist.get_world_size(), sharding)
    raise ConfigError(f"{SHARDING}={asked}", hint=f"use one of {', '.join(get_args(Sharding))}")


class _Calls:
    """The first process's calls to the others, numbered, in the store through which the processes found one another:
    a collective would end the wait after `TIMEOUT`."""

    def __init__(self, store: Store) -> None:
        self.store, self.count = PrefixStore("calls", store), 0

    def make(self, call: str) -> None:
        self.store.set(f"{self.count}", call)
        self.count += 1

    def wait(self) -> str:
        self.store.wait([f"{self.count}"], PATIENCE)
        self.count += 1
        return self.store.get(f"{self.count - 1}").decode()

    def answer(self, answer: str) -> None:
        self.store.set(f"{self.count}/{dist.get_rank()}", answer)

    def answers(self) -> list[str]:
        """What each of the others answered to the last call."""
        keys = [f"{self.count}/{rank}" for rank in range(1, dist.get_world_size())] if self.count else []
        if keys:
            self.store.wait(keys, TIMEOUT)
        return [self.store.get(key).decode() for key in keys]


_calls: _Calls | None = None  # of the processes that `processes` joined


@contextmanager
def processes() -> Iterator[World]:
    """Join the processes that `torchrun` started, if it did: gloo on CPUs, NCCL on GPUs.

    The first goes on; the others are to ask `called`.

    Raises:
        ConfigError: see `this_world`.
    """
    global _calls
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World()
        return
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    _calls = _Calls(store)
    try:
        yield this_world()
    finally:
        if rank == 0:
            _calls.make(OVER)
        _calls = None
        dist.destroy_process_group()


def called() -> bool:
    """For all but the first process: wait until that one has something to train, or, False, has none any more."""
    assert _calls is not None
    return _calls.wait() == TRAIN


def report(found: dict[str, Any]) -> None:
    """For all but the first process, after each training it was called for: what the first is to know of it."""
    assert _calls is not None
    _calls.answer(json.dumps(found))


def reports() -> list[dict[str, Any]]:
    """For the first process: what each of the others reported after the last training; none if there was none."""
    return [] if _calls is None else [json.loads(answer) for answer in _calls.answers()]


class _Whole(nn.Module):
    """A loss as a module that holds its model: FSDP gathers what does not belong to a layer around this forward."""

    def __init__(self, model: nn.Module, loss_function: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.model = model
        self._loss = [loss_function]  # in a list, so that a loss that is a module is not registered a second time

    def forward(self, batch: Any) -> Tensor:
        return self._loss[0](batch)


def shard(model: M, loss_function: Callable[[B], Tensor]) -> tuple[M, Callable[[B], Tensor]]:
    """What to train in place of `model`, and the loss of it; the same two unless the world is sharded.

    A sharded model is a copy with fp32 rows; the original is emptied meanwhile and `gather` fills it again. The other
    processes, which wait in `called`, are called when the first comes here.

    Raises:
        ConfigError: the model has weights in so few bits that they are no numbers by themselves.
    """
    world = this_world()
    dtypes = {p.dtype for p in model.parameters()}
    if world.sharded and not all(dtype.is_floating_point for dtype in dtypes):
        raise ConfigError("quantized weights cannot be divided over processes", hint="use --sharding ddp")
    if _calls is not None and world.leads:
        _calls.make(TRAIN)
    if not world.sharded:
        return model, loss_function
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    compute = torch.bfloat16 if torch.bfloat16 in dtypes else None
    precision = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
    offload = CPUOffloadPolicy(pin_memory=torch.cuda.is_available()) if world.offloads else OffloadPolicy()
    sharded = partial(fully_shard, mp_policy=precision, offload_policy=offload)
    copied, loss = copy.deepcopy((model, loss_function))
    for parameter in model.parameters():
        parameter.data = parameter.data.new_empty(0)
    copied.float()
    for layer in _layers(copied):
        sharded(layer)
    whole = _Whole(copied, loss)
    sharded(whole)
    return copied, whole


class Released(Exception):
    """This process has done its part for now: what comes next is the first one's."""


def gather(trained: nn.Module, model: nn.Module) -> None:
    """Fill `model` with the parameters of its trained copy, if it is one, and let all processes but the first go.

    Raises:
        Released: in these.
    """
    if trained is not model:
        from torch.distributed.tensor import DTensor

        with torch.no_grad():
            for source, target in zip(trained.parameters(), model.parameters(), strict=True):
                whole = source.full_tensor() if isinstance(source, DTensor) else source
                target.data = whole.to(target.dtype)
    if not this_world().leads:
        raise Released


def _layers(model: nn.Module) -> list[nn.Module]:
    """The model's layers: the longest list of modules in it."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    longest: nn.ModuleList = max(lists, key=lambda layers: len(layers), default=nn.ModuleList())
    return list(longest)
