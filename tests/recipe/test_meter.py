"""What a manifest says of seconds, processor time and memory: all attempts, all processes, and nobody else's."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quilate.files import make_folder, read_json
from quilate.recipe import meter
from quilate.recipe.spec import StageSpec

SCRIPT = Path(__file__).with_name("metered_stage.py")


def stage(folder: Path) -> Path:
    StageSpec("medida", "metered", 1, "0" * 64, 0, {}, {}, {}, str(folder)).write(make_folder(folder))
    return folder


def started(folder: Path, *more: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(folder), *more], env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def measured(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(folder / "manifest.json")["measured"]
    return found


def test_a_killed_attempt_counts_and_the_memory_of_who_started_it_does_not(tmp_path: Path) -> None:
    ours = b"x" * 400_000_000  # getrusage in the stage's process says as much
    folder = stage(tmp_path / "stage")
    killed = started(folder, "killed")
    assert killed.wait(60) == -signal.SIGKILL, killed.communicate()
    (attempt,) = read_json(folder / "attempts.json")
    assert attempt["seconds"] > 0.6  # of 0.8
    again = started(folder)
    assert again.wait(60) == 0, again.communicate()
    found = measured(folder)
    assert found["attempts"] == 2
    assert found["seconds"] > 0.6 + 0.8
    assert 5e6 < found["peak_memory_bytes"] < len(ours)


@pytest.mark.slow
def test_processes_that_train_together_are_added_up(tmp_path: Path) -> None:
    """The second process computes for half a second in each of two trainings, the first for none."""
    folder = stage(tmp_path / "stage")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [started(folder, RANK=rank, LOCAL_RANK=rank, **shared) for rank in ("0", "1")]
    _, errors = processes[0].communicate(timeout=120)
    assert processes[0].returncode == 0, errors
    processes[1].communicate(timeout=120)  # whatever it says: without `torchrun` the store ends with the first
    alone = read_json(folder / "manifest.json")["facts"]["processes"]
    assert alone == {"number": 2, "sharding": "ddp"}
    found = measured(folder)
    assert found["cpu_seconds"] > 1.0
    assert found["peak_memory_bytes"] > 200e6


def test_where_the_kernel_keeps_no_status_getrusage_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = meter.peak_bytes()
    monkeypatch.setattr(meter.Path, "read_text", lambda _: "Name:\tpython\n")
    assert meter.peak_bytes() >= usual / 2
