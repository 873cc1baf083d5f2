"""Spans as structured records that a language model can write, and back: `[{"label": "LUGAR", "text": "Ávila"}, ...]`.

A record says what stands in the document, not where: places are found again by searching, in the order of the records.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from quilate.tasks.extraction import Span

# What a record's text is made of: words, runs of white space, and single other marks.
_PIECE = re.compile(r"\w+|\s+|[^\w\s]")


@dataclass(frozen=True)
class Record:
    """An entity as a model writes it."""

    label: str
    text: str


def written(text: str, spans: Iterable[Span]) -> str:
    """The records of a document's spans, in the order of their places, as JSON on one line."""
    said = [{"label": span.label, "text": text[span.start : span.end]} for span in sorted(spans)]
    return json.dumps(said, ensure_ascii=False)


@dataclass(frozen=True)
class Parsed:
    """`cut`: the answer ended before its list did, and what was not a whole record is left out. `valid`: it is, or
    begins, a list of such records."""

    records: list[Record]
    cut: bool
    valid: bool


def parse_records(answer: str) -> Parsed:
    """The records of an answer; of one that was cut short, the whole ones."""
    try:
        return Parsed(_records(json.loads(answer)), cut=False, valid=True)
    except TypeError:
        return Parsed([], cut=False, valid=False)
    except (ValueError, RecursionError):  # no whole JSON
        pass
    for end in reversed([match.end() for match in re.finditer("}", answer)]):
        try:
            return Parsed(_records(json.loads(f"{answer[:end]}]")), cut=True, valid=True)
        except TypeError:
            return Parsed([], cut=True, valid=False)
        except (ValueError, RecursionError):  # that brace stands in a text
            continue
    return Parsed([], cut=True, valid="[".startswith(answer[:1]))


def _records(value: object) -> list[Record]:
    """The records that a JSON value is a list of.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(value, list):
        raise TypeError("not a list")
    records = [Record(**fields) for fields in value]
    if not all(isinstance(record.label, str) and isinstance(record.text, str) for record in records):
        raise TypeError("not texts")
    return records


def locate(records: Sequence[Record], text: str) -> tuple[list[Span], int]:
    """The spans that records stand for, and how many stand for none.

    Each is looked for from the beginning of the one before it on, then from the document's beginning: where it stands
    as whole words, not inside longer ones; a place is found once for a label.
    """
    found: list[Span] = []
    start = lost = 0
    for record in records:
        span = _next(record, text, start, set(found)) or _next(record, text, 0, set(found))
        if span is None:
            lost += 1
            continue
        found.append(span)
        start = span.start
    return found, lost


def _next(record: Record, text: str, start: int, taken: set[Span]) -> Span | None:
    if not record.text.strip():
        return None
    before = r"(?<!\w)" if re.match(r"\w", record.text) else ""
    after = r"(?!\w)" if re.search(r"\w\Z", record.text) else ""
    for match in re.compile(before + re.escape(record.text) + after).finditer(text, start):
        span = Span(match.start(), match.end(), record.label)
        if span not in taken:
            return span
    return None


def record_grammar(labels: Sequence[str], text: str, *, start: str = " ") -> str:
    """The grammar (Lark, as llguidance reads it) of all answers about a document: after `start` a list of records whose
    labels are the task's and whose texts stand in the document, word by word."""
    pieces = [json.dumps(piece, ensure_ascii=False)[1:-1] for piece in _PIECE.findall(text)]
    choices = " | ".join(_quoted(json.dumps(label, ensure_ascii=False)) for label in labels)
    opening, middle, closing = map(_quoted, ('{"label": ', ', "text": "', '"}'))
    chunks = json.dumps({"substring_chunks": pieces}, ensure_ascii=False)
    return (
        f'start: {_quoted(start + "[")} (record (", " record)*)? "]"\n'
        f"record: {opening} LABEL {middle} TEXT {closing}\n"
        f"LABEL: {choices}\n"
        f"TEXT: %regex {chunks}\n"
    )


def stretch_grammar(text: str, *, start: str = " ") -> str:
    """The grammar of one stretch of a text, word by word, after `start`."""
    chunks = json.dumps({"substring_chunks": _PIECE.findall(text)}, ensure_ascii=False)
    return f"start: {_quoted(start) if start else ''} TEXT\nTEXT: %regex {chunks}\n"


def _quoted(literal: str) -> str:
    """A literal of the grammar."""
    return json.dumps(literal, ensure_ascii=False)
