"""Checkpoints are complete and verified, or do not exist: every file, every bit, every size."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors
import torch

from quilate import faults
from quilate.engine import checkpoint as checkpoint_module
from quilate.engine.checkpoint import Checkpoint, Checkpointer, load_checkpoint
from quilate.errors import CheckpointError, MachineError

FILES = ("manifest.json", "state.json", "optimizer.safetensors", "streams.safetensors")


def example(step: int = 7) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    tensors = {
        "optimizer": {
            "updates": torch.tensor(step),
            "parameter.w": torch.randn(5, 3, generator=generator).bfloat16(),
            "master.w": torch.randn(5, 3, generator=generator).T,  # not contiguous
            "empty": torch.empty(0),
        },
        "streams": {"torch_global": generator.get_state()},
    }
    return Checkpoint(step, tensors, {"counts": {"step": step, "tokens": 123}, "nota": "señal ñ"})


def assert_equal(ours: Checkpoint | None, expected: Checkpoint) -> None:
    assert ours is not None
    assert (ours.step, ours.state) == (expected.step, expected.state)
    assert ours.tensors.keys() == expected.tensors.keys()
    for group, tensors in expected.tensors.items():
        assert ours.tensors[group].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert ours.tensors[group][name].dtype == tensor.dtype
            assert torch.equal(ours.tensors[group][name], tensor)


@pytest.fixture
def saved(tmp_path: Path) -> Iterator[Path]:
    Checkpointer(tmp_path / "checkpoints").save(example())
    yield tmp_path / "checkpoints" / "step-00000007"


def test_round_trip_is_bit_equal(saved: Path) -> None:
    assert_equal(load_checkpoint(saved), example())
    assert_equal(Checkpointer(saved.parent).latest(), example())
    assert sorted(p.name for p in saved.iterdir()) == sorted(FILES)
    assert [p.name for p in saved.parent.iterdir()] == ["step-00000007"]


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert Checkpointer(tmp_path / "checkpoints").latest() is None
    (tmp_path / "checkpoints").mkdir()
    assert Checkpointer(tmp_path / "checkpoints").latest() is None


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_anywhere_is_found_before_a_tensor_is_read(
    saved: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Every bit of the JSON files; every eighth byte of the tensors. The message names the file that holds the bit."""

    def never(path: Path, **_: str) -> None:
        raise AssertionError(f"{path} was opened before all digests were checked")

    monkeypatch.setattr(checkpoint_module, "safe_open", never)
    content = (saved / name).read_bytes()
    places = range(8 * len(content)) if name.endswith(".json") else range(0, 8 * len(content), 61)
    for place in places:
        altered = bytearray(content)
        altered[place // 8] ^= 1 << (place % 8)
        (saved / name).write_bytes(altered)
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
            load_checkpoint(saved)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_found(saved: Path, name: str) -> None:
    content = (saved / name).read_bytes()
    for size in {0, 1, 8, len(content) // 2, len(content) - 2}:
        (saved / name).write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
            load_checkpoint(saved)
    (saved / name).write_bytes(content + b"\0")
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load_checkpoint(saved)


def test_a_manifest_that_is_json_and_nonsense_is_refused(saved: Path) -> None:
    manifest = json.loads((saved / "manifest.json").read_text())
    for content in (
        "[]",
        "null",
        "7",
        "{}",
        json.dumps(manifest | {"files": {}}),
        json.dumps(manifest | {"schema": 1}),
    ):
        (saved / "manifest.json").write_text(content)
        with pytest.raises(CheckpointError, match="step-00000007"):
            load_checkpoint(saved)


@pytest.mark.parametrize("name", FILES)
def test_without_a_file_the_older_checkpoint_serves_with_a_warning(tmp_path: Path, name: str) -> None:
    warnings: list[str] = []
    checkpointer = Checkpointer(tmp_path, keep=2, warn=warnings.append)
    checkpointer.save(example(3))
    checkpointer.save(example(7))
    (tmp_path / "step-00000007" / name).unlink()
    assert_equal(checkpointer.latest(), example(3))
    assert len(warnings) == 1
    assert f"step-00000007/{name}" in warnings[0]


def test_no_whole_checkpoint_at_all_is_an_error_never_a_fresh_start(saved: Path) -> None:
    (saved / "streams.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint is whole") as caught:
        Checkpointer(saved.parent).latest()
    assert str(saved.parent) in (caught.value.hint or "")


def test_debris_is_ignored_then_cleaned(saved: Path) -> None:
    folder = saved.parent
    for name in (".step-00000009.tmp", "step-00000009.bak", "step-9", "step-000000099", ".step-00000005.replaced"):
        shutil.copytree(saved, folder / name)
    (folder / "step-00000009").write_text("a file, not a folder")
    (folder / "step-00000009").unlink()
    checkpointer = Checkpointer(folder)
    assert_equal(checkpointer.latest(), example())
    checkpointer.save(example(8))
    left = {p.name for p in folder.iterdir()}
    assert left == {"step-00000008", "step-00000009.bak", "step-9", "step-000000099"}


def test_older_ones_are_pruned_after_the_newer_is_there(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path, keep=2)
    for step in (1, 2, 3):
        checkpointer.save(example(step))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    with pytest.raises(ValueError, match="at least one"):
        Checkpointer(tmp_path, keep=0)


def test_a_damaged_later_checkpoint_never_outlives_the_good_one(tmp_path: Path) -> None:
    """Killed after the rename and before pruning, then damaged: the run falls back, goes on, and saves in between."""
    Checkpointer(tmp_path, keep=2).save(example(5))
    Checkpointer(tmp_path, keep=2).save(example(10))
    (tmp_path / "step-00000010" / "state.json").write_text("{")
    checkpointer = Checkpointer(tmp_path, keep=1)
    assert_equal(checkpointer.latest(), example(5))
    checkpointer.save(example(7))
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000007"]
    assert_equal(checkpointer.latest(), example(7))


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize(
    ("point", "nth"),
    [
        ("checkpoint.write", 1), ("checkpoint.write", 2), ("files.write", 1), ("files.rename", 2),
        ("checkpoint.fsync", 3), ("checkpoint.rename", 1),
    ],
)  # fmt: skip
def test_a_full_disk_leaves_the_old_checkpoint_and_no_debris(tmp_path: Path, point: str, nth: int, keep: int) -> None:
    checkpointer = Checkpointer(tmp_path, keep=keep)
    checkpointer.save(example(3))
    faults.arm(point, "disk-full", nth)
    with pytest.raises(MachineError, match="disk is full") as caught:
        checkpointer.save(example(7))
    assert "free some space" in (caught.value.hint or "")
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000003"]
    assert_equal(checkpointer.latest(), example(3))
    checkpointer.save(example(7))  # the fault fires once: with room again, the next save goes through
    assert_equal(checkpointer.latest(), example(7))


def test_a_disk_that_fills_inside_safetensors_is_a_full_disk_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors is written in Rust and raises an error of its own, which is no OSError."""

    def full(tensors: object, path: Path, metadata: object) -> None:
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(example(3))
    monkeypatch.setattr(checkpoint_module, "save_file", full)
    with pytest.raises(MachineError, match="disk is full"):
        checkpointer.save(example(7))
    assert_equal(checkpointer.latest(), example(3))


def test_a_real_refusal_inside_safetensors_keeps_its_number(tmp_path: Path) -> None:
    """A child whose files may not exceed 10 kB: the kernel's refusal reaches us as the error it is (EFBIG here)."""
    code = """
import errno, resource, signal, sys, torch
from safetensors.torch import save_file
from quilate.errors import MachineError, explained_os_errors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    with explained_os_errors(sys.argv[1], "write"):
        save_file({"a": torch.zeros(100_000)}, sys.argv[1])
except MachineError as error:
    print(errno.errorcode[error.__cause__.errno])
"""
    arguments = [sys.executable, "-c", code, str(tmp_path / "x.safetensors")]
    assert subprocess.run(arguments, capture_output=True, text=True, timeout=60).stdout.strip() == "EFBIG"


def test_too_little_room_is_seen_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(example(3))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(MachineError, match="0 MB are free"):
        checkpointer.save(example(7))
    assert_equal(checkpointer.latest(), example(3))
