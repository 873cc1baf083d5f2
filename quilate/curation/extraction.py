"""Main text out of pages, in a process of its own.

Parsers of HTML, PDF and docx meet files that nobody vouches for. They run in a child with a limit on its memory and on
the time of each page, and without the right to write files; a page that breaks a limit costs itself and a new child.
"""

from __future__ import annotations

import contextlib
import io
import os
import resource
import select
import signal
import struct
import subprocess
import sys
from importlib.util import find_spec
from types import TracebackType
from typing import IO

from quilate.curation.documents import Raw
from quilate.curation.streams import Broken, LimitsConfig
from quilate.errors import MachineError

PACKAGES = {"html": "trafilatura", "pdf": "pypdf", "docx": "docx"}
_KINDS = {"html": 0, "pdf": 1, "docx": 2}
_REASONS = ("", "unreadable", "no text layer", "nothing extracted", "took too much memory")
_READY = b"ready"
_HEAD = struct.Struct("<BQ")  # kind or reason, and the length of what follows


def text_of(kind: str, content: bytes) -> str:
    """The main text of a page: what trafilatura keeps of HTML, the text layer of a PDF, paragraphs and cells of a docx.

    Raises:
        Broken: there is none, or the file is not of its format.
    """
    text: str | None
    match kind:
        case "html":
            import trafilatura

            # Not `deduplicate`: it remembers earlier pages, so a page's text would depend on them.
            text = trafilatura.extract(content, favor_precision=True, include_comments=False)
            missing = "nothing extracted"
        case "pdf":
            text, missing = _pdf(content), "no text layer"
        case _:
            text, missing = _docx(content), "nothing extracted"
    if not text or not text.strip():
        raise Broken(missing)
    return text.strip()


def _pdf(content: bytes) -> str:
    import pypdf

    return "\n\n".join(page.extract_text() for page in pypdf.PdfReader(io.BytesIO(content)).pages)


def _docx(content: bytes) -> str:
    import docx
    from docx.table import Table

    parts: list[str] = []
    for block in docx.Document(io.BytesIO(content)).iter_inner_content():
        if isinstance(block, Table):
            parts += ["\t".join(cell.text for cell in row.cells) for row in block.rows]
        else:
            parts.append(block.text)
    return "\n".join(parts)


class Extractor:
    """Asks a child process for the text of pages; it starts with the first page and is replaced when it fails."""

    def __init__(self, limits: LimitsConfig) -> None:
        self._limits = limits
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Extractor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def text(self, raw: Raw) -> str:
        """The text of a document, extracted if it is a page.

        Raises:
            Broken: it cannot be had within the limits.
            MachineError: the package that reads this kind of page is not installed.
        """
        if isinstance(raw.content, str):
            return raw.content
        if find_spec(PACKAGES[raw.kind]) is None:
            raise MachineError(
                f"{raw.place} is {raw.kind}, and the package that reads it is not installed",
                hint="pip install 'quilate[curate]'",
            )
        child = self._child = self._child or self._start()
        assert child.stdin is not None and child.stdout is not None
        try:
            child.stdin.write(_HEAD.pack(_KINDS[raw.kind], len(raw.content)) + raw.content)
            child.stdin.flush()
            reason, size = _HEAD.unpack(self._receive(child.stdout, _HEAD.size))
            content = self._receive(child.stdout, size)
        except (Broken, BrokenPipeError) as error:
            self._end()
            raise error if isinstance(error, Broken) else Broken("took too much memory") from error
        if reason:
            raise Broken(_REASONS[reason])
        return content.decode()

    def _receive(self, stream: IO[bytes], size: int) -> bytes:
        """Exactly so many bytes, each part of which must come within `limits.seconds`."""
        parts: list[bytes] = []
        while size:
            ready, _, _ = select.select([stream], [], [], self._limits.seconds)
            if not ready:
                raise Broken("took too long")
            part = os.read(stream.fileno(), size)
            if not part:
                raise Broken("took too much memory")  # the child is gone
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "quilate.curation.extraction", str(self._limits.memory_bytes)]
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )
        assert child.stdout is not None
        if child.stdout.read(len(_READY)) != _READY:  # its imports are not the page's time
            raise MachineError("the process that reads pages does not start", hint="raise limits.memory_bytes")
        return child

    def _end(self) -> None:
        if self._child is None:
            return
        self._child.kill()
        for stream in (self._child.stdin, self._child.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._child.wait()
        self._child = None


def serve(memory_bytes: int) -> None:
    """The child: pages come on standard input, texts or reasons go to standard output."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    asked, answered = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a parser prints must not be taken for an answer
    answered.write(_READY)
    answered.flush()
    names = {number: kind for kind, number in _KINDS.items()}
    while head := asked.read(_HEAD.size):
        number, size = _HEAD.unpack(head)
        reason, text = "", b""
        try:
            text = text_of(names[number], asked.read(size)).encode("utf-8", "replace")
        except Broken as broken:
            reason = broken.reason
        except MemoryError:
            reason = "took too much memory"
        except Exception:  # a parser's own: the file is at fault
            reason = "unreadable"
        answered.write(_HEAD.pack(_REASONS.index(reason), len(text)) + text)
        answered.flush()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
