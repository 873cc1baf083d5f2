"""Raw text files as documents: one file, a folder of them, or a zip archive of them."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from quilate.data.lines import MAX_FILE_BYTES, decoded, read_lines, sniff_encoding
from quilate.errors import DataError, explained_os_errors

Unit = Literal["file", "paragraph", "line"]

TEXT_SUFFIXES = (".txt", ".text", ".md")

# What a member of an archive may grow by; ordinary text shrinks to a third, a bomb to a thousandth (guess).
MAX_EXPANSION = 200


@dataclass(frozen=True)
class TextFile:
    """`undecodable` lines were left out: they hold bytes that are not text in `encoding`, or are too long. So were
    `blank` lines, where a line is a document."""

    documents: list[str]
    encoding: str
    undecodable: int
    blank: int


def holds_text(path: Path) -> bool:
    """Whether a path is to be read with `read_text`: a text file, a zip archive or a folder, and not a table."""
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    return name.endswith(TEXT_SUFFIXES) or path.suffix == ".zip" or path.is_dir()


def read_text(path: Path, unit: Unit, encoding: str = "auto") -> TextFile:
    """Read text (plain, gzip or zstd) as documents: whole files, their paragraphs or their lines.

    Of a folder or a zip archive all text files are read, in the order of their names; others are passed over. Nothing
    is unpacked to disk. Paragraphs are what stands between blank lines.

    Raises:
        DataError: missing, binary, cut short, locked with a password, a bomb, or without any text.
    """
    parts = [_documents(lines, unit, encoding) for _, lines in _files(path)]
    documents = [document for part in parts for document in part.documents]
    if not documents:
        raise DataError(f"{path} has no text", hint=f"text files end in {', '.join(TEXT_SUFFIXES)}, or so and .gz")
    encodings = ", ".join(sorted({part.encoding for part in parts}))
    return TextFile(documents, encodings, sum(p.undecodable for p in parts), sum(p.blank for p in parts))


@dataclass(frozen=True)
class FiledText:
    """One text file under a folder or in an archive: its text, whole, its name there, and the folder it stands in."""

    text: str
    file: str
    folder: str


def read_filed_texts(path: Path, encoding: str = "auto") -> tuple[list[FiledText], TextFile]:
    """Every text file of a folder or zip archive whose folders sort them (IMDB, movie reviews: `pos/`, `neg/`).

    Returns:
        The texts, and what `read_text` says of all of them; blank files have no text.

    Raises:
        DataError: see `read_text`; or a file stands in no folder.
    """
    texts, parts = [], []
    for name, lines in _files(path):
        part = _documents(lines, "file", encoding)
        parts.append(part)
        folder = PurePosixPath(name).parent.name
        if not folder:
            raise DataError(
                f"{path}: {name} stands in no folder, so nothing says what it is", hint="one folder for each label"
            )
        texts += [FiledText(text, name, folder) for text in part.documents]
    if not texts:
        raise DataError(f"{path} has no text", hint=f"text files end in {', '.join(TEXT_SUFFIXES)}, or so and .gz")
    encodings = ", ".join(sorted({part.encoding for part in parts}))
    blank = sum(not part.documents for part in parts)
    return texts, TextFile([text.text for text in texts], encodings, sum(p.undecodable for p in parts), blank)


def _files(path: Path) -> Iterator[tuple[str, list[bytes | None]]]:
    """Name and lines of a text file, or of all those of a zip archive or folder."""
    if path.suffix == ".zip":
        return _members(path)
    if path.is_dir():
        inside = sorted(p for p in path.rglob("*") if p.is_file() and holds_text(p) and p.suffix != ".zip")
        return ((p.relative_to(path).as_posix(), read_lines(p).lines) for p in inside)
    return iter([(path.name, read_lines(path).lines)])


def _members(path: Path) -> Iterator[tuple[str, list[bytes | None]]]:
    """Name and lines of every text file of a zip archive."""
    with explained_os_errors(path, "read the archive"):
        try:
            with zipfile.ZipFile(path) as archive:
                members = sorted((m for m in archive.infolist() if m.filename.endswith(TEXT_SUFFIXES)), key=_name)
                size, packed = sum(m.file_size for m in members), sum(m.compress_size for m in members)
                if size > MAX_FILE_BYTES or size > MAX_EXPANSION * max(packed, 1):
                    raise DataError(
                        f"{path} would grow from {packed:,} to {size:,} bytes",
                        hint="is it an archive of texts? unpack it yourself if you trust it",
                    )
                for member in members:  # zipfile reads no more than `file_size` of each
                    yield member.filename, [*archive.read(member).split(b"\n")]
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise DataError(
                f"{path} cannot be read as a zip archive: {error}", hint="is it whole, and without a password?"
            ) from error


def _name(member: zipfile.ZipInfo) -> str:
    return member.filename


def _documents(raw: list[bytes | None], unit: Unit, encoding: str) -> TextFile:
    chosen = sniff_encoding(raw) if encoding == "auto" else encoding
    lines: list[str] = []
    undecodable = 0
    for line in decoded(raw, chosen):
        if line is None or any("\ud800" <= character <= "\udfff" for character in line):
            undecodable += 1
        else:
            lines.append(line.rstrip("\r"))
    match unit:
        case "line":
            documents = lines
        case "file":
            documents = ["\n".join(lines)]
        case "paragraph":
            documents = _paragraphs(lines)
    kept = [document.strip() for document in documents if document.strip()]
    return TextFile(kept, chosen, undecodable, blank=len(documents) - len(kept) if unit == "line" else 0)


def _paragraphs(lines: list[str]) -> list[str]:
    paragraphs: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            paragraphs[-1].append(line)
        elif paragraphs[-1]:
            paragraphs.append([])
    return ["\n".join(paragraph) for paragraph in paragraphs]


def read_template(path: Path) -> str:
    """A small text file whole, as UTF-8.

    Raises:
        DataError: missing, or not UTF-8.
    """
    with explained_os_errors(path, "read the template"):
        content = path.read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start})", hint="save it as UTF-8") from error
