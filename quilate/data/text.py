"""Raw text files as documents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quilate.data.lines import decoded, read_lines, sniff_encoding
from quilate.errors import DataError

Unit = Literal["file", "paragraph", "line"]


@dataclass(frozen=True)
class TextFile:
    """`undecodable` lines were left out: they hold bytes that are not text in `encoding`, or are too long. So were
    `blank` lines, where a line is a document."""

    documents: list[str]
    encoding: str
    undecodable: int
    blank: int


def read_text(path: Path, unit: Unit, encoding: str = "auto") -> TextFile:
    """Read a text file (plain, gzip or zstd) as documents: the whole file, its paragraphs or its lines.

    Paragraphs are what stands between blank lines.

    Raises:
        DataError: missing, binary, cut short, or without any text.
    """
    raw = read_lines(path)
    chosen = sniff_encoding(raw.lines) if encoding == "auto" else encoding
    lines: list[str] = []
    undecodable = 0
    for line in decoded(raw.lines, chosen):
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
    if not kept:
        raise DataError(f"{path} has no text", hint="check that it is the right file")
    return TextFile(kept, chosen, undecodable, blank=len(documents) - len(kept) if unit == "line" else 0)


def _paragraphs(lines: list[str]) -> list[str]:
    paragraphs: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            paragraphs[-1].append(line)
        elif paragraphs[-1]:
            paragraphs.append([])
    return ["\n".join(paragraph) for paragraph in paragraphs]
