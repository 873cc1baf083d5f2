"""Every format read, and every kind of broken, hostile or mistaken file set aside with its reason."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from quilate.curation.documents import REASONS, Raw, Refused
from quilate.curation.extraction import Extractor
from quilate.curation.sources import Place, RawSourceConfig, files_of, read
from quilate.curation.streams import FREE_BYTES, Broken, LimitsConfig, decode
from quilate.errors import DataError

TEXTS = ["La niña tosió; ¿mejoró? Sí.", "El señor «Íñigo»\nno refiere dolor."]
ROWS = [{"id": f"n{i}", "text": text, "web": f"https://a.example/{i}"} for i, text in enumerate(TEXTS)]


def taken(folder: Path, limits: LimitsConfig | None = None, **config: Any) -> tuple[list[Raw], list[tuple[str, str]]]:
    """The documents of a source, and (file, reason) of what was set aside."""
    source = RawSourceConfig(path=str(folder), **config)
    root, paths = files_of(source, folder)
    documents: list[Raw] = []
    refused: list[tuple[str, str]] = []
    for path in paths:
        for item in read(path, Place("s", str(path.relative_to(root)), source, limits or LimitsConfig())):
            if isinstance(item, Refused):
                assert item.reason in REASONS
                refused.append((item.place, item.reason))
            else:
                documents.append(item)
    return documents, refused


def contents(documents: list[Raw]) -> list[str | bytes]:
    return [document.content for document in documents]


@pytest.mark.parametrize("packing", ["plain", "gzip", "zstd"])
def test_tables_and_text(tmp_path: Path, packing: str) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
    table = "id;text;web\n" + "".join(f'{r["id"]};"{r["text"]}";{r["web"]}\n' for r in ROWS)
    packed = {
        "plain": lambda content: content,
        "gzip": gzip.compress,
        "zstd": lambda content: pyarrow.compress(content, "zstd", asbytes=True),
    }[packing]
    for name, content in {
        "a.jsonl": lines,
        "b.csv": table.encode("cp1252"),
        "c.txt": "\n\n".join(TEXTS).encode(),
    }.items():
        (tmp_path / name).write_bytes(packed(content))
    documents, refused = taken(tmp_path, documents="paragraph", id="id", url="web")
    assert contents(documents) == TEXTS * 3 and refused == []
    assert [d.id for d in documents[:3]] == ["s/n0", "s/n1", "s/n0"]
    assert documents[1].url == "https://a.example/1" and documents[-1].url is None


def test_parquet_a_template_and_every_unit_of_text(tmp_path: Path) -> None:
    parquet.write_table(
        pyarrow.Table.from_pylist([*ROWS, {"id": "x", "text": None, "web": ""}]), tmp_path / "a.parquet"
    )
    documents, refused = taken(tmp_path / "a.parquet", text="{{ id }}: {{ text }}")
    assert contents(documents)[0] == f"n0: {TEXTS[0]}"
    documents, refused = taken(tmp_path / "a.parquet")
    assert contents(documents) == TEXTS and refused == [("a.parquet:3", "no text")]
    (tmp_path / "t.txt").write_text("\ufeffuno\r\ndos\r\n\r\n \r\ntres", encoding="utf-8")
    units = {unit: contents(taken(tmp_path / "t.txt", documents=unit)[0]) for unit in ("file", "paragraph", "line")}
    assert units == {"file": ["uno\ndos\n\n \ntres"], "paragraph": ["uno\ndos", "tres"], "line": ["uno", "dos", "tres"]}


def html(body: str) -> bytes:
    menu = "<nav><ul><li><a href='/'>Inicio</a></li><li><a href='/c'>Contacto</a></li></ul></nav>"
    main = f"<article><h1>La tos</h1>{body}</article>"
    return f"<html lang='es'><head><title>Tos</title></head><body>{menu}{main}</body></html>".encode()


PARAGRAPH = "La tos de la niña empezó hace tres días, después de un catarro, y no cede con el jarabe. " * 4


def warc(pages: dict[str, bytes]) -> bytes:
    warcio = pytest.importorskip("warcio.warcwriter", reason="warcio is not installed (pip install 'quilate[curate]')")
    from warcio.statusandheaders import StatusAndHeaders

    content = io.BytesIO()
    writer = warcio.WARCWriter(content, gzip=True)
    for url, page in pages.items():
        headers = StatusAndHeaders("200 OK", [("Content-Type", "text/html; charset=utf-8")], protocol="HTTP/1.0")
        writer.write_record(writer.create_warc_record(url, "response", payload=io.BytesIO(page), http_headers=headers))
    return content.getvalue()


def pdf(text: str) -> bytes:
    """A PDF of one page by hand; without text it is a blank one, as a scan is."""
    stream = f"BT /F1 12 Tf 20 700 Td ({text}) Tj ET".encode("cp1252") if text else b""
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    content, places = b"%PDF-1.4\n", []
    for number, item in enumerate(objects, start=1):
        places.append(len(content))
        content += b"%d 0 obj\n%s\nendobj\n" % (number, item)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    start = len(content)
    return content + b"xref\n0 6\n0000000000 65535 f \n%strailer << /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (
        table,
        start,
    )


def test_pages_of_every_kind_are_extracted_in_a_bounded_child(tmp_path: Path) -> None:
    for package in ("trafilatura", "pypdf", "docx"):
        pytest.importorskip(package, reason=f"{package} is not installed (pip install 'quilate[curate]')")
    import docx

    document = docx.Document()
    document.add_paragraph("Informe de alta de la niña.")
    document.add_table(1, 2).rows[0].cells[1].text = "38,5 ºC"
    document.save(str(tmp_path / "a.docx"))
    (tmp_path / "b.html").write_bytes(html(f"<p>{PARAGRAPH}</p>"))
    (tmp_path / "c.pdf").write_bytes(pdf("La niña tosió."))
    (tmp_path / "d.pdf").write_bytes(pdf(""))
    (tmp_path / "e.pdf").write_bytes(b"%PDF-1.4\n" + os.urandom(500))
    (tmp_path / "f.warc.gz").write_bytes(warc({"https://a.example/tos": html(f"<p>{PARAGRAPH}</p>")}))
    (tmp_path / "g.html").write_bytes(b"<html><body></body></html>")
    documents, refused = taken(tmp_path)
    assert refused == []
    texts: dict[str, str] = {}
    with Extractor(LimitsConfig()) as extractor:
        for raw in documents:
            try:
                texts[raw.place] = extractor.text(raw)
            except Broken as broken:
                texts[raw.place] = f"({broken.reason})"
    assert texts["a.docx"] == "Informe de alta de la niña.\n\t38,5 ºC"
    assert PARAGRAPH.strip() in texts["b.html"] and "Contacto" not in texts["b.html"]
    assert texts["c.pdf"] == "La niña tosió."
    assert (texts["d.pdf"], texts["e.pdf"], texts["g.html"]) == (
        "(no text layer)",
        "(unreadable)",
        "(nothing extracted)",
    )
    assert PARAGRAPH.strip() in texts["f.warc.gz:1"]
    assert next(d.url for d in documents if d.place == "f.warc.gz:1") == "https://a.example/tos"


def test_a_page_that_hangs_or_eats_memory_costs_itself_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trafilatura", reason="trafilatura is not installed (pip install 'quilate[curate]')")
    fake = tmp_path / "trafilatura.py"  # found before the real one: a parser with both faults
    fake.write_text(
        "import time\n"
        "def extract(content, **_):\n"
        "    if b'hang' in content: time.sleep(60)\n"
        "    if b'eat' in content: bytearray(2**40)\n"
        "    if b'write' in content: open('escaped.txt', 'wb').write(b'x' * 10)\n"
        "    return content.decode()\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.chdir(tmp_path)
    outcomes = {}
    with Extractor(LimitsConfig(seconds=3)) as extractor:
        extractor.text(Raw("1", b"the child starts", "html", None, "p"))
        started = time.monotonic()
        for content in (b"hang", b"eat", b"write", "bien, ñ".encode()):
            try:
                outcomes[content] = extractor.text(Raw("1", content, "html", None, "p"))
            except Broken as broken:
                outcomes[content] = broken.reason
    assert list(outcomes.values())[:2] == ["took too long", "took too much memory"]
    assert outcomes["bien, ñ".encode()] == "bien, ñ"
    assert not (tmp_path / "escaped.txt").exists() or (tmp_path / "escaped.txt").stat().st_size == 0
    assert time.monotonic() - started < 30


def test_compression_that_ends_early_costs_the_rest_of_its_file(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": f"{i} {os.urandom(200).hex()} ñ"}) + "\n" for i in range(2_000)).encode()
    for name, packed in {
        "a.jsonl.gz": gzip.compress(lines),
        "b.jsonl.zst": pyarrow.compress(lines, "zstd", asbytes=True),
    }.items():
        (tmp_path / name).write_bytes(packed[: len(packed) // 2])
    documents, refused = taken(tmp_path)
    assert [reason for _, reason in refused] == ["cut short", "cut short"]
    for name in ("a.jsonl.gz", "b.jsonl.zst"):
        assert 0 < sum(d.place.startswith(name) for d in documents) < 2_000


@pytest.mark.parametrize("packing", ["gzip", "zstd"])
def test_a_bomb_is_dropped_in_bounded_time_and_memory(tmp_path: Path, packing: str) -> None:
    """100 MB of spaces in 0.1 MB (gzip; zstd packs them still better), as one endless line."""
    size = 100 * 2**20
    if packing == "gzip":
        with gzip.open(tmp_path / "a.txt.gz", "wb", compresslevel=9) as file:
            for _ in range(size // 2**20):
                file.write(b" " * 2**20)
    else:
        (tmp_path / "a.txt.zst").write_bytes(pyarrow.compress(b" " * size, "zstd", asbytes=True))
    tracemalloc.start()
    documents, refused = taken(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert documents == [] and [reason for _, reason in refused] == ["expands too much"]
    assert peak < 64 * 2**20


def test_an_archive_of_many_small_bombs_is_one(tmp_path: Path) -> None:
    """No member is above what any file may unpack to; all of them together are."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(40):
            archive.writestr(f"{number}.txt", "La niña tose.\n" * 2**16)  # 1 MB in 3 kB
    documents, refused = taken(tmp_path)
    assert 10 <= len(documents) < 25 and len(documents) + len(refused) == 40
    assert {reason for _, reason in refused} == {"expands too much"}


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string()], ids=str)
def test_a_parquet_that_names_one_text_a_thousand_times_is_a_bomb(tmp_path: Path, kind: pyarrow.DataType) -> None:
    text = "La niña tose. " * 20_000
    cells = {"text": pyarrow.array([text] * 400, kind)}
    parquet.write_table(pyarrow.table(cells), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 2**20 < len(text) * 400
    tracemalloc.start()
    documents, refused = taken(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [reason for _, reason in refused] == ["expands too much"]
    assert sum(len(document.content) for document in documents) <= FREE_BYTES
    assert peak < 64 * 2**20


def test_texts_in_lists_count_as_texts(tmp_path: Path) -> None:
    lists = [["La niña tose. " * 20_000] * 4] * 100
    parquet.write_table(pyarrow.table({"partes": lists}), tmp_path / "a.parquet")
    documents, refused = taken(tmp_path, text="{{ partes | length }}")
    assert [reason for _, reason in refused] == ["expands too much"] and len(documents) < 100


def test_a_document_that_is_too_long_is_left_out_whole(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(f"línea {n}" for n in range(3_000)), encoding="utf-8")
    documents, refused = taken(tmp_path, LimitsConfig(document_bytes=10_000), documents="file")
    assert (documents, refused) == ([], [("a.txt:1", "too long")])
    (tmp_path / "a.txt").write_text("corto\n\n" + "largo y más\n" * 2_000 + "\notro", encoding="utf-8")
    documents, refused = taken(tmp_path, LimitsConfig(document_bytes=10_000), documents="paragraph")
    assert contents(documents) == ["corto", "otro"] and refused == [("a.txt:3", "too long")]


def test_an_endless_line_costs_its_length_in_time_and_the_limit_in_memory(tmp_path: Path) -> None:
    with (tmp_path / "a.jsonl").open("wb") as file:
        file.write(b'{"text": "')
        for _ in range(100):
            file.write(b"ab " * 2**18)
        file.write(b'"}\n{"text": "bien"}\n')
    tracemalloc.start()
    documents, refused = taken(tmp_path, LimitsConfig(document_bytes=2**20))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert contents(documents) == ["bien"] and refused == [("a.jsonl:1", "too long")]
    assert peak < 16 * 2**20


def test_archives_are_read_in_place_and_unsafe_members_never(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    names = ["bien/a.txt", "../fuera.txt", "/tmp/absoluto.txt", "C:\\b.txt", "a/..\\b.txt"]
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), TEXTS[0])
        archive.writestr("bomba.txt", b"\0" * 2**26, zipfile.ZIP_DEFLATED)
        archive.writestr("otro.zip", b"PK")
    with tarfile.open(folder / "b.tar.gz", "w:gz") as archive:
        for name in names[:3]:
            member = tarfile.TarInfo(name)
            member.size = len(TEXTS[1].encode())
            archive.addfile(member, io.BytesIO(TEXTS[1].encode()))
        for kind, name in ((tarfile.SYMTYPE, "enlace.txt"), (tarfile.CHRTYPE, "aparato.txt")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    (folder / "c.zip").write_bytes(b"PK\x03\x04 no es un archivo")
    documents, refused = taken(folder)
    assert contents(documents) == TEXTS
    unsafe = [place for place, reason in refused if reason == "unsafe name"]
    assert len(unsafe) == 4 + 4
    rest = [(p, r) for p, r in refused if r != "unsafe name"]
    assert rest == [
        ("a.zip!bomba.txt", "expands too much"),
        ("a.zip!otro.zip", "unknown format"),
        ("c.zip", "unreadable"),
    ]
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.zip", "b.tar.gz", "c.zip", "in"]


def test_mixed_encodings_line_by_line(tmp_path: Path) -> None:
    lines = [
        "uno: señal".encode(),
        "dos: año y «niño»".encode("cp1252"),
        "tres: ñandú".encode()[:-1],
        b"cuatro \x81\xff",
    ]
    (tmp_path / "a.txt").write_bytes(b"\n".join(lines))
    documents, refused = taken(tmp_path, documents="line")
    assert contents(documents) == ["uno: señal", "dos: año y «niño»"]
    assert refused == [("a.txt:3", "undecodable"), ("a.txt:4", "undecodable")]
    assert decode("señal".encode(), "cp1252") == ("seÃ±al", "cp1252")  # what was asked for is done


def test_files_that_are_not_what_they_say(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_bytes(b"\x89PNG\r\n\x1a\n" + os.urandom(1000))
    (tmp_path / "b.txt").write_bytes(os.urandom(4000))
    (tmp_path / "c.pdf").write_bytes(b"<html>no</html>")
    (tmp_path / "d.jsonl").write_bytes("hola".encode("utf-16"))
    (tmp_path / "e.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "f.xyz").write_bytes(b"?")
    (tmp_path / "g.txt").symlink_to("/etc/passwd")
    (tmp_path / "h.jsonl").write_text('[1]\n{"text": "\\ud800"}\n{"text": 5\n{"texto": "x"}\n' + "[" * 100_000)
    (tmp_path / "i.csv").write_text('text,n\nbien,1\n"mal,2\nno cierra,3\n')
    documents, refused = taken(tmp_path)
    assert contents(documents) == ["bien"]
    assert refused == [
        ("a.html", "binary"),
        ("b.txt", "binary"),
        ("c.pdf", "binary"),
        ("d.jsonl", "binary"),
        ("e.parquet", "unreadable"),
        ("f.xyz", "unknown format"),
        ("g.txt", "unsafe name"),
        ("h.jsonl:1", "not JSON"),
        ("h.jsonl:2", "undecodable"),
        ("h.jsonl:3", "not JSON"),
        ("h.jsonl:4", "no text"),
        ("h.jsonl:5", "not JSON"),
        ("i.csv:3", "broken record"),
    ]
    with pytest.raises(DataError, match="does not exist"):
        taken(tmp_path / "nada")
