"""Raw sources as a stream of documents: text, tables, web pages, WARC, PDF, docx, and archives of these.

Nothing is unpacked to disk, and of no file more is held in memory than one document. What cannot be read is yielded as
`Refused` and costs its own record, or the rest of its file, never the run.
"""

from __future__ import annotations

import csv
import io
import json
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

import pyarrow

from quilate.config import Config
from quilate.curation.documents import Raw, Refused
from quilate.curation.streams import FREE_BYTES, Broken, LimitsConfig, chunks, decode, is_binary, lines, whole
from quilate.data.tables import SourceConfig, locate, sniff_delimiter
from quilate.errors import DataError, MachineError
from quilate.files import digest, sha256_of_file
from quilate.tasks.labels import cell_text
from quilate.tokenization.sandbox import SandboxedTemplate, is_template

Format = Literal["auto", "text", "jsonl", "csv", "parquet", "html", "warc", "pdf", "docx", "zip", "tar"]

SUFFIXES: dict[str, Format] = {
    ".txt": "text", ".text": "text", ".md": "text",
    ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".csv": "csv", ".tsv": "csv",
    ".parquet": "parquet",
    ".html": "html", ".htm": "html", ".xhtml": "html",
    ".warc": "warc",
    ".pdf": "pdf", ".docx": "docx",
    ".zip": "zip", ".tar": "tar", ".tgz": "tar",
}  # fmt: skip

_SAMPLE_LINES = 100  # guess: as in quilate.data.tables
_BATCH_ROWS = 256  # guess: rows of a Parquet file in memory at once


class RawSourceConfig(Config):
    """Where raw documents lie and how to read them."""

    path: str
    """A file, or a folder of files, relative to the recipe's folder: text (.txt, .md), tables (.jsonl, .csv, .tsv,
    .parquet), pages (.html, .warc, .pdf, .docx), and .zip and .tar archives of these. Text may be packed with gzip or
    zstd, which is recognized by content."""
    format: Format = "auto"
    """`auto` goes by each file's name."""
    documents: Literal["file", "paragraph", "line"] = "file"
    """What one document is in a text file: the whole `file`, a `paragraph` (between blank lines) or a `line`."""
    text: str = "text"
    """For a table: the column with the text, or a Jinja template over the columns."""
    id: str | None = None
    """For a table: the column with each row's id. Without it an id is made of source, file and row."""
    url: str | None = None
    """For a table: the column with the page's address, for the rules on addresses."""
    encoding: str = "auto"
    """Text encoding; `auto` decides line by line between UTF-8 and cp1252, and counts both."""
    delimiter: str = "auto"
    """Character between the fields of a csv."""
    licence: str | None = None
    """The licence of the texts, for the data card."""


@dataclass
class Place:
    """Where in which source the reader stands. `read_bytes` of the file on disk, packed as it is, have been read."""

    source: str
    file: str
    config: RawSourceConfig
    limits: LimitsConfig
    encodings: dict[str, int] = field(default_factory=dict)
    read_bytes: int = 0

    def at(self, row: int) -> str:
        return f"{self.file}:{row}"

    def raw(self, row: int, text: str, id_: str | None = None, url: str | None = None) -> Raw:
        return Raw(id_ or f"{self.source}/{self.at(row)}", text, "text", url, self.at(row))

    def decoded(self, line: bytes) -> str | None:
        """The line as text, its encoding counted; None if it has none."""
        found = decode(line, self.config.encoding)
        if found is None:
            return None
        if not line.isascii():
            self.encodings[found[1]] = self.encodings.get(found[1], 0) + 1
        return found[0]


Reader = Callable[[IO[bytes], Place], Iterator[Raw | Refused]]


def files_of(config: RawSourceConfig, base: Path) -> tuple[Path, list[Path]]:
    """The source's root, and its files in the order of their names; of a folder all but hidden ones.

    Raises:
        DataError: it does not exist, or holds nothing.
    """
    root = locate(SourceConfig(path=config.path), base=base)
    if not root.exists():
        raise DataError(f"{root} does not exist", hint="check the path and its spelling")
    if root.is_file():
        return root.resolve().parent, [root.resolve()]
    found = sorted(p for p in root.rglob("*") if not p.name.startswith(".") and (p.is_symlink() or not p.is_dir()))
    if not found:
        raise DataError(f"{root} holds no files", hint="name a file, or a folder with files in it")
    return root, found


def content_of_source(config: RawSourceConfig, base: Path) -> str:
    """The digest of all files of a source, by name and content.

    Raises:
        DataError: it does not exist, or holds nothing.
    """
    root, files = files_of(config, base)
    listed = [p for p in files if stat.S_ISREG(p.lstat().st_mode)]
    return digest([[str(p.relative_to(root)), sha256_of_file(p)] for p in listed])


def read(path: Path, place: Place) -> Iterator[Raw | Refused]:
    """Every document of a file on disk, and what of it could not be read."""
    if not stat.S_ISREG(path.lstat().st_mode):  # a link may point anywhere, a pipe may never end
        yield Refused(place.file, "unsafe name")
        return
    try:
        with path.open("rb") as file:
            for item in _read(file, place, format_of(place.config, path.name)):
                place.read_bytes = file.tell()
                yield item
    except PermissionError as error:
        raise MachineError(f"cannot read {path}", hint="ask for permission to read it") from error


def format_of(config: RawSourceConfig, name: str) -> str:
    """The format of a file by its name; "" if it does not tell."""
    if config.format != "auto":
        return config.format
    suffixes = [s.lower() for s in PurePosixPath(name).suffixes if s.lower() not in (".gz", ".zst")]
    return SUFFIXES.get(suffixes[-1], "") if suffixes else ""


def _read(file: IO[bytes], place: Place, form: str) -> Iterator[Raw | Refused]:
    if not form:
        yield Refused(place.file, "unknown format")
        return
    try:
        yield from READERS[form](file, place)
    except Broken as broken:
        yield Refused(place.file, broken.reason)


def _text(file: IO[bytes], place: Place) -> Iterator[Raw | Refused]:
    pending: list[str] = []
    size, started, unit, number = 0, 1, place.config.documents, 0
    too_long = False  # what follows of such a document is not another one
    for number, line in enumerate(lines(file, place.limits), start=1):
        if line is None:
            yield Refused(place.at(number), "too long")
            continue
        text = place.decoded(line)
        if text is None:
            yield Refused(place.at(number), "undecodable")
            continue
        ends = unit == "line" or (unit == "paragraph" and not text.strip())
        size += len(line) + 1
        if size > place.limits.document_bytes and unit != "line" and not too_long:
            yield Refused(place.at(started), "too long")
            pending, too_long = [], True
        if (text.strip() or unit == "file") and not too_long:
            pending.append(text)
        if ends:
            if any(part.strip() for part in pending):
                yield place.raw(started, "\n".join(pending).strip())
            pending, size, started, too_long = [], 0, number + 1, False
    if any(part.strip() for part in pending):
        yield place.raw(started, "\n".join(pending).strip())


class _Rows:
    """Rows of a table as documents."""

    def __init__(self, place: Place) -> None:
        self._place = place
        config = place.config
        self._template = SandboxedTemplate(config.text, name="text") if is_template(config.text) else None

    def document(self, number: int, row: Mapping[str, Any]) -> Raw | Refused:
        config = self._place.config
        if self._template is None:
            text = cell_text(row.get(config.text))
        else:
            cells = {name: row.get(name) for name in self._template.variables} | dict(row)
            text = self._template.render(**cells, row=cells).strip()
        if not text:
            return Refused(self._place.at(number), "no text")
        if len(text) > self._place.limits.document_bytes:
            return Refused(self._place.at(number), "too long")
        if not _encodable(text):
            return Refused(self._place.at(number), "undecodable")
        named = cell_text(row.get(config.id)) if config.id else ""
        url = cell_text(row.get(config.url)) if config.url else ""
        return self._place.raw(number, text, f"{self._place.source}/{named}" if named else None, url or None)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _jsonl(file: IO[bytes], place: Place) -> Iterator[Raw | Refused]:
    rows = _Rows(place)
    for number, line in enumerate(lines(file, place.limits), start=1):
        if line is None:
            yield Refused(place.at(number), "too long")
        elif (text := place.decoded(line)) is None:
            yield Refused(place.at(number), "undecodable")
        elif text.strip():
            try:
                row = json.loads(text)
            except (ValueError, RecursionError):
                row = None
            yield rows.document(number, row) if isinstance(row, dict) else Refused(place.at(number), "not JSON")


def _csv(file: IO[bytes], place: Place) -> Iterator[Raw | Refused]:
    """Records of a csv; a quoted field may hold line ends. A quote that is never closed ends the file."""
    unread = lines(file, place.limits)
    sample = [line for line, _ in zip(unread, range(_SAMPLE_LINES), strict=False)]
    delimiter = place.config.delimiter
    if delimiter == "auto":
        decoded = [None if line is None else decode(line, place.config.encoding) for line in sample]
        delimiter = sniff_delimiter([None if found is None else found[0] for found in decoded])
    fed = _Fed((line for part in (sample, unread) for line in part), place)
    reader = csv.reader(fed, delimiter=delimiter, strict=True)
    rows = _Rows(place)
    header: list[str] = []
    before = csv.field_size_limit(place.limits.document_bytes)
    try:
        while True:
            fed.start()
            try:
                record = next(reader, None)
            except csv.Error:
                yield from fed.take()
                yield Refused(place.at(fed.first), "broken record")
                if fed.ended:
                    return
                continue
            yield from fed.take()
            if record is None:
                return
            if not header:
                header = record
            elif len(record) != len(header):
                if record:
                    yield Refused(place.at(fed.first), "broken record")
            else:
                yield rows.document(fed.first, dict(zip(header, record, strict=True)))
    finally:
        csv.field_size_limit(before)


class _Fed:
    """Hands decoded lines to the csv reader; knows where a record began, and what could not be handed on."""

    def __init__(self, raw: Iterator[bytes | None], place: Place) -> None:
        self._raw = raw
        self._place = place
        self._refused: list[Refused] = []
        self._number = 0
        self._size = 0
        self.first = 0
        self.ended = False

    def start(self) -> None:
        self.first = self._number + 1
        self._size = 0

    def take(self) -> list[Refused]:
        taken, self._refused = self._refused, []
        return taken

    def __iter__(self) -> _Fed:
        return self

    def __next__(self) -> str:
        for line in self._raw:
            self._number += 1
            self._size += len(line or b"")
            if self._size > 2 * self._place.limits.document_bytes:
                self.ended = True
                raise csv.Error("a quote is not closed")
            text = None if line is None else self._place.decoded(line)
            if text is not None:
                return text + "\n"
            self._refused.append(Refused(self._place.at(self._number), "too long" if line is None else "undecodable"))
        self.ended = True
        raise StopIteration


def _parquet(file: IO[bytes], place: Place) -> Iterator[Raw | Refused]:
    """Rows one by one: a text that a file holds once, and names a million times, is never unpacked a million times."""
    from pyarrow import parquet

    rows, allowed = _Rows(place), _allowed(file.seek(0, io.SEEK_END), place.limits)
    file.seek(0)
    try:
        with parquet.ParquetFile(file) as plain:
            groups = [plain.metadata.row_group(index) for index in range(plain.num_row_groups)]
            texts = [field.name for field in plain.schema_arrow if field.type in _TEXTS]
        if sum(group.total_byte_size for group in groups) > allowed:
            raise Broken("expands too much")
        number = total = 0
        for batch in parquet.ParquetFile(file, read_dictionary=texts).iter_batches(_BATCH_ROWS):
            for index in range(len(batch)):
                row = {name: batch.column(name)[index].as_py() for name in batch.schema.names}
                total += sum(map(_size, row.values()))
                if total > allowed:
                    raise Broken("expands too much")
                number += 1
                yield rows.document(number, row)
    except (pyarrow.ArrowException, OSError) as error:
        raise Broken("unreadable") from error


_TEXTS = (pyarrow.string(), pyarrow.large_string(), pyarrow.binary(), pyarrow.large_binary())


def _size(cell: Any) -> int:
    """The characters or bytes of a cell, of lists and records in it too."""
    if isinstance(cell, Mapping):
        return sum(map(_size, cell.values()))
    if isinstance(cell, list):
        return sum(map(_size, cell))
    return len(cell) if isinstance(cell, str | bytes) else 0


def _allowed(packed: int, limits: LimitsConfig) -> float:
    """The most bytes that so many packed ones may become."""
    return min(limits.file_bytes, max(FREE_BYTES, limits.expansion * packed))


def _page(kind: Literal["html", "pdf", "docx"]) -> Reader:
    def read_page(file: IO[bytes], place: Place) -> Iterator[Raw | Refused]:
        content = whole(file, place.limits)
        heads = {"pdf": b"%PDF", "docx": b"PK"}
        if is_binary(content) if kind == "html" else heads[kind] not in content[:1024]:
            yield Refused(place.file, "binary")
            return
        yield Raw(f"{place.source}/{place.file}", content, kind, None, place.file)

    return read_page


def _warc(file: IO[bytes], place: Place) -> Iterator[Raw | Refused]:
    """The pages of a WARC: responses with HTML in them. Other records are passed over."""
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed

    stream = io.BufferedReader(_Chunked(chunks(file, place.limits)))
    number = 0
    try:
        for record in ArchiveIterator(stream):
            number += 1
            if record.rec_type != "response" or record.http_headers is None:
                continue
            if "html" not in (record.http_headers.get_header("Content-Type") or "html"):
                continue
            content = record.content_stream().read(place.limits.page_bytes + 1)
            url = record.rec_headers.get_header("WARC-Target-URI")
            named = record.rec_headers.get_header("WARC-Record-ID")
            if len(content) > place.limits.page_bytes:
                yield Refused(place.at(number), "too long")
            elif is_binary(content):
                yield Refused(place.at(number), "binary")
            else:
                yield Raw(f"{place.source}/{named or place.at(number)}", content, "html", url, place.at(number))
    except (ArchiveLoadFailed, zlib.error, EOFError, ValueError) as error:
        raise Broken("cut short") from error


class _Chunked(io.RawIOBase):
    """An iterator of chunks as a stream."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            part = next(self._parts, None)
            if part is None:
                return 0
            self._rest = part
        taken = self._rest[: len(buffer)]
        self._rest = self._rest[len(taken) :]
        buffer[: len(taken)] = taken
        return len(taken)


def _inside(member: str, place: Place) -> Place:
    return Place(place.source, f"{place.file}!{member}", place.config, place.limits, place.encodings)


def _is_unsafe(name: str) -> bool:
    """Whether a member's name points outside of where it would be unpacked."""
    parts = re.split(r"[/\\]", name)
    return ".." in parts or name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name) is not None


def _zip(file: IO[bytes], place: Place) -> Iterator[Raw | Refused]:
    try:
        with zipfile.ZipFile(file) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            packed = unpacked = 0
            for member in members:
                inside = _inside(member.filename, place)
                mode = member.external_attr >> 16
                if _is_unsafe(member.filename) or (mode and stat.S_ISLNK(mode)):
                    yield Refused(inside.file, "unsafe name")
                elif unpacked + member.file_size > _allowed(packed + member.compress_size, place.limits):
                    yield Refused(inside.file, "expands too much")
                else:
                    packed, unpacked = packed + member.compress_size, unpacked + member.file_size
                    with archive.open(member) as content:  # reads no more than `file_size`
                        yield from _read_member(content, inside)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, OSError) as error:
        raise Broken("unreadable") from error


def _tar(file: IO[bytes], place: Place) -> Iterator[Raw | Refused]:
    stream = io.BufferedReader(_Chunked(chunks(file, place.limits)))
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                inside = _inside(member.name, place)
                if member.isdir():
                    continue
                content = None if _is_unsafe(member.name) or not member.isreg() else archive.extractfile(member)
                if content is None:
                    yield Refused(inside.file, "unsafe name")
                else:
                    yield from _read_member(content, inside)
    except tarfile.TarError as error:
        raise Broken("unreadable") from error


def _read_member(content: IO[bytes], inside: Place) -> Iterator[Raw | Refused]:
    form = format_of(RawSourceConfig(path=""), inside.file.rpartition("!")[2])
    if form in ("zip", "tar", "parquet"):  # archives in archives, and what must be read from its end
        yield Refused(inside.file, "unknown format")
    else:
        yield from _read(content, inside, form)


READERS: dict[str, Reader] = {
    "text": _text,
    "jsonl": _jsonl,
    "csv": _csv,
    "parquet": _parquet,
    "html": _page("html"),
    "warc": _warc,
    "pdf": _page("pdf"),
    "docx": _page("docx"),
    "zip": _zip,
    "tar": _tar,
}
