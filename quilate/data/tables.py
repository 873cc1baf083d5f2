"""Tables of rows: csv, tsv, jsonl, json (plain, gzip, zstd), parquet, and tables inside installed packages.

Nothing is repaired in silence: a record that cannot be read is quarantined with its line and the reason, and counted;
a fault of the file's structure (cut short, a quote never closed, no header) stops.
"""

from __future__ import annotations

import csv
import difflib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from quilate.config import Config
from quilate.data import lines as raw
from quilate.data.packages import KNOWN, PREFIX, locate_packaged, packaged_version
from quilate.data.text import read_filed_texts
from quilate.errors import DataError, MachineError, explained_os_errors
from quilate.files import sha256_of_file, sha256_of_tree, write_jsonl

DATA_VARIABLE = "QUILATE_DATA"

Format = Literal["auto", "csv", "tsv", "jsonl", "json", "parquet", "squad", "folders", "trees"]

_SUFFIXES: dict[str, Format] = {
    ".csv": "csv",
    ".txt": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
}
_DELIMITERS = ",;\t|"  # in order of preference when two explain a file equally well
_SAMPLE_RECORDS = 100  # guess: enough to see a delimiter's regularity
_SURROGATE = re.compile("[\ud800-\udfff]")
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


class SourceConfig(Config):
    """Where a table is and how to read it."""

    path: str
    """File to read, relative to the recipe's folder; `~` and `${QUILATE_DATA}` are expanded. `package:cie` reads the
    ICD-10 table that ships in the installed package `cie`."""
    format: Format = "auto"
    """Format of the file; `auto` goes by its name. `json` is one array of objects, or BIG-bench's `examples`. `squad`
    is the nested JSON of SQuAD and its kin, a row a question (columns `id`, `title`, `context`, `question`, `answers`:
    a list of texts). `folders` is a folder or zip archive of text files, one text each, sorted into a folder for each
    label (columns `text`, `label`, `file`). `trees` is one bracketed tree a line with a label at every node, as the
    Stanford Sentiment Treebank has it (columns `text`, `label` of the whole). Compression (gzip, zstd) is recognized by
    content."""
    encoding: str = "auto"
    """Text encoding, e.g. `utf-8` or `cp1252`; `auto` tells these two apart by content and reports its guess."""
    delimiter: str = "auto"
    """Character between the fields of a csv; `auto` chooses between comma, semicolon, tab and bar and reports it."""


@dataclass(frozen=True)
class Table:
    """A table in memory.

    `notes` has the keys path, sha256, format, and for text formats compression, encoding, delimiter (csv, tsv), then
    rows_read, blank_lines, quarantined (count by reason; {} when every record was read) and quarantined_lines.
    """

    rows: list[dict[str, Any]]
    columns: list[str]
    notes: dict[str, Any]

    def require(self, column: str) -> str:
        """Return `column`.

        Raises:
            DataError: the table has no such column; the message names the nearest.
        """
        if column not in self.columns:
            nearest = difflib.get_close_matches(column, self.columns, n=1, cutoff=0.5)
            guess = f": did you mean '{nearest[0]}'?" if nearest else ""
            raise DataError(
                f"{self.notes['path']} has no column '{column}'{guess}",
                hint=f"its columns are: {', '.join(self.columns)}",
            )
        return column


@dataclass
class _Quarantine:
    """Records that could not be read. It never holds source text: lines and reasons only."""

    path: Path
    strict: bool
    records: list[dict[str, Any]] = field(default_factory=list)
    lines: int = 0

    def add(self, first: int, last: int, kind: str, detail: str) -> None:
        where = f"line {first}" if first == last else f"lines {first}-{last}"
        if self.strict:
            raise DataError(
                f"{self.path}, {where}: {detail}",
                hint="correct the line, or run without --strict to set such records aside and count them",
            )
        self.records.append({"file": str(self.path), "line": first, "last_line": last, "kind": kind, "reason": detail})
        self.lines += last - first + 1

    def counts(self) -> dict[str, int]:
        return dict(sorted(Counter(record["kind"] for record in self.records).items()))


def locate(source: SourceConfig, *, base: Path) -> Path:
    """The file a source points to; it need not exist yet.

    Args:
        base: the folder that relative paths start from (the recipe's).

    Raises:
        DataError: `package:` names no known package.
        MachineError: `${QUILATE_DATA}` is used and not set, or the package is not installed.
    """
    if source.path.startswith(PREFIX):
        return locate_packaged(source.path.removeprefix(PREFIX))
    path = source.path
    if f"${{{DATA_VARIABLE}}}" in path:
        folder = os.environ.get(DATA_VARIABLE)
        if not folder:
            raise MachineError(
                f"'{path}': the variable {DATA_VARIABLE} is not set",
                hint=f"export {DATA_VARIABLE}=FOLDER, the folder that holds the data sets",
            )
        path = path.replace(f"${{{DATA_VARIABLE}}}", folder)
    return base / Path(path).expanduser()


def read_table(source: SourceConfig, *, base: Path, strict: bool = False, quarantine: Path | None = None) -> Table:
    """Read a table whole.

    Args:
        base: the folder that relative paths start from.
        strict: stop at the first record that cannot be read instead of setting it aside.
        quarantine: JSONL file to write the set-aside records to (file, line, last_line, kind, reason; no source text).

    Raises:
        DataError: the file is missing, empty, has a header only, is cut short, or has no readable record.
        MachineError: it cannot be read, or the quarantine file cannot be written.
    """
    path = locate(source, base=base)
    if source.path.startswith(PREFIX):
        return _read_packaged(source.path, path)
    held = _Quarantine(path, strict)
    notes: dict[str, Any] = {"path": str(path), "sha256": "", "format": _format_of(source, path)}
    if notes["format"] == "parquet":
        columns, rows = _read_parquet(path)
        notes["blank_lines"] = 0
    elif notes["format"] == "folders":
        columns, rows = _read_folders(path, source, notes)
    else:
        columns, rows = _read_text(path, source, notes, held)
    notes |= {
        "sha256": sha256_of_tree(path) if path.is_dir() else sha256_of_file(path),
        "rows_read": len(rows),
        "quarantined": held.counts(),
        "quarantined_lines": held.lines,
    }
    if quarantine is not None:
        write_jsonl(quarantine, held.records)
    if not rows:
        _refuse_rowless(path, held)
    return Table(rows, columns, notes)


def _refuse_rowless(path: Path, held: _Quarantine) -> NoReturn:
    if held.records:
        first = held.records[0]
        raise DataError(
            f"{path}: none of its {len(held.records)} records can be read; "
            f"the first, line {first['line']}: {first['reason']}",
            hint="check format, encoding and delimiter",
        )
    raise DataError(f"{path} has a header but no rows", hint="give a file with at least one row")


def _format_of(source: SourceConfig, path: Path) -> str:
    if source.format != "auto":
        return source.format
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in (".gz", ".zst")]
    suffix = suffixes[-1] if suffixes else ""
    if suffix == ".zip" or (path.is_dir() and suffix not in _SUFFIXES):
        return "folders"
    if suffix in (".xlsx", ".xls", ".ods"):
        raise DataError(f"{path} is a spreadsheet", hint="save the sheet as CSV; `;` and cp1252 are understood")
    if suffix not in _SUFFIXES:
        with explained_os_errors(path, "read the table"):
            path.stat()  # a missing file is the better message
        raise DataError(
            f"{path}: the name does not tell the format",
            hint="set `format:` (csv, tsv, jsonl, json, parquet, squad, folders or trees)",
        )
    return _SUFFIXES[suffix]


def _read_packaged(name: str, path: Path) -> Table:
    package = name.removeprefix(PREFIX)
    rows = KNOWN[package].read(path)
    notes = {
        "path": name,
        "version": packaged_version(package),
        "sha256": sha256_of_file(path),
        "format": "package",
        "rows_read": len(rows),
        "blank_lines": 0,
        "quarantined": {},
        "quarantined_lines": 0,
    }
    return Table(rows, list(rows[0]), notes)


def _read_parquet(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    import pyarrow
    from pyarrow import parquet

    with explained_os_errors(path, "read the table"):
        path.stat()
        try:
            file = parquet.ParquetFile(path)
            groups = (file.metadata.row_group(index) for index in range(file.metadata.num_row_groups))
            if sum(group.total_byte_size for group in groups) > raw.MAX_FILE_BYTES:
                raise DataError(f"{path} is larger than {raw.MAX_FILE_BYTES:,} bytes", hint="split the file")
            table = file.read()
        except pyarrow.ArrowException as error:
            raise DataError(f"{path} is not a whole Parquet file", hint="copy or export it again") from error
    return list(table.column_names), table.to_pylist()


def _read_text(
    path: Path, source: SourceConfig, notes: dict[str, Any], held: _Quarantine
) -> tuple[list[str], list[dict[str, Any]]]:
    content = raw.read_lines(path)
    encoding = raw.sniff_encoding(content.lines) if source.encoding == "auto" else raw.check_encoding(source.encoding)
    lines = list(raw.decoded(content.lines, encoding))
    notes |= {"compression": content.compression, "encoding": encoding}
    notes["blank_lines"] = sum(line is not None and not line.strip() for line in lines)
    if notes["format"] == "jsonl":
        return _parse_jsonl(lines, held)
    if notes["format"] == "json":
        return _parse_json(lines, held)
    if notes["format"] == "squad":
        return _parse_squad(lines, held)
    if notes["format"] == "trees":
        return _parse_trees(lines, held)
    if source.delimiter != "auto":
        delimiter = source.delimiter
    else:
        delimiter = "\t" if notes["format"] == "tsv" else sniff_delimiter(lines)
    notes["delimiter"] = delimiter
    return _parse_csv(lines, delimiter, held)


def _parse_jsonl(lines: list[str | None], held: _Quarantine) -> tuple[list[str], list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    columns: dict[str, None] = {}
    for number, line in enumerate(lines, start=1):
        if line is None:
            held.add(number, number, "too_long", _too_long())
        elif line.strip():
            try:
                row = _parse_object(line)
            except _BadRecord as error:
                held.add(number, number, error.kind, str(error))
                continue
            rows.append(row)
            columns.update(dict.fromkeys(row))
    return list(columns), rows


def _parse_json(lines: list[str | None], held: _Quarantine) -> tuple[list[str], list[dict[str, Any]]]:
    """One array, or the `examples` of a task file of BIG-bench; what it holds that is not an object is set aside under
    its place in the array, from 1."""
    if None in lines:
        raise DataError(
            f"{held.path}, line {lines.index(None) + 1}: {_too_long()}",
            hint="write one object a line (JSON lines), e.g. with `jq -c '.[]'`",
        )
    try:
        values = _parse_value("\n".join(line or "" for line in lines))
    except _BadRecord as error:
        raise DataError(f"{held.path}: {error}", hint="correct the file, or export it again") from error
    if isinstance(values, dict) and isinstance(values.get("examples"), list):
        values = values["examples"]
    if not isinstance(values, list):
        raise DataError(
            f"{held.path} is not an array of objects", hint="of JSON lines, end the name in .jsonl or set format: jsonl"
        )
    rows: list[dict[str, Any]] = []
    for number, value in enumerate(values, start=1):
        if isinstance(value, dict):
            rows.append(value)
        else:
            held.add(number, number, "not_an_object", "an element of the array is not an object")
    return list(dict.fromkeys(key for row in rows for key in row)), rows


def _read_folders(path: Path, source: SourceConfig, notes: dict[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    encoding = source.encoding if source.encoding == "auto" else raw.check_encoding(source.encoding)
    texts, read = read_filed_texts(path, encoding)
    notes |= {"encoding": read.encoding, "blank_lines": 0, "blank_files": read.blank, "undecodable": read.undecodable}
    return ["text", "label", "file"], [{"text": t.text, "label": t.folder, "file": t.file} for t in texts]


def _parse_squad(lines: list[str | None], held: _Quarantine) -> tuple[list[str], list[dict[str, Any]]]:
    """Every question of every paragraph (Rajpurkar et al. 2016). SQuAD 2 has some without an answer."""
    rows: list[dict[str, Any]] = []
    try:
        for article in _parse_value("\n".join(line or "" for line in lines))["data"]:
            for paragraph in article["paragraphs"]:
                shared = {"title": article.get("title", ""), "context": paragraph["context"]}
                for question in paragraph["qas"]:
                    answers = list(dict.fromkeys(answer["text"] for answer in question["answers"]))
                    rows.append({"id": question["id"], **shared, "question": question["question"], "answers": answers})
    except (_BadRecord, KeyError, TypeError) as error:
        raise DataError(
            f"{held.path} does not have SQuAD's form: {error}",
            hint='it is {"data": [{"paragraphs": [{"context", "qas": [{"id", "question", "answers": [{"text"}]}]}]}]}',
        ) from error
    return ["id", "title", "context", "question", "answers"], rows


_TREE = re.compile(r"\((\d+) .+\)")
_LEAF = re.compile(r"\(\d+ ([^()\s]+)\)")


def _parse_trees(lines: list[str | None], held: _Quarantine) -> tuple[list[str], list[dict[str, Any]]]:
    """Texts are the leaves with a space between, brackets written as such."""
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if line is None:
            held.add(number, number, "too_long", _too_long())
        elif line.strip():
            tree = line.strip()
            root, leaves = _TREE.fullmatch(tree), _LEAF.findall(tree)
            if root is None or not leaves or tree.count("(") != tree.count(")"):
                held.add(number, number, "broken_tree", "not a tree such as (3 (2 Muy) (3 bueno))")
                continue
            text = " ".join(leaves).replace("-LRB-", "(").replace("-RRB-", ")")
            rows.append({"text": text, "label": root[1]})
    return ["text", "label"], rows


class _BadRecord(Exception):
    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


def _parse_object(line: str) -> dict[str, Any]:
    row = _parse_value(line)
    if not isinstance(row, dict):
        raise _BadRecord("not_an_object", 'a JSON line must be an object: {"column": value, ...}')
    return row


def _parse_value(line: str) -> Any:
    if _SURROGATE.search(line):
        raise _BadRecord("undecodable_bytes", "bytes that are not valid in the file's encoding")
    try:
        value = json.loads(line, object_pairs_hook=_unrepeated, parse_constant=_refuse_constant)
        if _SURROGATE_ESCAPE.search(line):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise _BadRecord("broken_json", "an escape is half of a surrogate pair") from error
    except json.JSONDecodeError as error:
        raise _BadRecord("broken_json", f"not JSON: {error.msg} at character {error.pos + 1}") from error
    except RecursionError as error:
        raise _BadRecord("broken_json", "not usable JSON: nested too deeply") from error
    except ValueError as error:  # a number of thousands of digits
        raise _BadRecord("broken_json", "not usable JSON: a number is too long") from error
    return value


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise _BadRecord("repeated_key", "a key is given twice, so one of its values would be lost")
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise _BadRecord("broken_json", f"{name} is not a JSON value")


def sniff_delimiter(lines: list[str | None]) -> str:
    """The delimiter under which most of the first records have as many fields as the first, and that is above one.

    A file of one column has none; a comma is then returned.
    """
    sample = [line for line in lines if line is not None and line.strip()][:_SAMPLE_RECORDS]
    if sample and (told := re.fullmatch(r"sep=(.)", sample[0])):  # Excel's own way to say it
        return told.group(1)

    def regularity(delimiter: str) -> tuple[float, int]:
        try:
            records = list(csv.reader((line + "\n" for line in sample), delimiter=delimiter))
        except csv.Error:
            return 0.0, 0
        width = len(records[0]) if records else 0
        return (sum(len(record) == width for record in records) / len(records), width) if width > 1 else (0.0, 0)

    scores = {delimiter: regularity(delimiter) for delimiter in _DELIMITERS}
    return max(_DELIMITERS, key=lambda delimiter: scores[delimiter])


def _too_long() -> str:
    return f"longer than {raw.MAX_RECORD_BYTES:,} bytes"


def _parse_csv(lines: list[str | None], delimiter: str, held: _Quarantine) -> tuple[list[str], list[dict[str, Any]]]:
    records = _csv_records(lines, delimiter, held)
    columns: list[str] = []
    rows: list[dict[str, Any]] = []
    for first, last, record in records:
        if not columns:
            columns = _header(record, first, held.path)
        elif len(record) != len(columns):
            held.add(first, last, "wrong_field_count", f"expected {len(columns)} fields, found {len(record)}")
        elif any(_SURROGATE.search(value) for value in record):
            held.add(first, last, "undecodable_bytes", "bytes that are not valid in the file's encoding")
        else:
            rows.append(dict(zip(columns, record, strict=True)))
    return columns, rows


def _header(record: list[str], line: int, path: Path) -> list[str]:
    names = [name.strip() or f"column_{index}" for index, name in enumerate(record, start=1)]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(
            f"{path}, line {line}: the header names column '{repeated[0]}' more than once", hint="rename one of them"
        )
    if any(_SURROGATE.search(name) for name in names):
        raise DataError(f"{path}, line {line}: the header has undecodable bytes", hint="set encoding:, e.g. cp1252")
    return names


def _csv_records(lines: list[str | None], delimiter: str, held: _Quarantine) -> Iterator[tuple[int, int, list[str]]]:
    """Yield (first line, last line, fields) of each record; a quoted field may hold newlines and delimiters."""
    try:
        feed = _Feed(lines, held)
        reader = csv.reader(feed, delimiter=delimiter, strict=True)
    except TypeError as error:
        raise DataError(f"delimiter {delimiter!r} is not one character", hint="for example delimiter: ';'") from error
    previous_limit = csv.field_size_limit(2 * raw.MAX_RECORD_BYTES)  # never reached: _Feed stops before
    try:
        while True:
            feed.start_record()
            try:
                record = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if "unexpected end of data" in str(error):
                    raise DataError(
                        f"{held.path}, line {feed.first}: a quoted field opens here and is not closed "
                        f"within {raw.MAX_RECORD_BYTES:,} characters or before the file ends",
                        hint="close the quote, or double every quote that belongs to the text",
                    ) from error
                held.add(feed.first, feed.last, "broken_quotes", f"not csv: {error}")
                continue
            if record:
                yield feed.first, feed.last, record
    finally:
        csv.field_size_limit(previous_limit)


class _Feed:
    """Hands lines to the csv reader, knows which lines the current record spans, and bounds the record's length."""

    def __init__(self, lines: list[str | None], held: _Quarantine) -> None:
        self._lines = lines
        self._held = held
        self._next = 1 if lines and lines[0] is not None and re.fullmatch("sep=.", lines[0]) else 0
        self._characters = 0
        self.first = self.last = 0

    def start_record(self) -> None:
        self._characters = 0
        self.first = 0

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        while self._next < len(self._lines):
            line = self._lines[self._next]
            self._next += 1
            if line is None and self.first:  # inside a quoted field: the record as a whole is over the limit
                break
            if line is None:
                self._held.add(self._next, self._next, "too_long", _too_long())
                continue
            if not self.first and not line.strip():
                continue
            self.first = self.first or self._next
            self.last = self._next
            self._characters += len(line) + 1
            if self._characters > raw.MAX_RECORD_BYTES:
                break
            return line + "\n"
        raise StopIteration
