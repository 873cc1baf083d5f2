"""SIGKILL at every named point of a save: the earlier checkpoint loads, the debris is ignored and then cleaned."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from quilate.engine.checkpoint import Checkpoint, Checkpointer

SAVE = """
import sys
from pathlib import Path
import torch
from quilate.engine.checkpoint import Checkpoint, Checkpointer
folder, step = Path(sys.argv[1]), int(sys.argv[2])
tensors = {"optimizer": {"w": torch.full((1000,), float(step))}, "streams": {"s": torch.arange(step)}}
Checkpointer(folder).save(Checkpoint(step, tensors, {"step": step}))
"""

# Passages of one save: two tensor files, two JSON files (each written and renamed), four files fsynced, one rename.
POINTS = [
    "checkpoint.write:1", "checkpoint.write:2", "files.write:1", "files.rename:2", "checkpoint.fsync:1",
    "checkpoint.fsync:4", "checkpoint.rename:1",
]  # fmt: skip


def save(folder: Path, step: int, fault: str = "") -> int:
    environment = os.environ | {"QUILATE_FAULTS": fault}
    return subprocess.run([sys.executable, "-c", SAVE, str(folder), str(step)], env=environment, timeout=120).returncode


@pytest.mark.parametrize("point", POINTS)
def test_the_earlier_checkpoint_survives(tmp_path: Path, point: str) -> None:
    warnings: list[str] = []
    checkpointer = Checkpointer(tmp_path, warn=warnings.append)
    checkpointer.save(Checkpoint(3, {"optimizer": {"w": torch.full((1000,), 3.0)}}, {"step": 3}))
    assert save(tmp_path, 5, f"{point}:kill") == -signal.SIGKILL
    found = checkpointer.latest()
    assert found is not None
    assert found.step == 3
    assert torch.equal(found.tensors["optimizer"]["w"], torch.full((1000,), 3.0))
    assert warnings == []
    assert (tmp_path / ".step-00000005.tmp").exists()
    checkpointer.save(Checkpoint(6, {"optimizer": {"w": torch.zeros(1)}}, {"step": 6}))
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000006"]


def test_unharmed_the_child_saves(tmp_path: Path) -> None:
    """The control: the points above are all passed, and not one more of the kind."""
    assert save(tmp_path, 5, "checkpoint.write:3:kill,files.rename:3:kill,checkpoint.fsync:5:kill") == 0
    found = Checkpointer(tmp_path).latest()
    assert found is not None
    assert found.step == 5
