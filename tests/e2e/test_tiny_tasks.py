"""`recipes/tiny-tasks.yaml` run: a chain of tasks, several at once, and the matrix of both."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from in_process import stages_in_this_process

from quilate.cli.main import run_command_line

RECIPE = Path(__file__).parents[2] / "recipes" / "tiny-tasks.yaml"
MODELS = ["base", "first", "second", "lists", "together", "direct", "after-two"]
TASKS = ["task", "tono", "preguntas", "notas", "vecinos"]


@pytest.mark.slow
def test_every_model_is_asked_every_task(tmp_path: Path, llama_directory: Path) -> None:
    with stages_in_this_process(tmp_path):
        assert run_command_line(["run", str(RECIPE), "--set", f"base={llama_directory}", "--json"]) == 0
    run = tmp_path / "runs" / "tiny-tasks"
    evidence = json.loads((run / "evidence.json").read_text(encoding="utf-8"))
    matrix = {(row["model"], row["task"]): row for row in evidence["task_scores"]}
    assert sorted(matrix) == sorted((model, task) for model in MODELS for task in TASKS)
    assert {row["items"] for (_, task), row in matrix.items() if task == "preguntas"} == {10}
    assert (matrix["second", "task"]["on"], matrix["second", "task"]["trained_on"]) == ("first", ["preguntas"])
    arms = {arm["name"]: arm for arm in evidence["arms"]}
    assert list(arms) == ["direct", "after-two", "all-at-once"]
    for arm, model in (("direct", "direct"), ("after-two", "after-two"), ("all-at-once", "together")):
        assert matrix[model, "task"]["score"] == pytest.approx(arms[arm]["score"])  # asked in the same way
    effects = Counter((row["kind"], row["model"]) for row in evidence["task_effects"])
    assert effects["step", "after-two"] == 5
    assert effects["transfer", "after-two"] == 1
    assert effects["interference", "together"] == 3  # of the two others there is no model that learned them alone
    stages = {path.parent.name.rpartition("-")[0]: path.parent for path in run.glob("stages/*/manifest.json")}
    together = json.loads((stages["together-s0"] / "manifest.json").read_text())
    # Of 111 visits by the square roots of 25 (thirty rows, capped), 20, 22, 24 and 15: 24.2, 21.6, 22.7, 23.7 and 18.7.
    assert together["facts"]["visits"] == {"task": 24, "tono": 21, "preguntas": 23, "notas": 24, "vecinos": 19}
    metrics = {task: {row["metric"] for (_, t), row in matrix.items() if t == task} for task in ("notas", "vecinos")}
    assert metrics == {"notas": {"span_f1"}, "vecinos": {"token_f1"}}
    assert arms["after-two"]["cost"]["train_tokens"] > arms["direct"]["cost"]["train_tokens"]
    page = (run / "evidence.html").read_text(encoding="utf-8")
    assert "Lo que sabe cada modelo de cada tarea" in page
    assert "que aprendió antes otra tarea, frente a direct" in page
