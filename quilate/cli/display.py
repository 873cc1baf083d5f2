"""What a person sees while a recipe runs: one live line in a terminal, plain lines in a log, nothing with `--json`."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from quilate.engine.runlog import Progress
from quilate.recipe.graph import Node

SECONDS_BETWEEN_LINES = 10.0


class RunDisplay:
    """Implements `quilate.recipe.run.RunListener`; writes to standard error, for standard output is for results."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._title = ""
        self._next_line = 0.0

    def started(self, node: Node, number: int, total: int, *, resumed: bool) -> None:
        self.begin(f"[{number}/{total}] {node.name}")
        if resumed:
            self.console.print(f"{self._title}: continuing from its last checkpoint")

    def begin(self, title: str) -> None:
        """What the next events are about."""
        self._title = title
        if self.console.is_terminal:
            self._bar = Bar(
                SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.fields[detail]}"),
                console=self.console, transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task(self._title, total=None, detail="")
            self._bar.start()
        self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES

    def event(self, event: Progress | str) -> None:
        if isinstance(event, str):
            self.console.print(f"{self._title}: {event}")
        elif self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=event.done, total=event.total, detail=describe(event))
        elif time.monotonic() >= self._next_line:
            detail = describe(event)
            self.console.print(
                f"{self._title}: {event.done}/{event.total} {event.unit}" + (f", {detail}" if detail else "")
            )
            self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES

    def finished(self, node: Node, seconds: float, *, reused: bool) -> None:
        self.close()
        how = "reused" if reused else f"done in {clock(seconds)}"
        self.console.print(f"{self._title if not reused else node.name}: {how}")

    def close(self) -> None:
        """Take the live line away; called also when a run ends early."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None


def describe(progress: Progress) -> str:
    """Loss, speed and time left, as far as known."""
    parts = []
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.tokens_per_second is not None:
        parts.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    if progress.seconds_left is not None:
        parts.append(f"{clock(progress.seconds_left)} left")
    return ", ".join(parts)


def clock(seconds: float) -> str:
    """75 -> "1:15"; 7.4 -> "7.4 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def result_console() -> Console:
    """Where results go: standard output, wide enough for a table even when it is not a terminal."""
    console = Console(highlight=False)
    return console if sys.stdout.isatty() else Console(highlight=False, width=max(console.width, 140))
