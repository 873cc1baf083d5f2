"""`quilate verify` on models of every kind of task."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from certificates import alter, certificate, examined, failed, folder_of, made
from safetensors.torch import load_file, save_file
from support import save_directory, tiny_roberta

from quilate.cli.main import run_command_line
from quilate.config import validate
from quilate.files import read_jsonl
from quilate.phases import examples, finetune
from quilate.recipe.evidence_stage import run_plan
from quilate.recipe.schema import Recipe
from quilate.tasks.multi_label import indicators
from quilate.verify.certify import CHECKS, _checked
from quilate.verify.trained_on import template_round_trip, token_counts

RECIPES = Path(__file__).parents[2] / "recipes"

KINDS = {
    "tiny-choice": {"answer": "letter"},
    "tiny-questions": {"max_new_tokens": 12},
    "tiny-records": {"answer": "records", "max_item_tokens": 24, "max_new_tokens": 64},
    "tiny-entities": {"max_item_tokens": 12},
    "tiny-labels": {"max_item_tokens": 12},
}
WINDOWED = ("tiny-records", "tiny-entities", "tiny-labels")


def kind_run(folder: Path, base: Path, name: str, **arm: Any) -> Path:
    """A run of one of the tiny recipes, with one arm on this base."""
    value = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    common = {"kind": "finetune", "method": "lora", "precision": "fp32", "batch_size": 6, "epochs": 1}
    value |= {"corpora": {}, "stages": {}, "base": str(base), "arms": {"few": common | KINDS[name] | arm}}
    for path in RECIPES.glob("tiny-*.json*"):
        shutil.copy(path, folder)
    return made(folder, validate(Recipe, value, source="t"), ["task", "base", "few-s0"])


@pytest.mark.parametrize("name", list(KINDS))
def test_models_of_every_kind_of_task_pass(
    name: str, tmp_path: Path, llama_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same checks; a document may be several rows, and a broken task is found."""
    run = kind_run(tmp_path, llama_directory, name)
    code, found = certificate(run, "few", capsys)
    assert (code, failed(found)) == (0, [])
    checks = {check["name"]: check for check in found["checks"]}
    assert all(check["outcome"] == "pass" for check in checks.values())
    tokens = checks["token counts"]["figures"]
    assert tokens["rows"] == run_plan(run)["recipe"]["task"]["split"]["train"]
    assert ("windows" in tokens) == (name in WINDOWED)
    assert checks["kill and resume"]["figures"]["steps"] == 20  # every window of the documents that were chosen counts
    items = folder_of(run, "task") / "task"
    path = next(p for p in items.rglob("*.jsonl") if "train" in p.name)
    first, *others = read_jsonl(path)
    first |= {"text": f"Ayer dijo: {first['text']}"} | ({"spans": []} if "spans" in first else {})
    alter(path, [first, *others], folder_of(run, "task"))
    assert token_counts(examined(run, "few-s0")).as_check("").outcome == "fail"


def test_a_masked_tagger_under_which_the_model_stays_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save_directory(tiny_roberta(), tmp_path / "masked")
    run = kind_run(tmp_path, base, "tiny-entities", method="head", max_item_tokens=24)
    code, found = certificate(run, "few", capsys)
    assert (code, failed(found)) == (0, [])
    outcomes = {check["name"]: check["outcome"] for check in found["checks"]}
    assert outcomes.pop("merge") == "not applicable" and set(outcomes.values()) == {"pass"}
    assert run_command_line(["verify", str(run), "few", "--with-text"]) == 0


def test_classifiers_that_learn_something_else_are_found(
    tmp_path: Path, llama_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spans").mkdir()
    run = kind_run(tmp_path / "spans", llama_directory, "tiny-entities")
    assert template_round_trip(examined(run, "few-s0")).as_check("").outcome == "pass"
    real = examples.tags_of
    monkeypatch.setattr(examples, "tags_of", lambda *given: np.roll(real(*given), 1))
    found = template_round_trip(examined(run, "few-s0")).as_check("")
    assert found.outcome == "fail" and found.figures["spans that their tags do not say"] > 10
    (tmp_path / "labels").mkdir()
    run = kind_run(tmp_path / "labels", llama_directory, "tiny-labels")
    assert template_round_trip(examined(run, "few-s0")).as_check("").outcome == "pass"
    monkeypatch.setattr(finetune, "indicators", lambda items, labels: ~indicators(items, labels))
    found = template_round_trip(examined(run, "few-s0")).as_check("")
    assert found.outcome == "fail" and found.figures["labels differ"] == 28


@pytest.mark.parametrize("name", ["tiny-entities", "tiny-labels"])
def test_a_classifier_that_was_lost_is_found(name: str, tmp_path: Path, llama_directory: Path) -> None:
    """peft would draw another one and say nothing."""
    run = kind_run(tmp_path, llama_directory, name)
    path = folder_of(run, "few-s0") / "model" / "adapter_model.safetensors"
    tensors = load_file(path)
    kept = {key: value for key, value in tensors.items() if "lora" in key}
    assert len(kept) < len(tensors)
    save_file(kept, path)
    found = _checked("export", CHECKS["export"], examined(run, "few-s0"))
    assert found.outcome == "fail", found


def test_a_classifier_that_is_planned(
    tmp_path: Path, llama_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = kind_run(tmp_path, llama_directory, "tiny-labels")
    shutil.rmtree(folder_of(run, "few-s0"))
    code, found = certificate(run, "few", capsys)
    assert (code, failed(found), found["state"]) == (0, [], "planned")
    outcomes = {check["name"]: check["outcome"] for check in found["checks"]}
    assert [name for name, outcome in outcomes.items() if outcome != "pass"] == ["files", "merge", "export"]
