"""Text files as documents."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from quilate.data.text import read_text
from quilate.errors import DataError

TEXT = "Primera línea.\nsegunda, con ñ.\n\n\nOtro párrafo.\n"


@pytest.mark.parametrize(
    ("unit", "documents"),
    [
        ("line", ["Primera línea.", "segunda, con ñ.", "Otro párrafo."]),
        ("paragraph", ["Primera línea.\nsegunda, con ñ.", "Otro párrafo."]),
        ("file", [TEXT.strip()]),
    ],
)
def test_units(tmp_path: Path, unit: str, documents: list[str]) -> None:
    (tmp_path / "t.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    assert read_text(tmp_path / "t.txt.gz", unit).documents == documents  # type: ignore[arg-type]


def test_cp1252_is_recognized_and_damaged_lines_are_counted(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(TEXT.encode("cp1252"))
    assert read_text(tmp_path / "t.txt", "line").encoding == "cp1252"
    (tmp_path / "u.txt").write_bytes("año\n".encode() * 5 + b"da\xf1ada\n")
    found = read_text(tmp_path / "u.txt", "line")
    assert (found.encoding, found.undecodable, len(found.documents)) == ("utf-8", 1, 5)


@pytest.mark.parametrize(("unit", "blank"), [("line", 3), ("paragraph", 0), ("file", 0)])
def test_blank_lines_are_counted_where_a_line_is_a_document(tmp_path: Path, unit: str, blank: int) -> None:
    (tmp_path / "t.txt").write_bytes("Primera.\r\n\r\n \t\r\nSegunda, con ñ.\r\n\u00a0\r\n".encode())
    found = read_text(tmp_path / "t.txt", unit)  # type: ignore[arg-type]
    assert found.blank == blank
    assert " ".join(found.documents).split() == ["Primera.", "Segunda,", "con", "ñ."]


def test_file_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(" \n\n")
    with pytest.raises(DataError, match="no text"):
        read_text(tmp_path / "t.txt", "line")
