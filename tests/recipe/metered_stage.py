"""A stage of no kind that trains nothing: `python metered_stage.py FOLDER [killed]`, by as many processes as WORLD_SIZE
says. Each process but the first computes for half a second and takes 200 MB."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from quilate.config import Config
from quilate.engine.interrupts import StopRequest
from quilate.engine.runlog import Progress
from quilate.phases.stage import StageContext, StageKind, StageReport
from quilate.recipe import meter, worker

meter.SECONDS_BETWEEN_WRITES = 0.2


def compute(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def alone(context: StageContext[Any]) -> StageReport:
    for step in range(8):
        time.sleep(0.1)
        context.listener(Progress(step, 8, "steps"))
    if "killed" in sys.argv:
        os.kill(os.getpid(), signal.SIGKILL)
    return StageReport()


def together(context: StageContext[Any]) -> StageReport:
    from torch import nn

    from quilate.engine.distributed import gather, shard, this_world

    def train() -> None:
        model = nn.Linear(1, 1)
        trained, _ = shard(model, lambda batch: batch)
        if not this_world().leads:
            assert len(b"x" * 200_000_000) and compute(0.5) is None
        this_world().sum(0.0)  # all meet in a step
        gather(trained, model)

    for trial in ("a", "b"):
        done = context.folder / trial  # the others find what came before written, and do not train it again
        if not done.exists():
            train()
            done.touch()
    return StageReport()


def kind(_: str) -> StageKind[Any]:
    return StageKind("metered", 1, Config, alone if os.environ.get("WORLD_SIZE", "1") == "1" else together)


if __name__ == "__main__":
    worker.stage_kind = kind  # type: ignore[assignment]
    worker.run_stage(Path(sys.argv[1]), StopRequest())
