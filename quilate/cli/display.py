"""What a person sees while a recipe runs: one live line in a terminal, plain lines in a log, nothing with `--json`."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from quilate.engine.runlog import Progress
from quilate.recipe.graph import Node

SECONDS_BETWEEN_LINES = 10.0


@dataclass
class _Line:
    """What is shown of one thing that goes on: its title, its place in the bar, when its next plain line is due."""

    title: str
    task: TaskID | None
    due: float


class RunDisplay:
    """Implements `quilate.recipe.listener.RunListener`; writes to standard error, for standard output is for results.

    Several stages may go on at once; each has a line of its own.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False, markup=False)
        self._bar: Bar | None = None
        self._lines: dict[str, _Line] = {}

    def started(self, node: Node, number: int, total: int, *, resumed: bool) -> None:
        self.begin(node.name, f"[{number}/{total}] {node.name}")
        if resumed:
            self.tell(node.name, "continuing from its last checkpoint")

    def begin(self, name: str, title: str) -> None:
        """From now on `tell` may be told of `name`, which is shown as `title`."""
        task = None
        if self.console.is_terminal:
            if self._bar is None:
                self._bar = Bar(
                    SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
                    TextColumn("{task.fields[detail]}"),
                    console=self.console, transient=True,
                )  # fmt: skip
                self._bar.start()
            task = self._bar.add_task(title, total=None, detail="")
        self._lines[name] = _Line(title, task, time.monotonic() + SECONDS_BETWEEN_LINES)

    def event(self, node: Node, event: Progress | str) -> None:
        self.tell(node.name, event)

    def tell(self, name: str, event: Progress | str) -> None:
        """Show progress of `name`, or a note; one about what has not begun is shown under its name."""
        line = self._lines.get(name) or _Line(name, None, time.monotonic())
        if isinstance(event, str):
            self.console.print(f"{line.title}: {event}")
        elif self._bar is not None and line.task is not None:
            self._bar.update(line.task, completed=event.done, total=event.total, detail=describe(event))
        elif time.monotonic() >= line.due:
            detail = ", ".join(filter(None, [f"{event.done}/{event.total} {event.unit}", describe(event)]))
            self.console.print(f"{line.title}: {detail}")
            line.due = time.monotonic() + SECONDS_BETWEEN_LINES

    def finished(self, node: Node, seconds: float, *, reused: bool) -> None:
        line = self._lines.pop(node.name, None)
        if self._bar is not None and line is not None and line.task is not None:
            self._bar.remove_task(line.task)
        if not self._lines:
            self.close()
        how = "reused" if reused else f"done in {clock(seconds)}"
        self.console.print(f"{node.name if line is None else line.title}: {how}")

    def close(self) -> None:
        """Take the live lines away; called also when a run ends early."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        self._lines.clear()


def describe(progress: Progress) -> str:
    """Loss, health, speed and time left, as far as known."""
    parts = []
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.health:
        parts.append(progress.health)
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
