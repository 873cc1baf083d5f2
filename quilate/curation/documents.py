"""What flows through curation: documents, and records that are set aside with a reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "html", "pdf", "docx"]


@dataclass(frozen=True)
class Raw:
    """A document as it came: text, or the bytes of a page that its text must be taken out of.

    `place` says where it stood (file, and line or member), never what it says.
    """

    id: str
    content: str | bytes
    kind: Kind
    url: str | None
    place: str


@dataclass(frozen=True)
class Document:
    """A document that has text. `source` is the name of the source in the recipe."""

    id: str
    text: str
    source: str
    url: str | None = None
    language: str | None = None

    @property
    def size(self) -> int:
        """Bytes of its text in UTF-8."""
        return len(self.text.encode())


@dataclass(frozen=True)
class Refused:
    """A record, member or file that could not be read, or the rest of one. `reason` is one of `REASONS`."""

    place: str
    reason: str


REASONS = {
    "cut short": "the compressed file ends early or is damaged; what came before was read",
    "expands too much": "it unpacks to more than the limits allow; what came before was read",
    "unsafe name": "a member of an archive has an absolute name or `..` in it, or is a link or a device",
    "unknown format": "the name does not tell a format that is read",
    "too long": "a line, record, page or member is longer than the limit",
    "undecodable": "bytes that are text in no expected encoding, or half a surrogate pair",
    "not JSON": "the line is not a JSON object",
    "broken record": "a row whose number of fields differs from the header's, or a quote that is never closed",
    "no text": "the record has no text in the column named",
    "binary": "the content is not what its name says: a picture, a program, a database",
    "unreadable": "the file is damaged or encrypted, or not of its format",
    "no text layer": "a PDF without text, a scan most likely",
    "nothing extracted": "no main text was found in the page",
    "took too long": "extraction took longer than `limits.seconds`",
    "took too much memory": "extraction needed more than `limits.memory_bytes`, or crashed",
    "duplicate id": "an earlier record has the same id",
}
