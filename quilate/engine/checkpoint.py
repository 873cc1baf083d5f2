"""Checkpoints that are complete and verified, or do not exist.

One folder a checkpoint, `step-00000120/`: safetensors files, `state.json`, and `manifest.json` with the SHA-256 and
size of each, and of itself. It is filled as a hidden sibling, fsynced, then renamed. Loading checks every digest before
one tensor is used, and falls back to an older checkpoint with a warning. Nothing is ever unpickled.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from quilate import faults
from quilate.errors import CheckpointError, DataError, MachineError
from quilate.files import atomic_folder, digest, make_folder, read_json, sha256_of_file, write_json

SCHEMA = 1
NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class Checkpoint:
    """What a training run needs to continue bit for bit: named groups of tensors and a JSON-able state."""

    step: int
    tensors: dict[str, dict[str, torch.Tensor]]
    state: dict[str, Any]


class Checkpointer:
    """The checkpoints of one run.

    Args:
        folder: the run's `checkpoints/`.
        keep: how many to keep; older ones are removed only after a newer one is safely on disk.
        warn: called with a line when a checkpoint is rejected.
    """

    def __init__(self, folder: Path, *, keep: int = 1, warn: Callable[[str], None] = lambda _: None) -> None:
        if keep < 1:
            raise ValueError("keep at least one checkpoint")
        self.folder, self.keep, self.warn = folder, keep, warn

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, then prune.

        Raises:
            MachineError: not enough room (checked before and while writing); the earlier checkpoint is intact.
        """
        make_folder(self.folder)
        for debris in self.folder.glob(".step-*"):  # of a killed save; as large as a checkpoint, so it goes first
            shutil.rmtree(debris, ignore_errors=True)
        self._check_room(checkpoint)
        with atomic_folder(self._path(checkpoint.step), fault="checkpoint") as folder:
            for group, tensors in checkpoint.tensors.items():
                faults.at("checkpoint.write")
                save_file({name: t.contiguous() for name, t in tensors.items()}, folder / f"{group}.safetensors")
            write_json(folder / "state.json", checkpoint.state)
            files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256_of_file(p)} for p in sorted(folder.iterdir())}
            manifest = {"schema": SCHEMA, "step": checkpoint.step, "files": files}
            write_json(folder / "manifest.json", manifest | {"sha256": digest(manifest)})
        self._prune(checkpoint.step)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that passes every check, or None when there are none.

        Raises:
            CheckpointError: there are checkpoints and not one of them is whole.
        """
        problems = []
        for path in reversed(self._paths()):
            try:
                return load_checkpoint(path)
            except (CheckpointError, MachineError) as error:
                problems.append(error.message)
                self.warn(f"checkpoint rejected: {error.message}")
        if problems:
            raise CheckpointError(
                "no checkpoint is whole: " + "; ".join(problems),
                hint=f"remove {self.folder} to train this stage again from its start",
            )
        return None

    def clear(self) -> None:
        """Remove all checkpoints: the final model has replaced them."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _prune(self, saved: int) -> None:
        """Keep the checkpoint just saved and those before it. Later ones are not newer: `latest` rejected them."""
        up_to_now = [path for path in self._paths() if path.name <= self._path(saved).name]
        for path in set(self._paths()) - set(up_to_now[-self.keep :]):
            shutil.rmtree(path)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _paths(self) -> list[Path]:
        """Finished checkpoints, oldest first; debris (`.step-….tmp`, `step-….bak`) does not match."""
        if not self.folder.is_dir():
            return []
        return sorted(p for p in self.folder.iterdir() if NAME.fullmatch(p.name))

    def _check_room(self, checkpoint: Checkpoint) -> None:
        needed = sum(t.numel() * t.element_size() for group in checkpoint.tensors.values() for t in group.values())
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise MachineError(
                f"a checkpoint needs {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free at {self.folder}",
                hint="free some space and run the same command again; the last checkpoint is intact",
            )


def load_checkpoint(path: Path) -> Checkpoint:
    """Load one checkpoint after checking the size and digest of every file.

    Raises:
        CheckpointError: a file is missing, of another size, altered, or of an unknown schema; the message names it.
    """
    try:
        manifest = read_json(path / "manifest.json")
        written = manifest.pop("sha256")
        schema, step, files = manifest["schema"], manifest["step"], manifest["files"]
    except (DataError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path / 'manifest.json'} is missing or broken") from error
    if schema != SCHEMA:
        raise CheckpointError(f"{path / 'manifest.json'} has schema {schema}; this version reads {SCHEMA}")
    if digest(manifest) != written:
        raise CheckpointError(f"{path / 'manifest.json'} was altered: its SHA-256 differs")
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing")
        if file.stat().st_size != expected["bytes"]:
            raise CheckpointError(f"{file} has {file.stat().st_size:,} bytes, {expected['bytes']:,} were written")
        if sha256_of_file(file) != expected["sha256"]:
            raise CheckpointError(f"{file} was altered: its SHA-256 differs")
    groups = [name.removesuffix(".safetensors") for name in files if name.endswith(".safetensors")]
    try:
        tensors = {group: load_file(path / f"{group}.safetensors") for group in groups}
    except SafetensorError as error:  # its digest is right, so it was written so: by something else than `save`
        raise CheckpointError(f"{path} holds a file that is no safetensors file: {error}") from error
    return Checkpoint(step, tensors, read_json(path / "state.json"))
