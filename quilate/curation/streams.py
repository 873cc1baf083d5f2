"""Byte streams from files that nobody vouches for: decompressed, decoded, and bounded in everything.

Compression is recognized by its magic number. A stream may unpack to so many bytes and to so many times its packed
size, and no further: a bomb of 1000:1 costs a fifth of what it wants before it is dropped.
"""

from __future__ import annotations

import codecs
import gzip
import io
import itertools
import re
import zlib
from collections.abc import Iterator
from typing import IO, Any

import pyarrow
from pydantic import Field

from quilate.config import Config
from quilate.data.lines import split_lines

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_CHUNK_BYTES = 2**16
FREE_BYTES = 16 * 2**20  # guess: no ratio is looked at below; small files may be repetitive

_MULTIBYTE = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_HIGH = re.compile(rb"[\x80-\xff]")
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_BINARY_HEADS = (
    b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"%PDF", b"PK\x03\x04", b"\x7fELF", b"MZ", b"RIFF", b"SQLite format 3",
    b"Rar!", b"7z\xbc\xaf", b"\xd0\xcf\x11\xe0",
)  # fmt: skip


class LimitsConfig(Config):
    """What one document, one file and one extraction may cost."""

    document_bytes: int = Field(default=16 * 2**20, ge=1)
    """Longest line, record or document, in bytes; longer ones are set aside."""
    page_bytes: int = Field(default=64 * 2**20, ge=1)
    """Longest HTML page, PDF or docx, in bytes as it lies in the file."""
    file_bytes: int = Field(default=64 * 2**30, ge=1)
    """Most bytes that one file may unpack to; the rest of it is set aside."""
    expansion: float = Field(default=200, gt=1)
    """Most times its packed size that a file may unpack to."""
    seconds: float = Field(default=20, gt=0)
    """Longest that the extraction of one page may take."""
    memory_bytes: int = Field(default=2 * 2**30, ge=2**28)
    """Most memory that extraction may take, in a process of its own."""


class Broken(Exception):
    """The rest of a stream cannot be read; `reason` is one of `documents.REASONS`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Counted(io.RawIOBase):
    """A stream that knows how many bytes were taken from it."""

    def __init__(self, file: IO[bytes], head: bytes) -> None:
        self._file = file
        self._head = head
        self.taken = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self._head + self._file.read(len(buffer) - len(self._head))
        self._head = b""
        buffer[: len(part)] = part
        self.taken += len(part)
        return len(part)


def chunks(file: IO[bytes], limits: LimitsConfig) -> Iterator[bytes]:
    """The content of a plain, gzip or zstd stream.

    Raises:
        Broken: it is cut short or damaged, or unpacks to more than the limits allow.
    """
    head = file.read(4)
    counted = _Counted(file, head)
    total = 0
    packed = head.startswith((_GZIP, _ZSTD))
    for chunk in _decompressed(counted, head):
        total += len(chunk)
        if total > limits.file_bytes or (packed and total > max(FREE_BYTES, limits.expansion * counted.taken)):
            raise Broken("expands too much")
        yield chunk


def _decompressed(counted: _Counted, head: bytes) -> Iterator[bytes]:
    stream: Any
    if head.startswith(_GZIP):
        stream = gzip.GzipFile(fileobj=io.BufferedReader(counted, _CHUNK_BYTES))
    elif head.startswith(_ZSTD):
        stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(counted, mode="r"), "zstd")
    else:
        stream = counted
    try:
        while chunk := stream.read1(_CHUNK_BYTES) if isinstance(stream, gzip.GzipFile) else stream.read(_CHUNK_BYTES):
            yield bytes(chunk)
    except (EOFError, gzip.BadGzipFile, zlib.error, pyarrow.ArrowException) as error:
        raise Broken("cut short") from error
    except OSError as error:
        if error.errno is not None:  # the operating system's, not the decompressor's
            raise
        raise Broken("cut short") from error


def whole(file: IO[bytes], limits: LimitsConfig) -> bytes:
    """The content of a stream, which must be short: a page.

    Raises:
        Broken: as `chunks`, or it is longer than `limits.page_bytes`.
    """
    parts: list[bytes] = []
    size = 0
    for chunk in chunks(file, limits):
        size += len(chunk)
        if size > limits.page_bytes:
            raise Broken("too long")
        parts.append(chunk)
    return b"".join(parts)


def lines(file: IO[bytes], limits: LimitsConfig) -> Iterator[bytes | None]:
    """The lines of a stream without their ends; None for one above `limits.document_bytes`.

    Raises:
        Broken: as `chunks`, or its first bytes are not text.
    """
    parts = chunks(file, limits)
    head = next(parts, b"")
    if is_binary(head):
        raise Broken("binary")
    whole_stream = itertools.chain([head.removeprefix(codecs.BOM_UTF8)], parts)
    yield from split_lines(whole_stream, limits.document_bytes)


def is_binary(content: bytes) -> bool:
    """Whether bytes are not text: they begin like a known binary format, or hold control characters no text has."""
    sample = content[:_CHUNK_BYTES]
    return sample.startswith(_BINARY_HEADS) or len(_CONTROL.findall(sample)) > len(sample) // 100


def decode(line: bytes, encoding: str = "auto") -> tuple[str, str] | None:
    """Text and the encoding it was in; None if it is text in none.

    Of its own, every line is UTF-8 if it can be. If not, it is cp1252 (Spanish Windows) when few of its high bytes form
    whole UTF-8 characters; when most do, it is damaged UTF-8, and nothing is guessed.
    """
    if encoding != "auto":
        try:
            return line.decode(encoding), encoding
        except UnicodeDecodeError:
            return None
    try:
        return line.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        inside = sum(len(match) for match in _MULTIBYTE.findall(line))
        if 2 * inside >= len(_HIGH.findall(line)):
            return None
    try:
        return line.decode("cp1252"), "cp1252"
    except UnicodeDecodeError:
        return None
