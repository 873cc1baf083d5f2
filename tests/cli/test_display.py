"""Several stages at once, in a log and in a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import Progress as Bar
from rich.progress import TaskID

from quilate.cli import display
from quilate.cli.display import RunDisplay
from quilate.engine.runlog import Progress
from quilate.recipe.graph import Node


def node(name: str) -> Node:
    return Node(name, "finetune", {}, 0, {}, "0" * 64)


A, B = node("lora-s0"), node("full-s0")


def two_at_once(shown: RunDisplay) -> None:
    shown.started(A, 1, 9, resumed=False)
    shown.started(B, 2, 9, resumed=True)
    shown.event(A, Progress(3, 12, "steps"))
    shown.event(B, Progress(5, 20, "steps", loss=0.5))
    shown.event(A, "un aviso de [otra] biblioteca [/sin] cierre")
    shown.finished(A, 7.4, reused=False)
    shown.event(B, Progress(20, 20, "steps"))
    shown.finished(B, 75.0, reused=False)
    shown.finished(node("task"), 1.0, reused=True)


def test_every_line_names_its_own_stage(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "SECONDS_BETWEEN_LINES", 0.0)
    two_at_once(RunDisplay())
    assert capsys.readouterr().err.splitlines() == [
        "[2/9] full-s0: continuing from its last checkpoint",
        "[1/9] lora-s0: 3/12 steps",
        "[2/9] full-s0: 5/20 steps, loss 0.500",
        "[1/9] lora-s0: un aviso de [otra] biblioteca [/sin] cierre",
        "[1/9] lora-s0: done in 7.4 s",
        "[2/9] full-s0: 20/20 steps",
        "[2/9] full-s0: done in 1:15",
        "task: reused",
    ]


def test_in_a_terminal_both_share_a_bar_and_it_ends_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = RunDisplay()
    seen: list[object] = []
    shown.console = Console(file=io.StringIO(), force_terminal=True, width=100, markup=False)
    start, stop, remove = Bar.start, Bar.stop, Bar.remove_task

    def started(bar: Bar) -> None:
        seen.append("start")
        start(bar)

    def stopped(bar: Bar) -> None:
        seen.append("stop")
        stop(bar)

    def removed(bar: Bar, task: TaskID) -> None:
        seen.append([(entry.description, entry.completed) for entry in bar.tasks])
        remove(bar, task)

    monkeypatch.setattr(Bar, "start", started)
    monkeypatch.setattr(Bar, "stop", stopped)
    monkeypatch.setattr(Bar, "remove_task", removed)
    two_at_once(shown)
    assert seen == ["start", [("[1/9] lora-s0", 3), ("[2/9] full-s0", 5)], [("[2/9] full-s0", 20)], "stop"]
    seen.clear()
    shown.started(A, 3, 9, resumed=False)
    shown.close()
    shown.close()
    assert seen == ["start", "stop"]
