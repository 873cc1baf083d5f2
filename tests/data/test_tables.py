"""Tables in every format and encoding, and every way a file can be broken."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from quilate.data import lines as raw
from quilate.data.tables import SourceConfig, Table, read_table
from quilate.errors import ConfigError, DataError, MachineError

ROWS = [{"texto": "Niño con fiebre; tos", "etiqueta": "sí"}, {"texto": 'Dijo "ay"\ny lloró', "etiqueta": "no"}]
SPANISH_EXCEL = 'texto;etiqueta\r\n"Niño con fiebre; tos";sí\r\n"Dijo ""ay""\r\ny lloró";no\r\n'


def read(path: Path, *, strict: bool = False, quarantine: Path | None = None, **options: str) -> Table:
    return read_table(SourceConfig(path=path.name, **options), base=path.parent, strict=strict, quarantine=quarantine)


def jsonl(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252"])
def test_spanish_excel_csv_is_sniffed(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "notas.csv"
    path.write_bytes(SPANISH_EXCEL.encode(encoding))
    table = read(path)
    assert table.rows == ROWS
    assert table.columns == ["texto", "etiqueta"]
    assert (table.notes["encoding"], table.notes["delimiter"]) == (encoding, ";")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiter_is_told_apart_from_punctuation(tmp_path: Path, delimiter: str) -> None:
    other = ";" if delimiter == "," else ","
    path = tmp_path / "a.csv"
    path.write_text(f"id{delimiter}nota\n" + f"1{delimiter}dolor{other} fiebre{other} año\n" * 5, encoding="utf-8")
    table = read(path)
    assert table.notes["delimiter"] == delimiter
    assert table.rows[0] == {"id": "1", "nota": f"dolor{other} fiebre{other} año"}


def test_excel_separator_line_and_override(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("sep=|\na|b\n1|2\n")
    assert read(path).rows == [{"a": "1", "b": "2"}]
    path.write_text("a;b,c\n1;2,3\n")
    assert read(path, delimiter=",").rows == [{"a;b": "1;2", "c": "3"}]
    with pytest.raises(DataError, match="';;' is not one character"):
        read(path, delimiter=";;")


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "csv.gz", "tsv"])
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"datos.{suffix}"
    if suffix == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif suffix == "tsv":
        path.write_text('texto\tetiqueta\nNiño con fiebre; tos\tsí\n"Dijo ""ay""\ny lloró"\tno\n', encoding="utf-8")
    elif suffix == "csv.gz":
        path.write_bytes(gzip.compress(SPANISH_EXCEL.encode("cp1252")))
    elif suffix == "jsonl.zst":
        with pyarrow.CompressedOutputStream(str(path), "zstd") as stream:
            stream.write(jsonl(ROWS))
    else:
        path.write_bytes(gzip.compress(jsonl(ROWS)) if suffix.endswith("gz") else jsonl(ROWS))
    table = read(path)
    assert table.rows == ROWS
    assert table.notes["rows_read"] == 2
    assert table.notes["quarantined"] == {}


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries({"a": st.text(max_size=20), "ñ": st.integers() | st.none() | st.text(max_size=5)}),
        min_size=1,
        max_size=8,
    )
)
def test_jsonl_round_trip_of_any_text(tmp_path_factory: pytest.TempPathFactory, rows: list[dict]) -> None:
    path = tmp_path_factory.mktemp("j") / "a.jsonl"
    path.write_bytes(jsonl(rows))
    assert read(path).rows == rows


BAD_JSON = {
    "broken_json": '{"texto": "sin cerrar',
    "not_an_object": '["una", "lista"]',
    "repeated_key": '{"texto": "a", "texto": "b"}',
}


@pytest.mark.parametrize(("kind", "line"), BAD_JSON.items())
def test_bad_json_line_is_set_aside_and_counted(tmp_path: Path, kind: str, line: str) -> None:
    path, aside = tmp_path / "a.jsonl", tmp_path / "out" / "quarantine.jsonl"
    path.write_text(f'{{"texto": "ñ"}}\n\n{line}\n{{"texto": "fin"}}\n', encoding="utf-8")
    table = read(path, quarantine=aside)
    assert [row["texto"] for row in table.rows] == ["ñ", "fin"]
    assert table.notes["quarantined"] == {kind: 1}
    assert table.notes["blank_lines"] == 1
    record = json.loads(aside.read_text())
    assert (record["file"], record["line"], record["kind"]) == (str(path), 3, kind)
    assert not {"cerrar", "lista"} & set(aside.read_text().replace('"', " ").split())  # no source text
    with pytest.raises(DataError, match=r"a\.jsonl, line 3: ") as caught:
        read(path, strict=True)
    assert caught.value.exit_code == 3
    assert "--strict" in str(caught.value)


@pytest.mark.parametrize(
    "line",
    ['{"a": NaN}', '{"a": "\\ud83d"}', "[" * 100_000, '{"a": ' + "9" * 5000 + "}"],
    ids=["nan", "surrogate", "deep", "digits"],
)
def test_json_that_python_would_swallow_is_set_aside(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(line + '\n{"a": 1}\n')
    assert read(path).notes["quarantined"] == {"broken_json": 1}


def test_one_bad_byte_does_not_turn_utf8_into_mojibake(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl([{"t": "corazón"}, {"t": "riñón"}]) + b'{"t": "h\xedgado"}\n' + jsonl([{"t": "fin"}]))
    table = read(path)
    assert [row["t"] for row in table.rows] == ["corazón", "riñón", "fin"]
    assert table.notes["quarantined"] == {"undecodable_bytes": 1}
    with pytest.raises(DataError, match="line 3: bytes that are not valid"):
        read(path, strict=True)
    assert read(path, encoding="latin-1").rows[2] == {"t": "hígado"}


def test_undecodable_byte_in_cp1252_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"t;e\na\xf1o;1\nx\x81y;2\n")  # 0x81 is undefined in cp1252
    table = read(path)
    assert table.rows == [{"t": "año", "e": "1"}]
    assert table.notes["quarantined"] == {"undecodable_bytes": 1}


def test_wrong_field_count_names_the_lines(tmp_path: Path) -> None:
    path, aside = tmp_path / "a.csv", tmp_path / "q.jsonl"
    path.write_text('t;e\n"uno\ndos";1;sobra\nbien;2\n')
    table = read(path, quarantine=aside, delimiter=";")
    assert table.rows == [{"t": "bien", "e": "2"}]
    assert table.notes["quarantined_lines"] == 2
    assert json.loads(aside.read_text())["reason"] == "expected 2 fields, found 3"
    with pytest.raises(DataError, match="lines 2-3: expected 2 fields, found 3"):
        read(path, strict=True, delimiter=";")


def test_text_after_a_closing_quote_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('t;e\n"dolor" fuerte;1\nbien;2\n')
    table = read(path)
    assert table.rows == [{"t": "bien", "e": "2"}]
    assert table.notes["quarantined"] == {"broken_quotes": 1}


def test_a_quote_never_closed_stops_instead_of_swallowing_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('t;e\nbien;1\n"abierta;2\n' + "mas;3\n" * 50)
    with pytest.raises(DataError, match="line 3: a quoted field opens here and is not closed"):
        read(path)


def test_endless_line_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "MAX_RECORD_BYTES", 1000)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(jsonl([{"t": "a"}]) + b"x" * 500_000 + b"\n" + jsonl([{"t": "ñ"}])))
    table = read(path)
    assert [row["t"] for row in table.rows] == ["a", "ñ"]
    assert table.notes["quarantined"] == {"too_long": 1}
    csv_path = tmp_path / "a.csv"
    csv_path.write_text('t;e\n"' + "linea\n" * 400 + '";1\n')
    with pytest.raises(DataError, match="line 2: a quoted field opens here"):
        read(csv_path)
    csv_path.write_text('t;e\n"' + "z" * 2000 + '";1\nbien;2\n')
    assert read(csv_path).notes["quarantined"] == {"too_long": 1}


def test_gzip_bomb_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "MAX_FILE_BYTES", 100_000)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"{}\n" * 1_000_000))
    with pytest.raises(DataError, match="larger than 100,000 bytes when decompressed"):
        read(path)


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_truncated_compression_says_how_much_was_read(tmp_path: Path, codec: str) -> None:
    rows = [{"t": f"línea {i} {os.urandom(30).hex()}"} for i in range(20_000)]
    path = tmp_path / "a.jsonl"
    whole = gzip.compress(jsonl(rows)) if codec == "gzip" else pyarrow.compress(jsonl(rows), "zstd", asbytes=True)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        DataError, match=r"cut short or damaged inside its \w+ compression: (\d+) complete lines"
    ) as caught:
        read(path)
    assert int(str(caught.value).split("compression: ")[1].split()[0]) > 1000
    if codec == "gzip":
        path.write_bytes(whole[:5000] + b"\0" * 50 + whole[5050:])
        with pytest.raises(DataError, match="cut short or damaged"):
            read(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "is empty"),
        ("a.jsonl", b"\n\n", "is empty"),
        ("a.csv", b"texto;etiqueta\n", "has a header but no rows"),
        ("a.csv", b"a;a\n1;2\n", "names column 'a' more than once"),
        ("a.csv", "texto;etiqueta\nañ;1\n".encode("utf-16"), "is UTF-16 text"),
        ("a.csv", b"PK\x03\x04\0\0\0\0", "is not a text file"),
        ("a.xlsx", b"PK", "is a spreadsheet"),
        ("a.datos", b"x", "the name does not tell the format"),
        ("a.parquet", b"PAR1 cut", "is not a whole Parquet file"),
        ("a.jsonl", b"{\n", "none of its 1 records can be read; the first, line 1"),
    ],
)
def test_unusable_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read(path)
    assert caught.value.exit_code == 3
    assert caught.value.hint


def test_missing_file_folder_and_pipe(tmp_path: Path) -> None:
    for name in ("no.csv", "no.parquet", "no.what"):
        with pytest.raises(DataError, match=f"{name} does not exist"):
            read(tmp_path / name)
    os.mkfifo(tmp_path / "tubo.csv")
    (tmp_path / "carpeta.csv").mkdir()
    for name in ("tubo.csv", "carpeta.csv"):
        with pytest.raises(DataError, match="is not a regular file"):
            read(tmp_path / name)


def test_unwritable_quarantine(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "archivo").write_text("")
    with pytest.raises(MachineError) as caught:
        read(tmp_path / "a.jsonl", quarantine=tmp_path / "archivo" / "q.jsonl")
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("encoding", ["utf-16", "rot13", "klingon"])
def test_unusable_encoding(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.csv").write_text("a;b\n1;2\n")
    with pytest.raises(ConfigError, match=f"encoding '{encoding}' cannot be used"):
        read(tmp_path / "a.csv", encoding=encoding)


def test_unknown_column_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("texto;etiqueta\nx;1\n")
    table = read(tmp_path / "a.csv")
    assert table.require("texto") == "texto"
    with pytest.raises(DataError, match=r"no column 'text': did you mean 'texto'\?") as caught:
        table.require("text")
    assert "texto, etiqueta" in str(caught.value)


def test_path_expansion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n')
    elsewhere = Path("/")
    monkeypatch.setenv("QUILATE_DATA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("${QUILATE_DATA}/a.jsonl", "~/a.jsonl", str(tmp_path / "a.jsonl")):
        assert read_table(SourceConfig(path=path), base=elsewhere).rows == [{"a": 1}]
    monkeypatch.delenv("QUILATE_DATA")
    with pytest.raises(MachineError, match="QUILATE_DATA is not set"):
        read_table(SourceConfig(path="${QUILATE_DATA}/a.jsonl"), base=elsewhere)


def test_digest_is_of_the_file_on_disk(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n')
    shell = subprocess.run(["sha256sum", tmp_path / "a.jsonl"], capture_output=True, text=True, check=True)
    assert read(tmp_path / "a.jsonl").notes["sha256"] == shell.stdout.split()[0]


def test_packaged_icd10(tmp_path: Path) -> None:
    import importlib.util

    spec = importlib.util.find_spec("cie")
    if spec is None:
        pytest.skip("the package cie is not installed")
    folder = Path(next(iter(spec.submodule_search_locations or ())))
    before = sorted(folder.rglob("*"))
    table = read_table(SourceConfig(path="package:cie"), base=tmp_path)
    assert sorted(folder.rglob("*")) == before  # nothing was unpacked into site-packages
    assert "cie.cie10" not in sys.modules
    assert len(table.rows) == 14_498
    assert len({row["chapter_code"] for row in table.rows}) == 21
    by_code = {row["code"]: row for row in table.rows}
    assert by_code["L589"] == {
        "code": "L589",
        "description": "Radiodermatitis, no especificada",
        "level": 3,
        "category": "L58",
        "block": "L55-L59",
        "chapter": by_code["L00-L99"]["description"],
        "chapter_code": "L00-L99",
    }
    assert by_code["A00-B99"]["chapter_code"] == "A00-B99"
    assert by_code["C00-C75"]["category"] == "C00-C75"


def test_packages_unknown_missing_and_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="'package:otro': no table") as caught:
        read_table(SourceConfig(path="package:otro"), base=tmp_path)
    assert "package:cie" in str(caught.value)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MachineError, match="'cie' is not installed") as missing:
        read_table(SourceConfig(path="package:cie"), base=tmp_path)
    assert "pip install cie" in str(missing.value)
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "cie", ignore_errors=True)
    (tmp_path / "cie" / "data").mkdir(parents=True)
    (tmp_path / "cie" / "__init__.py").write_text("raise SystemExit('imported')")
    (tmp_path / "cie" / "data" / "cie-10.zip").write_bytes(b"PK\x03\x04 cut")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match="is damaged"):
        read_table(SourceConfig(path="package:cie"), base=tmp_path)


def test_folders_are_labels(tmp_path: Path) -> None:
    """As movie reviews and IMDB come: a file a text, a folder a label, in a folder or an archive."""
    files = {
        "críticas/neg/uno.txt": "Qué año\nmás malo.",
        "críticas/pos/dos.txt": "¡Señora película!",
        "críticas/pos/x.txt": " ",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        for name in files:
            archive.write(tmp_path / name, name)
    for place in ("críticas", "t.zip"):
        table = read_table(SourceConfig(path=place), base=tmp_path)
        assert [(row["label"], row["text"]) for row in table.rows] == [
            ("neg", "Qué año\nmás malo."), ("pos", "¡Señora película!"),
        ]  # fmt: skip
        assert (table.notes["format"], table.notes["blank_files"], table.notes["encoding"]) == ("folders", 1, "utf-8")
        assert len(table.notes["sha256"]) == 64
    (tmp_path / "sueltos").mkdir()
    (tmp_path / "sueltos" / "a.txt").write_text("suelto")
    with pytest.raises(DataError, match=r"a\.txt stands in no folder"):
        read_table(SourceConfig(path="sueltos"), base=tmp_path)


def test_sentiment_trees(tmp_path: Path) -> None:
    lines = [
        "(3 (2 (2 La) (2 señora)) (4 (3 (2 -LRB-) (3 canta)) (2 -RRB-)))",
        "(0 mal)",
        "(1 (2 sin) (1 fin)",
        "no es un árbol",
    ]
    (tmp_path / "t.trees").write_text("\n".join(lines), encoding="utf-8")
    table = read_table(SourceConfig(path="t.trees", format="trees"), base=tmp_path)
    assert table.rows == [{"text": "La señora ( canta )", "label": "3"}, {"text": "mal", "label": "0"}]
    assert table.notes["quarantined"] == {"broken_tree": 2}


def test_squad_files_are_rows_of_questions(tmp_path: Path) -> None:
    paragraph = {
        "context": "Ávila tiene murallas.",
        "qas": [
            {"id": "1", "question": "¿Qué tiene Ávila?", "answers": [{"text": "murallas", "answer_start": 12}] * 2},
            {"id": "2", "question": "¿Qué no tiene?", "answers": [], "is_impossible": True},
        ],
    }
    path = tmp_path / "dev.json"
    path.write_text(json.dumps({"version": "2", "data": [{"title": "Ávila", "paragraphs": [paragraph]}]}))
    table = read(path, format="squad")
    assert [row["answers"] for row in table.rows] == [["murallas"], []]
    assert table.rows[0] | {"answers": 0} == {
        "id": "1", "title": "Ávila", "context": "Ávila tiene murallas.", "question": "¿Qué tiene Ávila?", "answers": 0,
    }  # fmt: skip
    path.write_text(json.dumps({"data": [{"paragraphs": [{"qas": []}]}]}))
    with pytest.raises(DataError, match="does not have SQuAD's form"):
        read(path, format="squad")
