"""What test_distributed.py runs in one process, and, through `torchrun`, in two: `python train_together.py FOLDER`."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from support import random_examples, tiny_llama
from torch import Tensor, nn

from quilate import faults
from quilate.data.batches import ExampleBatches
from quilate.engine.distributed import SHARDING, Released, called, gather, processes, shard, this_world
from quilate.engine.interrupts import StopRequest, stop_on_signals
from quilate.engine.language_modelling import LanguageModellingLoss
from quilate.engine.loop import fit
from quilate.errors import Interrupted
from quilate.models.load import recompute_activations
from quilate.models.tuning.lora import LoraConfig, add_lora
from quilate.optim.adamw import AdamW
from quilate.optim.schedules import learning_rate
from quilate.rng import Streams

LENGTHS = [12, 9, 7, 15, 5, 8, 11, 6, 10, 13]
STEPS = 6  # ten examples, five a step: two steps an epoch, three epochs; two micro-batches a step, or three


class Recorded:
    """Batches that remember which samples were used at which step, and by which micro-batch."""

    def __init__(self, batches: ExampleBatches) -> None:
        self.batches, self.fingerprint = batches, batches.fingerprint
        self.micro_batch_tokens = batches.micro_batch_tokens
        self.used: list[list[Any]] = []

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, step: int) -> Any:
        found = self.batches[step]
        self.used.append([step, [list(batch.ids) for batch in found]])
        return found


def train(
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    checkpointing: bool = False,
    lora: bool = False,
    stop: StopRequest | None = None,
    alter: Callable[[nn.Module], None] = lambda _: None,
) -> list[list[Any]]:
    """Train the tiny model to its end; leaves `model.safetensors` (of the first process), and returns what was used."""
    folder.mkdir(exist_ok=True)
    streams = Streams(5)
    torch.manual_seed(streams.seed)
    model = tiny_llama(dtype=dtype)
    if lora:
        model = add_lora(model, LoraConfig(rank=2, dropout=0.0), base=folder)
    if checkpointing:
        recompute_activations(model)
    batches = ExampleBatches(random_examples(LENGTHS), batch_size=5, epochs=3, seed=5, micro_batch_tokens=25)
    assert len(batches) == STEPS
    recorded = Recorded(batches)
    trained, loss = shard(model, LanguageModellingLoss(model))
    alter(trained)
    optimizer = AdamW(trained.named_parameters(), weight_decay=0.1, rounding=streams["rounding"])
    schedule = partial(learning_rate, peak=1e-2, total_steps=STEPS, warmup_steps=2, decay="linear")
    warnings: list[str] = []
    fit(
        trained, recorded, loss, optimizer, schedule, streams, folder=folder, listener=lambda _: None,
        stop=StopRequest() if stop is None else stop, warn=warnings.append, checkpoint_steps=2,
    )  # fmt: skip
    optimizer.write_nearest()
    try:
        gather(trained, model)
    finally:
        kept: dict[str, Tensor] = {name: p.detach().contiguous() for name, p in model.named_parameters()}
        if this_world().leads:
            save_file(kept, folder / "model.safetensors")
            (folder / "used.json").write_text(json.dumps(recorded.used))
            (folder / "warnings.json").write_text(json.dumps(warnings))
    return recorded.used


def main(folder: Path) -> None:
    """Every scenario, one after another, in the same two processes."""
    torch.set_num_threads(1)
    scenarios: list[tuple[str, Callable[[], Any]]] = []
    for sharding in ("ddp", "fsdp"):
        scenarios += [
            (sharding, partial(train, folder / sharding)),
            (sharding, partial(broken, folder / f"nan-{sharding}")),
            (sharding, partial(stopped, folder / f"stopped-{sharding}")),
        ]
    scenarios += [
        ("fsdp", partial(train, folder / "fsdp-checkpointing", checkpointing=True)),
        ("fsdp", partial(train, folder / "fsdp-bf16", dtype=torch.bfloat16)),
        ("fsdp", partial(train, folder / "one-then-two")),  # a process alone has begun it
        ("fsdp-offload", partial(train, folder / "fsdp-offload")),
        ("fsdp", partial(train, folder / "fsdp-lora", lora=True)),
    ]
    with processes() as world:
        for sharding, run in scenarios:
            os.environ[SHARDING] = sharding
            if world.leads or called():
                with suppress(Released):
                    run()
            dist.barrier()
            faults.disarm()


def broken(folder: Path) -> None:
    """The loss of the second process is NaN in the third step."""
    if not this_world().leads:
        faults.arm("fit.data", lambda: faults.arm("fit.loss", lambda loss: loss * float("nan")), nth=3)
    train(folder)


def stopped(folder: Path) -> None:
    """SIGTERM reaches the second process alone, in the third step."""
    with stop_on_signals() as stop:
        if not this_world().leads:
            faults.arm("fit.step", lambda: os.kill(os.getpid(), signal.SIGTERM), nth=3)
        try:
            train(folder, stop=stop)
        except Interrupted as interrupted:
            (folder / f"left-{this_world().rank}.txt").write_text(interrupted.message)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
