"""Checkpoints that are complete and verified, or do not exist.

One folder a checkpoint, `step-00000120/`: safetensors files, `state.json`, and `manifest.json` with the SHA-256 and
size of each, and of itself. It is filled as a hidden sibling, fsynced, then renamed. Loading checks every digest before
one tensor is used, and falls back to an older checkpoint with a warning. Nothing is ever unpickled.

Of several processes the first writes what all have alike. Of sharded tensors each writes its rows, to
`GROUP-00002-of-00004.safetensors`; any number of processes can read them again, each the rows it then has.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from quilate import faults
from quilate.engine.distributed import ALONE, World
from quilate.errors import CheckpointError, DataError, MachineError, explained_os_errors
from quilate.files import (
    atomic_folder,
    digest,
    make_folder,
    read_json,
    sha256_of_file,
    temporary_of,
    write_json,
)

SCHEMA = 2
NAME = re.compile(r"step-(\d{8})")
SHARD = re.compile(r"-\d{5}-of-\d{5}$")

SHARED = ("optimizer", "streams", "followers")  # groups that every process has, alike but for sharded tensors

Rows = tuple[int, int]  # from, up to
NONE: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Checkpoint:
    """What a training run needs to continue bit for bit: named groups of tensors and a JSON-able state.

    `rows` names the sharded tensors of the group `optimizer`, with the rows of the whole that are given here.
    """

    step: int
    tensors: dict[str, dict[str, torch.Tensor]]
    state: dict[str, Any]
    rows: Mapping[str, Rows] = field(default_factory=dict)


class Checkpointer:
    """The checkpoints of one run.

    Args:
        folder: the run's `checkpoints/`.
        keep: how many to keep; older ones are removed only after a newer one is safely on disk.
        warn: called with a line when a checkpoint is rejected.
        world: the processes that save and load together, in a folder that all of them see.
    """

    def __init__(
        self, folder: Path, *, keep: int = 1, warn: Callable[[str], None] = lambda _: None, world: World = ALONE
    ) -> None:
        if keep < 1:
            raise ValueError("keep at least one checkpoint")
        self.folder, self.keep, self.warn, self.world = folder, keep, warn, world

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, then prune. All processes return when it is done, or none has changed anything.

        Raises:
            MachineError: not enough room (checked before and while writing); the earlier checkpoint is intact.
        """
        path = self._path(checkpoint.step)
        with ExitStack() as stack:
            with self.world.together():
                if self.world.leads:
                    make_folder(self.folder)
                    for debris in self.folder.glob(".step-*"):  # as large as a checkpoint, so it goes first
                        shutil.rmtree(debris, ignore_errors=True)
                    self._check_room(checkpoint)
                    stack.enter_context(atomic_folder(path, fault="checkpoint"))
            with self.world.together(), explained_os_errors(path, f"write {path.name}"):
                self._write(temporary_of(path), checkpoint)
            with self.world.together():
                if self.world.leads:
                    _seal(temporary_of(path), checkpoint)
                    stack.close()  # all is on disk and has its name
                    self._prune(checkpoint.step)

    def _write(self, folder: Path, checkpoint: Checkpoint) -> None:
        """This process's part: of sharded tensors its rows, of the others what no process before it has too."""
        for group, tensors in checkpoint.tensors.items():
            faults.at("checkpoint.write")
            whole = {name: t for name, t in tensors.items() if name not in checkpoint.rows}
            if self.world.leads or group not in SHARED:
                _write_tensors(folder / f"{group}.safetensors", whole)
        if checkpoint.rows:
            name = f"optimizer-{self.world.rank + 1:05d}-of-{self.world.size:05d}.safetensors"
            rows = {key: checkpoint.tensors["optimizer"][key] for key in checkpoint.rows}
            _write_tensors(folder / name, rows, {key: first for key, (first, _) in checkpoint.rows.items()})

    def latest(self, rows: Mapping[str, Rows] | None = None) -> Checkpoint | None:
        """The newest checkpoint that passes every check, or None when there are none.

        Args:
            rows: of which tensors of the group `optimizer` only these rows are wanted.

        Raises:
            CheckpointError: there are checkpoints and not one of them is whole.
        """
        problems = []
        for path in reversed(self._paths()):
            try:
                return load_checkpoint(path, rows or {})
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


def _seal(folder: Path, checkpoint: Checkpoint) -> None:
    """Write what makes the folder a checkpoint: the state, and the digests of all files."""
    write_json(folder / "state.json", checkpoint.state)
    files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256_of_file(p)} for p in sorted(folder.iterdir())}
    manifest = {"schema": SCHEMA, "step": checkpoint.step, "files": files}
    write_json(folder / "manifest.json", manifest | {"sha256": digest(manifest)})


def load_checkpoint(path: Path, rows: Mapping[str, Rows] = NONE) -> Checkpoint:
    """Load one checkpoint after checking the size and digest of every file; `rows` as for `Checkpointer.latest`.

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
    groups: dict[str, list[Path]] = {}
    for name in sorted(files):
        if name.endswith(".safetensors"):
            groups.setdefault(SHARD.sub("", name.removesuffix(".safetensors")), []).append(path / name)
    try:
        tensors = {group: _read_tensors(parts, rows if group == "optimizer" else {}) for group, parts in groups.items()}
    except SafetensorError as error:  # its digest is right, so it was written so: by something else than `save`
        raise CheckpointError(f"{path} holds a file that is no safetensors file: {error}") from error
    return Checkpoint(step, tensors, read_json(path / "state.json"), rows)


def _write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], first_rows: Mapping[str, int] = NONE) -> None:
    metadata = {"first_rows": json.dumps(dict(first_rows))} if first_rows else None
    save_file({name: t.contiguous() for name, t in tensors.items()}, path, metadata)


def _read_tensors(parts: list[Path], rows: Mapping[str, Rows]) -> dict[str, torch.Tensor]:
    """The tensors of one group from the files it was written to; only the wanted rows of one are read."""
    found: dict[str, list[torch.Tensor]] = {}
    for path in parts:
        with safe_open(path, framework="pt") as file:
            first_rows = json.loads((file.metadata() or {}).get("first_rows", "{}"))
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                pieces = found.setdefault(name, [])
                if name not in rows:
                    pieces.append(file.get_tensor(name))
                    continue
                part, first = file.get_slice(name), first_rows.get(name, 0)
                start, stop = (min(max(row - first, 0), part.get_shape()[0]) for row in rows[name])
                pieces.append(part[start:stop])
    return {name: pieces[0] if len(pieces) == 1 else torch.cat(pieces) for name, pieces in found.items()}
