"""The verbs as a stranger uses them, in order: init, run, status, report, predict, evaluate; and their refusals."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from quilate.cli.main import run_command_line
from quilate.cli.predict import labelled_csv
from quilate.cli.single import TaskFlags, recipe_of
from quilate.config import load, validate
from quilate.engine.interrupts import StopRequest
from quilate.files import make_folder
from quilate.recipe.graph import build_graph
from quilate.recipe.run import _write_plan, spec_of
from quilate.recipe.schema import Recipe
from quilate.recipe.worker import run_stage
from quilate.tasks.classification import ClassificationConfig

WORDS = {"corazón": "arritmia y soplo", "piel": "eccema y prurito", "ojo": "visión borrosa"}


def quilate(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "quilate", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Notes as Spanish Excel saves them: semicolons, cp1252; run with the two arms that need no model."""
    place = tmp_path_factory.mktemp("notas")
    rows = [
        f"{i};Año {1990 + i % 30}, paciente {i}: {text};{label};p{i % 60}"
        for i in range(120)
        for n, (label, text) in enumerate(WORDS.items())
        if i % 3 == n
    ]
    (place / "notas.csv").write_bytes("\r\n".join(["n;texto;etiqueta;paciente", *rows]).encode("cp1252"))
    done = quilate(place, "init", "notas.csv", "--text", "texto", "--label", "etiqueta", "--group", "paciente")
    assert done.returncode == 0, done.stderr
    assert "cp1252" in done.stdout
    recipe = (place / "notas.yaml").read_text(encoding="utf-8")
    kept = [line for line in recipe.splitlines() if "kind: icl" not in line and "kind: finetune" not in line]
    (place / "notas.yaml").write_text("\n".join(kept), encoding="utf-8")
    done = quilate(place, "run", "notas.yaml", "--lang", "es", "--with-text")
    assert done.returncode == 0, done.stderr
    assert "basta con tfidf" in done.stdout
    return place


@pytest.mark.slow
def test_status_report_and_errors(folder: Path) -> None:
    status = json.loads(quilate(folder, "status", "runs/notas", "--json").stdout)
    assert {stage["state"] for stage in status["stages"]} == {"done"}
    evidence = json.loads(quilate(folder, "report", "runs/notas", "--json").stdout)
    assert evidence["recommendation"]["arm"] == "tfidf"
    wrong = (folder / "runs/notas/errors/majority.csv").read_bytes().decode("utf-8-sig")
    assert "Año" in wrong


@pytest.mark.slow
def test_predict_labels_new_rows_and_abstains(folder: Path) -> None:
    (folder / "nuevas.csv").write_text("id,texto\n1,arritmia y soplo\n2,\n3,visión borrosa\n", encoding="utf-8")
    done = quilate(folder, "predict", "runs/notas", "nuevas.csv", "--probabilities", "--json")
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert (counts["rows"], counts["abstained"], counts["without_text"]) == (3, 1, 1)
    assert counts["arm"] == "tfidf" and counts["why"] == "recommended by the evidence"
    with (folder / "nuevas.labels.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["quilate_label"] for row in rows] == ["corazón", "", "ojo"]
    assert sum(float(rows[0][f"p({label})"]) for label in WORDS) == pytest.approx(1, abs=1e-3)


@pytest.mark.slow
def test_evaluate_refuses_what_was_trained_on_and_scores_what_was_not(folder: Path) -> None:
    refused = quilate(folder, "evaluate", "runs/notas", "notas.csv")
    assert refused.returncode == 5
    assert "items of notas.csv were in the training rows" in refused.stderr
    fresh = [f"nueva {i}: {text},{label}" for i in range(8) for label, text in WORDS.items()]
    (folder / "otras.csv").write_text("\n".join(["texto,etiqueta", *fresh]), encoding="utf-8")
    done = quilate(folder, "evaluate", "runs/notas", "otras.csv", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["accuracy"], result["items"]) == (1.0, 24)
    assert (result["groups"], result["groups_compared"]) == (24, False)
    new_patients = [f"{row},nuevo {i // 2}" for i, row in enumerate(fresh)]
    (folder / "otras.csv").write_text("\n".join(["texto,etiqueta,paciente", *new_patients]), encoding="utf-8")
    done = quilate(folder, "evaluate", "runs/notas", "otras.csv", "--json")
    assert (json.loads(done.stdout)["groups"], json.loads(done.stdout)["groups_compared"]) == (12, True)
    every_patient = [f"{row},p{i}" for i, row in enumerate(fresh * 3) if i < 60]
    (folder / "otras.csv").write_text("\n".join(["texto,etiqueta,paciente", *every_patient]), encoding="utf-8")
    refused = quilate(folder, "evaluate", "runs/notas", "otras.csv")
    assert refused.returncode == 5 and "0 by their text" in refused.stderr and "0 by their group" not in refused.stderr


def test_what_one_arm_learned_can_be_used(
    tmp_path: Path, llama_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A verb that runs one arm writes no evidence, and there is nothing to choose."""
    rows = [f"caso {i} con {text},{label}" for i in range(20) for label, text in WORDS.items()]
    (tmp_path / "notas.csv").write_text("\n".join(["texto,etiqueta", *rows]), encoding="utf-8")
    flags = TaskFlags(tmp_path / "notas.csv", "texto", "etiqueta", None, None, "es", None, 6, 12)
    arm = {"kind": "baseline", "method": "tfidf"}  # as any other, and trained in no time
    recipe = validate(Recipe, recipe_of("finetune", arm, flags, base=str(llama_directory), seed=0), source="t")
    graph, run = build_graph(recipe, tmp_path), tmp_path / "run"
    _write_plan(graph, recipe, tmp_path, run)
    for name in ("task", "finetune-s0", "finetune-s0-evaluate"):
        spec_of(graph.nodes[name], graph, run, tmp_path).write(make_folder(graph.nodes[name].folder(run)))
        run_stage(graph.nodes[name].folder(run), StopRequest())
    capsys.readouterr()
    (tmp_path / "nuevas.csv").write_text("texto,etiqueta\nsolo arritmia,corazón\nsolo eccema,piel\n", encoding="utf-8")
    for verb in ("predict", "evaluate"):
        assert run_command_line([verb, str(run), str(tmp_path / "nuevas.csv"), "--json"]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert (answer["arm"], answer["why"]) == ("finetune", "the only arm")


def test_init_in_a_language_without_a_template_writes_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"cas {i},{'sí' if i % 2 else 'no'}" for i in range(40)]
    (tmp_path / "notes.csv").write_text("\n".join(["text,etiqueta", *rows]), encoding="utf-8")
    command = [str(tmp_path / "notes.csv"), "--text", "text", "--label", "etiqueta", "--language", "ca"]
    assert run_command_line(["init", *command]) == 0
    task = load(Recipe, tmp_path / "notes.yaml").task
    assert isinstance(task, ClassificationConfig) and task.language == "ca"
    assert task.prompt_template().prompt("Núria") == "Text: Núria\nLabel:"
    for verb in ("finetune", "icl"):
        capsys.readouterr()
        assert run_command_line([verb, *command]) == 2
        assert "there is a prompt template for es and en alone" in capsys.readouterr().err


def test_init_writes_no_recipe_that_it_would_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "n.csv").write_text("t,e\na,1\nb,2\n", encoding="utf-8")
    monkeypatch.setattr("quilate.cli.init.recipe_text", lambda *_, **__: "recipe: n\nbass: x\n")
    assert run_command_line(["init", str(tmp_path / "n.csv"), "--text", "t", "--label", "e"]) == 2
    assert not (tmp_path / "n.yaml").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("run", "notas.yaml", "--set", "arms.tfidf.regularisation=1"), 2, "did you mean 'regularization'"),
        (("run", "none.yaml"), 3, "none.yaml does not exist"),
        (("frobnicate",), 2, "Unknown command"),
        (("predict", "runs/notas", "notas.csv", "--arm", "tfdif"), 2, "has no arm 'tfdif'"),
        (("predict", "runs/notas", "notas.csv", "--threshold", "2"), 2, "between 0 and 1"),
        (("status", "."), 3, "is not a run directory"),
        (("init", "notas.csv", "--text", "testo", "--label", "etiqueta", "--out", "x.yaml"), 3, "did you mean 'texto'"),
        (("init", "notas.csv", "--text", "texto", "--label", "etiqueta"), 2, "exists already"),
    ],
)
def test_refusals_say_what_to_do_without_a_traceback(
    folder: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    done = quilate(folder, *arguments)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_labelled_rows_have_one_width_and_say_who_abstains() -> None:
    content, abstained = labelled_csv(
        ["a"], [{"a": "uno"}, {"a": "dos"}, {"a": None}], {0: [0.2, 0.8], 1: [0.5, 0.5]}, ["no", "sí"],
        threshold=0.6, probabilities=True,
    )  # fmt: skip
    rows = list(csv.reader(content.decode("utf-8-sig").splitlines()))
    assert {len(row) for row in rows} == {6}
    assert [row[1:4] for row in rows[1:]] == [["sí", "0.8000", "no"], ["", "0.5000", "yes"], ["", "", "yes"]]
    assert abstained == 2


@pytest.mark.slow
def test_pretrain_and_adapt_without_a_recipe(tmp_path: Path) -> None:
    """A new model from raw text, then adapted to other text: each measured on text held out, each a plain directory."""
    from transformers import AutoModelForCausalLM

    notes = [f"Paciente {i}: {text}, en el año {1990 + i % 30}." for i in range(150) for text in WORDS.values()]
    (tmp_path / "notas.txt").write_text("\n\n".join(notes), encoding="utf-8")
    (tmp_path / "otras.txt").write_text("\n\n".join(f"Alta sin {n} incidencias." for n in range(150)), encoding="utf-8")
    small = ("--tokens", "20000", "--language", "any", "--json")
    done = quilate(tmp_path, "pretrain", "notas.txt", "--size", "tiny", "--vocabulary", "320", *small)
    assert done.returncode == 0, done.stderr
    [made] = json.loads(done.stdout)
    assert made["measure"] == "bits per byte" and made["before"] == {} and 0 < made["after"]["text"] < 8
    AutoModelForCausalLM.from_pretrained(tmp_path / made["folder"])
    done = quilate(
        tmp_path, "adapt", "otras.txt", "--base", made["folder"], "--replay", "notas.txt", "--lr", "1e-3", *small
    )
    assert done.returncode == 0, done.stderr
    [adapted] = json.loads(done.stdout)
    assert adapted["after"]["text"] < adapted["before"]["text"]
    assert set(adapted["after"]) == {"text", "replay"}
    shown = quilate(tmp_path, "report", "runs/otras-adapt")
    assert shown.returncode == 0 and "→" in shown.stdout
