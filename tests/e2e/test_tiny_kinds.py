"""Every tiny recipe of docs/tasks.md from the command line: run, report in two forms, predict."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from test_tiny import quilate

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
RUN_HERE = {"tiny-choice", "tiny-entities", "tiny-labels", "tiny-questions", "tiny-records"}


def test_every_recipe_that_the_page_names_is_run() -> None:
    """`tiny` itself is run by test_tiny.py."""
    page = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    assert set(re.findall(r"quilate run recipes/([\w-]+)\.yaml", page)) == RUN_HERE | {"tiny"}


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
    assert set(counts) == {"gazetteer", "full", "frozen"}
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


@pytest.mark.slow
def test_several_labels(tmp_path: Path, llama_directory: Path) -> None:
    evidence = run("labels", tmp_path, llama_directory)
    assert (evidence["task"]["kind"], evidence["metric"], evidence["items"]) == ("multi_label", "macro_f1", 12)
    assert evidence["labels"] == ["agua", "basura", "luz", "ruido"]
    arms = {arm["name"]: arm for arm in evidence["arms"]}
    assert set(arms["tfidf"]["scores"]) == {"micro_f1", "macro_f1"}
    assert {arm["confusion"] for arm in arms.values()} == {None}
    assert arms["frozen"]["counts"]["test texts in several windows"] > 0
    assert arms["lora"]["counts"]["texts in several windows"] > 0
    page = (tmp_path / "runs" / "tiny-labels" / "evidence.html").read_text(encoding="utf-8")
    assert "cuántos textos de prueba tienen cada etiqueta" in page
    errors = (tmp_path / "runs" / "tiny-labels" / "errors" / "tfidf.csv").read_text(encoding="utf-8-sig")
    assert errors.startswith("arm,seed,item,error,label,text")
    notices = tmp_path / "avisos.jsonl"
    notices.write_text('{"texto": "La farola parpadea y gotea la fuente."}\n{"texto": ""}\n', encoding="utf-8")
    said = quilate("predict", "runs/tiny-labels", notices, "--arm", "tfidf", "--json", folder=tmp_path).stdout
    assert json.loads(said)["without_text"] == 1
    lines = (tmp_path / "avisos.labels.jsonl").read_text("utf-8").splitlines()
    first, second = map(json.loads, lines)
    assert set(first["quilate_probabilities"]) == {"agua", "basura", "luz", "ruido"}
    p = first["quilate_probabilities"]
    assert first["quilate_labels"] == sorted(first["quilate_labels"], key=lambda label: -p[label])
    assert p["luz"] == max(p.values())
    assert (second["quilate_labels"], second["quilate_probabilities"]) == ([], {})


@pytest.mark.slow
def test_records(tmp_path: Path, llama_directory: Path) -> None:
    pytest.importorskip("llguidance", reason="llguidance is not installed (the extra `grammar` has it)")
    evidence = run("records", tmp_path, llama_directory)
    arms = {arm["name"]: arm for arm in evidence["arms"]}
    assert arms["lora"]["counts"].get("test answers that are no records", 0) == 0
    assert arms["lora"]["cost"]["train_tokens"] > 0


@pytest.mark.slow
def test_questions(tmp_path: Path, llama_directory: Path) -> None:
    evidence = run("questions", tmp_path, llama_directory)
    assert (evidence["task"]["kind"], evidence["metric"], evidence["items"]) == ("question_answering", "token_f1", 9)
    arms = {arm["name"]: arm for arm in evidence["arms"]}
    assert set(arms["lora"]["scores"]) == {"exact_match", "token_f1"}
    assert "F1 de las palabras" in (tmp_path / "runs" / "tiny-questions" / "evidence.html").read_text(encoding="utf-8")
    errors = (tmp_path / "runs" / "tiny-questions" / "errors" / "lora.csv").read_text(encoding="utf-8-sig")
    assert errors.startswith("arm,seed,item,question,right,answered,token_f1")
    asked = tmp_path / "nuevas.jsonl"
    asked.write_text('{"question": "¿Quién?", "context": "Íñigo."}\n{"question": "", "context": "x"}\n', "utf-8")
    said = quilate("predict", "runs/tiny-questions", asked, "--arm", "lora", "--json", folder=tmp_path).stdout
    assert json.loads(said)["without_text"] == 1
    first, second = map(json.loads, (tmp_path / "nuevas.answers.jsonl").read_text("utf-8").splitlines())
    assert first["question"] == "¿Quién?" and isinstance(first["quilate_answer"], str)
    assert second["quilate_answer"] == ""
