"""A disk that is really full: a small tmpfs, mounted in a namespace of the test's own where the system allows it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SAVE = """
import sys
from pathlib import Path
import torch
from quilate import faults
from quilate.engine.checkpoint import Checkpoint, Checkpointer
from quilate.errors import MachineError

disk = Path(sys.argv[1])
checkpointer = Checkpointer(disk / "checkpoints", keep=2)

def checkpoint(step, elements=20_000):
    return Checkpoint(step, {"optimizer": {"w": torch.full((elements,), float(step))}}, {"step": step})

def others_fill_the_disk():
    with (disk / "relleno").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass

checkpointer.save(checkpoint(3))

def refused(step, elements=20_000):
    try:
        checkpointer.save(checkpoint(step, elements))
    except MachineError as error:
        print(error.message, "|", error.hint)
        assert [p.name for p in (disk / "checkpoints").iterdir()] == ["step-00000003"], "debris, or the old one is gone"
        assert checkpointer.latest().step == 3
    else:
        raise AssertionError("saved")

refused(4, elements=500_000)  # seen before a byte is written
faults.arm("checkpoint.write", others_fill_the_disk)  # the room was there when it was looked at
refused(5)
(disk / "relleno").unlink()
checkpointer.save(checkpoint(6))
assert checkpointer.latest().step == 6
if len(sys.argv) > 2:
    import os
    assert os.system(f"mount -o remount,ro {disk}") == 0
    try:
        checkpointer.save(checkpoint(7))
    except MachineError as error:
        print(error.message, "|", error.hint)
    assert checkpointer.latest().step == 6
"""


def test_a_full_and_then_a_read_only_disk(tmp_path: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("there is no `unshare` here")
    mount = f"mount -t tmpfs -o size=600k tmpfs {tmp_path} && exec "
    inside = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*inside, mount + "true"], capture_output=True, timeout=60).returncode != 0:
        pytest.skip("this system does not let its users mount a tmpfs in a namespace of their own")
    command = f"{mount} {sys.executable} -c '{SAVE}' {tmp_path} then-read-only"
    done = subprocess.run([*inside, command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    before, during, read_only = done.stdout.splitlines()
    assert "a checkpoint needs 2 MB and" in before and "free some space" in before
    assert "the disk is full (0 MB free at" in during and "free some space and run the same command again" in during
    assert "read-only" in read_only and "choose another folder" in read_only


def test_files_that_may_not_grow_are_explained_too(tmp_path: Path) -> None:
    """Where nothing can be mounted, the limit of an account's files gives the kernel's own refusal."""
    code = """
import resource, signal, sys
from pathlib import Path
from quilate.errors import MachineError
from quilate.files import write_text
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
path = Path(sys.argv[1]) / "señal.txt"
write_text(path, "antes")
try:
    write_text(path, "x" * 20_000)
except MachineError as error:
    print(error)
assert path.read_text() == "antes" and [p.name for p in path.parent.iterdir()] == ["señal.txt"]
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "File too large" in done.stdout and "ulimit -f" in done.stdout
