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


def test_file_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(" \n\n")
    with pytest.raises(DataError, match="no text"):
        read_text(tmp_path / "t.txt", "line")
