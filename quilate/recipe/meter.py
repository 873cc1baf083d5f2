"""What a stage takes: seconds, processor time, memory; over all its attempts and all processes that train it."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quilate.files import read_json, write_json
from quilate.recipe.manifest import Measured

SECONDS_BETWEEN_WRITES = 5.0  # as much of a killed attempt may be forgotten (guess)


def peak_bytes() -> int:
    """The largest resident size of this process so far.

    Not from getrusage where the kernel says it itself: that maximum is inherited from whoever started this process.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):  # there is no /proc, or it holds less
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@dataclass(frozen=True)
class Process:
    """What one process has taken for a stage."""

    cpu_seconds: float
    peak_memory_bytes: int

    @classmethod
    def this(cls, cpu_started: float) -> Process:
        """This one, since its `time.process_time()` was `cpu_started`."""
        return cls(time.process_time() - cpu_started, peak_bytes())


class Attempts:
    """A stage's attempts, kept in `attempts.json`; the last of them is running.

    It is written again while it runs: who is killed cannot write it afterwards, and the hours would cost nothing.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "attempts.json"
        self._earlier: list[dict[str, Any]] = read_json(self._path) if self._path.exists() else []
        self._started, self._cpu_started = time.perf_counter(), time.process_time()
        self._next_write = self._started + SECONDS_BETWEEN_WRITES

    def progressed(self) -> None:
        """Keep what the running attempt has taken so far, if that was not done just now."""
        if time.perf_counter() >= self._next_write:
            self.keep()

    def keep(self, others: Sequence[Process] = ()) -> Measured:
        """Write what the running attempt has taken so far; returns that of all attempts.

        Args:
            others: the processes that train the stage together with this one.
        """
        processes = [Process.this(self._cpu_started), *others]
        running = {
            "seconds": time.perf_counter() - self._started,
            "cpu_seconds": sum(p.cpu_seconds for p in processes),
            "peak_memory_bytes": max(p.peak_memory_bytes for p in processes),
            "load": os.getloadavg()[0],
        }
        attempts = [*self._earlier, running]
        write_json(self._path, attempts)
        self._next_write = time.perf_counter() + SECONDS_BETWEEN_WRITES
        return Measured(
            seconds=sum(a["seconds"] for a in attempts),
            cpu_seconds=sum(a["cpu_seconds"] for a in attempts),
            peak_memory_bytes=max(a.get("peak_memory_bytes", 0) for a in attempts),  # not kept by earlier versions
            load_average=max(a["load"] for a in attempts),
            attempts=len(attempts),
        )
