"""JSON lines packed with zstd, written and read as streams."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pyarrow

from quilate.data.lines import split_lines
from quilate.files import fsync_folder

_CHUNK_BYTES = 2**16


class Write(Protocol):
    """Adds one row."""

    def __call__(self, **row: Any) -> None: ...


@contextmanager
def writing(path: Path) -> Iterator[Write]:
    """Write rows to a file that appears, whole, when the block ends; after an error there is none."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            with pyarrow.CompressedOutputStream(pyarrow.PythonFile(file, mode="w"), "zstd") as packed:

                def write(**row: Any) -> None:
                    packed.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")

                yield write
            if not file.closed:
                file.flush()
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
        fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file that `writing` left."""
    with pyarrow.input_stream(str(path), compression="zstd") as stream:
        for line in split_lines(iter(lambda: bytes(stream.read(_CHUNK_BYTES)), b""), limit=2**31):
            if line:
                yield json.loads(line)
