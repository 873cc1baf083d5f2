"""The second signal, clocks that jump, and what a save has brought to disk before the rename that declares it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_runs import Run, assert_same_bits

from quilate.engine.checkpoint import Checkpoint, Checkpointer

SIGNALS = """
import os, signal
from quilate.engine.interrupts import stop_on_signals
before = signal.getsignal(signal.SIGTERM)
with stop_on_signals() as stop:
    assert not stop
    os.kill(os.getpid(), signal.SIGTERM)
    print(stop.signal, bool(stop), flush=True)
assert signal.getsignal(signal.SIGTERM) is before
with stop_on_signals() as stop:
    os.kill(os.getpid(), signal.SIGINT)
    print(stop.signal, bool(stop), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("it goes on", flush=True)
"""


def test_the_first_signal_is_a_request_and_the_second_ends_the_process_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", SIGNALS], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["SIGTERM True", "SIGINT True"]
    assert done.returncode == 75, done.stderr


def test_a_clock_that_jumps_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saving goes by the monotonic clock; the wall clock may be set back or forward by anybody."""
    plain = Run(tmp_path / "a").again(checkpoint_seconds=1e9)
    jumps = iter(range(10_000))
    monkeypatch.setattr(time, "time", lambda: 1e9 * (-1) ** next(jumps))
    assert_same_bits(Run(tmp_path / "b").again(checkpoint_seconds=1e9), plain)
    assert not (tmp_path / "b" / "checkpoints").exists()  # by the jumping clock a save would have been due


def test_everything_is_on_disk_before_the_rename_declares_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a power cut would leave cannot be tried here; the order of the calls can be watched."""
    events: list[tuple[str, str]] = []
    fsync, replace = os.fsync, Path.replace

    def watched_fsync(descriptor: int) -> None:
        events.append(("fsync", Path(f"/proc/self/fd/{descriptor}").resolve().name))
        fsync(descriptor)

    def watched_replace(self: Path, target: Path) -> Path:
        events.append(("rename", target.name))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    Checkpointer(tmp_path).save(Checkpoint(7, {"optimizer": {"w": torch.ones(3)}}, {}))
    declared = events.index(("rename", "step-00000007"))
    before = events[:declared]
    written = {".step-00000007.tmp", "manifest.json", "state.json", "optimizer.safetensors"}
    assert {name for event, name in before if event == "fsync"} >= written
    assert ("fsync", tmp_path.name) in events[declared:]
    assert before.index(("fsync", ".step-00000007.tmp")) < declared
