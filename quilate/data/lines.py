"""From a file on disk to bounded raw lines and their encoding.

Compression is recognized by its magic number, never by the name. Every quantity that a hostile or damaged file could
make endless has a limit: the length of a line, and the decompressed length of the file.
"""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow

from quilate.errors import ConfigError, DataError, explained_os_errors

MAX_RECORD_BYTES = 16 * 2**20  # guess: a clinical history of 16 MB is a mistake; also bounds what a broken line costs
MAX_FILE_BYTES = 8 * 2**30  # guess: tables are held in memory; stops a gzip bomb

_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_CHUNK_BYTES = 2**16


@dataclass(frozen=True)
class RawLines:
    """A text file's lines without their terminators; None stands for a line above `MAX_RECORD_BYTES`."""

    lines: list[bytes | None]
    compression: str


def read_lines(path: Path) -> RawLines:
    """Read a text file, decompressing gzip and zstd.

    Raises:
        DataError: missing, not a regular file, empty, binary, UTF-16, cut short or damaged inside its compression
            (the message says how many lines were read before), or above `MAX_FILE_BYTES`.
        MachineError: it cannot be read.
    """
    with explained_os_errors(path, "read the table"):
        head = _head(path)
        compression = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "none")
        lines: list[bytes | None] = []
        try:
            for line in split_lines(_bounded(_chunks(path, compression), path), MAX_RECORD_BYTES):
                lines.append(line)  # not extend: those before a break are counted
        except (EOFError, gzip.BadGzipFile, zlib.error, pyarrow.ArrowException, _Truncated) as error:
            raise DataError(
                f"{path} is cut short or damaged inside its {compression} compression: "
                f"{len(lines)} complete lines could be read before that",
                hint="copy or download it again; nothing of it was used",
            ) from error
    if not any(lines):
        raise DataError(f"{path} is empty", hint="a table needs a header or JSON lines, and at least one row")
    _refuse_binary(path, next(line for line in lines if line))
    return RawLines(lines, compression)


def sniff_encoding(lines: list[bytes | None]) -> str:
    """Guess between utf-8, utf-8-sig and cp1252 (the encoding of Spanish Excel).

    A byte order mark decides. Otherwise every non-ASCII line votes: accented cp1252 text is almost never valid UTF-8,
    so a file with more valid than invalid lines is UTF-8 with damaged lines, not cp1252.
    """
    if lines and lines[0] and lines[0].startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    valid = invalid = 0
    for line in lines:
        if line is None or line.isascii():
            continue
        try:
            line.decode("utf-8")
            valid += 1
        except UnicodeDecodeError:
            invalid += 1
    return "cp1252" if invalid and invalid >= valid else "utf-8"


def check_encoding(name: str) -> str:
    """Return `name` if it can be used line by line.

    Raises:
        ConfigError: it is unknown, or a newline in it is not the byte 10 (UTF-16).
    """
    try:
        usable = "a\n".encode(name) == b"a\n" or name.lower().replace("_", "-") == "utf-8-sig"
    except LookupError:
        usable = False
    if not usable:
        raise ConfigError(
            f"encoding '{name}' cannot be used: it is unknown, or does not extend ASCII",
            hint="use utf-8, cp1252 or latin-1, or save the file as UTF-8",
        )
    return name


def decoded(lines: list[bytes | None], encoding: str) -> Iterator[str | None]:
    """Decode each line; undecodable bytes become lone surrogates (PEP 383), for the parser to find and report."""
    codec = "utf-8" if encoding.lower().replace("_", "-") == "utf-8-sig" else encoding
    for index, line in enumerate(lines):
        if line is None:
            yield None
            continue
        yield (line.removeprefix(codecs.BOM_UTF8) if index == 0 else line).decode(codec, errors="surrogateescape")


class _Truncated(Exception):
    """The compressed stream ends early or does not decode."""


def _head(path: Path) -> bytes:
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is not a regular file", hint="give a file, not a folder, a device or a pipe")
    with path.open("rb") as file:
        return file.read(4)


def _chunks(path: Path, compression: str) -> Iterator[bytes]:
    if compression == "zstd":
        with pyarrow.input_stream(str(path), compression="zstd") as stream:
            while chunk := _read_zstd(stream):
                yield chunk
        return
    # read1 returns what is already decompressed, so that the lines before a break are counted
    with gzip.open(path, "rb") if compression == "gzip" else path.open("rb") as file:
        while chunk := file.read1(_CHUNK_BYTES):
            yield chunk


def _read_zstd(stream: Any) -> bytes:
    try:
        return bytes(stream.read(_CHUNK_BYTES))
    except OSError as error:
        if error.errno is not None:  # the operating system's, not the decompressor's
            raise
        raise _Truncated(str(error)) from error


def split_lines(chunks: Iterator[bytes], limit: int) -> Iterator[bytes | None]:
    """The lines of a byte stream; None for one above `limit` bytes, of which no more than that is held in memory."""
    pending: bytes | None = b""  # the unfinished last line; None once it is over the limit
    for chunk in chunks:
        *finished, last = chunk.split(b"\n")
        for part in finished:
            yield _without_return(_joined(pending, part, limit))
            pending = b""
        pending = _joined(pending, last, limit)
    if pending is None or pending:
        yield _without_return(pending)


def _without_return(line: bytes | None) -> bytes | None:
    return line[:-1] if line is not None and line.endswith(b"\r") else line


def _bounded(chunks: Iterator[bytes], path: Path) -> Iterator[bytes]:
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > MAX_FILE_BYTES:
            raise DataError(
                f"{path} is larger than {MAX_FILE_BYTES:,} bytes when decompressed",
                hint="tables are read into memory: split the file, or take the rows you need",
            )
        yield chunk


def _joined(pending: bytes | None, part: bytes, limit: int) -> bytes | None:
    if pending is None or len(pending) + len(part) > limit:
        return None
    return pending + part


def _refuse_binary(path: Path, first: bytes) -> None:
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path} is UTF-16 text", hint="save it as UTF-8 (in Excel: 'CSV UTF-8')")
    if b"\0" in first:
        raise DataError(f"{path} is not a text file", hint="export the table as CSV, JSON lines or Parquet")
