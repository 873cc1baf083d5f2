"""What a training run leaves to read: `metrics.jsonl`, `timing.jsonl`, and live progress.

Metrics are a pure function of recipe, seed and machine, so a resumed run's file equals an undisturbed one's byte for
byte; seconds are kept apart in `timing.jsonl` because they never repeat.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quilate.errors import explained_os_errors
from quilate.files import write_text


@dataclass(frozen=True)
class Progress:
    """One line of live progress. `unit` is what `done` counts: steps, items, documents; `health` is what else is worth
    watching, in words."""

    done: int
    total: int
    unit: str
    loss: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    health: str = ""


ProgressListener = Callable[[Progress], None]


class RunLog:
    """The metric files of one run directory.

    Args:
        folder: the run directory.
        resumed_step: rows after this step are dropped from the files: the run repeats them.
        writes: False in all but one of the processes that train together.
    """

    def __init__(self, folder: Path, *, resumed_step: int, listener: ProgressListener, writes: bool = True) -> None:
        self._paths = {name: folder / f"{name}.jsonl" for name in ("metrics", "timing")}
        self._listener = listener
        self._started, self._first_step, self._tokens = time.monotonic(), resumed_step, 0
        self._writes = writes
        for path in self._paths.values() if writes else ():
            kept = [row for row in read_metrics(path) if row["step"] <= resumed_step]
            write_text(path, "".join(json.dumps(row) + "\n" for row in kept))  # killed here, the old rows must survive

    def step(self, step: int, total: int, *, tokens: int, loss: float, **metrics: Any) -> None:
        """Record one optimizer step (`step` counts from 1)."""
        if not self._writes:
            return
        elapsed = time.monotonic() - self._started
        self._tokens += tokens
        self._append(
            "metrics",
            {"step": step, "tokens": tokens, "loss": _finite(loss)} | {k: _finite(v) for k, v in metrics.items()},
        )
        self._append("timing", {"step": step, "seconds": round(elapsed, 3)})
        per_step = elapsed / (step - self._first_step)
        self._listener(Progress(step, total, "steps", loss, self._tokens / elapsed, per_step * (total - step)))

    def _append(self, name: str, row: dict[str, Any]) -> None:
        with explained_os_errors(self._paths[name], "write metrics"), self._paths[name].open("a") as file:
            file.write(json.dumps(row) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; a last line cut off by a kill is ignored, for the run will write it again."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _finite(value: Any) -> Any:
    """JSON has no NaN; a non-finite number is kept as its name so that it can be seen."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
