"""Files that are either complete or absent: atomic writes, digests, folder locks, strict YAML."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quilate import faults
from quilate.errors import ConfigError, DataError, MachineError, explained_os_errors

PRIVATE_FOLDER = 0o700  # run directories hold source text: nobody else on the machine may read them


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal strings, so digests of it identify content."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON-able value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def sha256_of_file(path: Path) -> str:
    """SHA-256 (hex) of a file's content.

    Raises:
        DataError: the file does not exist.
        MachineError: it cannot be read.
    """
    with explained_os_errors(path, "read"), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_tree(folder: Path) -> str:
    """SHA-256 (hex) over the names and contents of all files under `folder`."""
    names = sorted(p for p in folder.rglob("*") if p.is_file())
    return digest([[str(p.relative_to(folder)), sha256_of_file(p)] for p in names])


def make_folder(path: Path) -> Path:
    """Create a private folder (mode 0700) and its parents; an existing one is kept as it is."""
    with explained_os_errors(path, "create the folder"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
    return path


def cache_folder() -> Path:
    """Where what is made once for this machine is kept: `$QUILATE_CACHE`, else `~/.cache/quilate`."""
    return make_folder(Path(os.environ.get("QUILATE_CACHE", "~/.cache/quilate")).expanduser())


def fsync_folder(path: Path) -> None:
    """Make the names inside `path` durable (a rename is only on disk after this)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part (temporary, fsync, rename).

    Raises:
        MachineError: the folder is not writable or the disk is full; the old file is intact.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with explained_os_errors(path, f"write {path.name}"):
            with temporary.open("wb") as file:
                faults.at("files.write")
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            faults.at("files.rename")
            temporary.replace(path)
            fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Atomic UTF-8 text; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Atomic, indented, human-readable JSON; see `write_bytes`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file we wrote.

    Raises:
        DataError: it is missing, not UTF-8 or not JSON.
    """
    with explained_os_errors(path, "read"):
        text = path.read_bytes()
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(
            f"{path} is not valid JSON: {error}", hint="restore it or remove the folder that holds it"
        ) from error


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Atomic JSON lines."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines we wrote.

    Raises:
        DataError: missing, or a line is broken (the message names the line).
    """
    rows = []
    with explained_os_errors(path, "read"):
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # splitlines would also split at U+2028 inside texts
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise DataError(
                f"{path}, line {number}: {error}", hint="the file was altered; remove its folder and run again"
            ) from error
    return rows


def temporary_of(path: Path) -> Path:
    """Where `atomic_folder` fills a folder. A fixed name: debris of a killed run is found and cleaned by the next."""
    return path.with_name(f".{path.name}.tmp")


@contextmanager
def atomic_folder(path: Path, *, fault: str = "folder") -> Iterator[Path]:
    """Fill a temporary sibling folder; on success fsync every file and rename it to `path`, else remove it.

    An existing `path` is replaced only at the rename. Fault points: `{fault}.fsync` and `{fault}.rename`.
    """
    make_folder(path.parent)
    temporary = temporary_of(path)
    try:
        with explained_os_errors(path, f"write {path.name}"):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(mode=PRIVATE_FOLDER)
            yield temporary
            for file in sorted(p for p in temporary.rglob("*") if p.is_file()):
                faults.at(f"{fault}.fsync")
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
            for folder in [p for p in temporary.rglob("*") if p.is_dir()] + [temporary]:
                fsync_folder(folder)
            faults.at(f"{fault}.rename")
            replaced = path.with_name(f".{path.name}.replaced")
            shutil.rmtree(replaced, ignore_errors=True)  # of a run killed between the two renames below
            if path.exists():
                path.replace(replaced)
            temporary.replace(path)
            fsync_folder(path.parent)
            shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; the kernel releases it when the process dies, however it dies.

    Raises:
        MachineError: another process holds it.
    """
    make_folder(folder)
    with explained_os_errors(folder, "lock the run directory"):
        handle = (folder / ".lock").open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        handle.close()
        raise MachineError(
            f"another quilate process is working in {folder}",
            hint="wait for it to finish, or give this run its own folder with --out",
        ) from error
    try:
        yield
    finally:
        handle.close()


def read_yaml(path: Path) -> tuple[Any, dict[tuple[str | int, ...], int]]:
    """Read YAML 1.2 with the safe loader: plain maps, lists and scalars; no tags, no objects.

    Returns:
        The value, and the line (from 1) of every key path, for error messages.

    Raises:
        DataError: the file is missing or not UTF-8.
        ConfigError: it is not YAML, repeats a key, or uses a tag such as `!!python/object`.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    with explained_os_errors(path, "read"):
        raw = path.read_bytes()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start})", hint="save it as UTF-8") from error
    try:
        safe_value = YAML(typ="safe", pure=True).load(text)  # refuses unknown tags before anything else reads the text
        marked = YAML(typ="rt").load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(
            f"{where}: {problem}", hint="recipes are plain YAML 1.2: maps, lists, strings, numbers; no tags"
        ) from error
    lines: dict[tuple[str | int, ...], int] = {}
    _collect_lines(marked, (), lines)
    return safe_value, lines


def _collect_lines(node: Any, path: tuple[str | int, ...], lines: dict[tuple[str | int, ...], int]) -> None:
    positions: Any = getattr(node, "lc", None)  # of a CommentedMap or CommentedSeq
    if isinstance(node, Mapping):
        for key in node:
            lines[(*path, key)] = positions.key(key)[0] + 1
            _collect_lines(node[key], (*path, key), lines)
    elif isinstance(node, list):
        for index, item in enumerate(node):
            lines[(*path, index)] = positions.item(index)[0] + 1
            _collect_lines(item, (*path, index), lines)
