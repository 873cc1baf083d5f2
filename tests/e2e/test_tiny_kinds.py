"""`recipes/tiny-choice.yaml` and `tiny-entities.yaml` from the command line: run, report in two forms, predict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_tiny import quilate

RECIPES = Path(__file__).parents[2] / "recipes"


def run(kind: str, folder: Path, base: Path) -> dict[str, Any]:
    quilate("run", RECIPES / f"tiny-{kind}.yaml", "--set", f"base={base}", folder=folder)
    quilate("report", f"runs/tiny-{kind}", "--markdown", "página.md", "--with-text", folder=folder)
    value: dict[str, Any] = json.loads((folder / "runs" / f"tiny-{kind}" / "evidence.json").read_text(encoding="utf-8"))
    cells = json.loads((folder / "página-cells.json").read_text(encoding="utf-8"))
    assert {c["arm"]: c["score"] for c in cells} == pytest.approx(
        {a["name"]: a["score"] for a in value["arms"]}, abs=1e-6
    )
    return value


@pytest.mark.slow
def test_multiple_choice(tmp_path: Path, llama_directory: Path) -> None:
    evidence = run("choice", tmp_path, llama_directory)
    assert evidence["task"]["kind"] == "multiple_choice"
    assert (evidence["metric"], evidence["items"], evidence["labels"]) == ("accuracy", 10, ["A", "B", "C", "D"])
    page = (tmp_path / "runs" / "tiny-choice" / "evidence.html").read_text(encoding="utf-8")
    assert "según el lugar de la opción correcta" in page
    assert "¿Qué animal da la lana?" not in page
    questions = tmp_path / "nuevas.jsonl"
    rows = [
        {"pregunta": "¿Qué da la vaca?", "opciones": [{"texto": "leche"}, {"texto": "miel de encina y algo más"}]},
        {"pregunta": "¿Y la abeja?", "opciones": [{"texto": "miel"}]},
    ]
    questions.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    said = quilate("predict", "runs/tiny-choice", questions, "--arm", "longest", "--json", folder=tmp_path).stdout
    counts = json.loads(said)
    assert (counts["rows"], counts["abstained"], counts["without_text"]) == (2, 1, 1)
    lines = (tmp_path / "nuevas.labels.csv").read_text(encoding="utf-8-sig").splitlines()
    assert lines[1].split(",")[-3:-1][0] == "B"


@pytest.mark.slow
def test_extraction(tmp_path: Path, llama_directory: Path) -> None:
    evidence = run("entities", tmp_path, llama_directory)
    assert evidence["task"]["kind"] == "extraction"
    assert (evidence["metric"], evidence["items"], evidence["labels"]) == ("span_f1", 12, ["FECHA", "LUGAR", "PERSONA"])
    assert {arm["confusion"] for arm in evidence["arms"]} == {None}
    assert "overlapping_spans" in {notice["code"] for notice in evidence["notices"]}
    counts = {arm["name"]: arm["counts"] for arm in evidence["arms"]}
    assert counts["full"]["documents in several windows"] > 0
    page = (tmp_path / "runs" / "tiny-entities" / "evidence.html").read_text(encoding="utf-8")
    assert "Micro-F1 de entidades" in page
    assert "F1 de entidades" in (tmp_path / "página.md").read_text(encoding="utf-8")
    errors = (tmp_path / "runs" / "tiny-entities" / "errors" / "gazetteer.csv").read_text(encoding="utf-8-sig")
    assert errors.startswith("arm,seed,document,error,start,end,label,text")
    notes = tmp_path / "notas.jsonl"
    notes.write_text('{"texto": "  Avisó Lucía Ferrer desde plaza Mayor."}\n{"texto": ""}\n', encoding="utf-8")
    said = quilate("predict", "runs/tiny-entities", notes, "--arm", "gazetteer", "--json", folder=tmp_path).stdout
    assert json.loads(said)["without_text"] == 1
    first, second = (json.loads(line) for line in (tmp_path / "notas.spans.jsonl").read_text("utf-8").splitlines())
    assert [(s["label"], s["text"]) for s in first["quilate_spans"]] == [
        ("PERSONA", "Lucía Ferrer"), ("LUGAR", "plaza Mayor"),
    ]  # fmt: skip
    assert first["texto"][first["quilate_spans"][0]["start"] :].startswith("Lucía")
    assert second["quilate_spans"] == []
