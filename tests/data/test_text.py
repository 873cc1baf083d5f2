"""Text files as documents."""

from __future__ import annotations

import gzip
import zipfile
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


def archive(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as out:
        for name, content in files.items():
            out.writestr(name, content)
    return path


FILES = {"b/2.txt": "Segundo, con ñ.".encode(), "a.txt": b"Primero.\n\nOtro.", "leeme.pdf": b"%PDF", "c.txt": b" \n"}


def test_an_archive_and_a_folder_hold_the_same_documents(tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_bytes(content)
    (tmp_path / "d" / "c.txt").write_bytes(b"Tercero.")
    packed = archive(tmp_path / "d.zip", FILES | {"c.txt": b"Tercero."})
    expected = ["Primero.\n\nOtro.", "Segundo, con ñ.", "Tercero."]
    assert read_text(packed, "file").documents == expected
    assert read_text(tmp_path / "d", "file").documents == expected
    assert len(read_text(packed, "paragraph").documents) == 4


def test_names_that_climb_out_of_an_archive_are_only_names(tmp_path: Path) -> None:
    packed = archive(tmp_path / "d.zip", {"../../fuera.txt": b"Texto.", "/etc/cosa.txt": b"Otro."})
    assert read_text(packed, "file").documents == ["Texto.", "Otro."]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.zip"]


def test_archives_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="would grow"):
        read_text(archive(tmp_path / "bomb.zip", {"a.txt": b"a" * 50_000_000}), "file")
    with pytest.raises(DataError, match="has no text"):
        read_text(archive(tmp_path / "none.zip", {"a.pdf": b"%PDF", "b.txt": b" "}), "file")
    whole = archive(tmp_path / "w.zip", {"a.txt": bytes(range(32, 127)) * 500}).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="zip archive"):
        read_text(tmp_path / "cut.zip", "file")
    flipped = bytearray(whole)
    flipped[60] ^= 0xFF
    (tmp_path / "flipped.zip").write_bytes(bytes(flipped))
    with pytest.raises(DataError, match="zip archive"):
        read_text(tmp_path / "flipped.zip", "file")
