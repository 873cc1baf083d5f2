"""Pretraining and adaptation through a recipe: lineage, kill and resume, leaks, and input that cannot work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import SENTENCES

from quilate import config
from quilate.errors import ConfigError, GateError, ModelError
from quilate.files import read_json
from quilate.recipe.graph import build_graph
from quilate.recipe.schema import Recipe

RECIPE = """\
recipe: textos
data: {all: {path: notas.csv}}
task: {name: notas, text: texto, label: etiqueta, split: {train: 24, dev: 6, test: 12}}
corpora:
  clinic: {path: corpus.txt, documents: line, held_out: 0.2}
stages:
  new: {kind: pretrain, size: tiny, vocabulary: 300, corpora: {clinic: 1.0, task: 0.3}, tokens: 2000, batch_tokens: 500,
        length: 32, context: 64, checkpoint_steps: 2}
  adapted: {kind: adapt, on: new, corpora: {task: 1.0}, tokens: 1500, batch_tokens: 500, length: 32, weights: lora,
            lora: {rank: 4, dropout: 0.2}, checkpoint_steps: 1}
  masked: {kind: pretrain, shape: roberta, size: tiny, vocabulary: 300, corpora: {clinic: 1.0}, tokens: 1500,
           batch_tokens: 500, length: 32, context: 64, checkpoint_steps: 1}
arms:
  majority: {kind: baseline, method: majority}
seeds: [0]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A recipe's folder: 42 labelled notes, and a corpus of other sentences."""
    rows = [f"{s} Nota {i}.,{'ab'[i % 2]}" for i, s in enumerate((SENTENCES * 4)[:42])]
    text = "\n".join(["texto,etiqueta", *(f'"{r.rpartition(",")[0]}",{r.rpartition(",")[2]}' for r in rows)])
    (tmp_path / "notas.csv").write_text(text, encoding="utf-8")
    lines = [f"{s[::-1]} {i}" for i, s in enumerate(SENTENCES * 4)]
    (tmp_path / "corpus.txt").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "r.yaml").write_text(RECIPE, encoding="utf-8")
    return tmp_path


def quilate(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "quilate", "run", "r.yaml", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment,
    )


def bytes_of(run: Path, stage: str) -> dict[str, bytes]:
    """Everything that must repeat: weights, tokenizer, metrics, what was measured."""
    (place,) = (run / "stages").glob(f"{stage}-s0-*")
    names = ("model/model.safetensors", "model/tokenizer.json", "model/config.json", "metrics.jsonl")
    measured = str(read_json(place / "manifest.json")["facts"]).encode()
    return {"facts": measured} | {name: (place / name).read_bytes() for name in names}


@pytest.mark.slow
def test_killed_pretraining_and_adaptation_end_with_the_undisturbed_bytes(folder: Path) -> None:
    undisturbed = quilate(folder, "--out", "whole")
    assert undisturbed.returncode == 0, undisturbed.stderr
    killed = quilate(folder, "--out", "killed", QUILATE_FAULTS="fit.step:3:kill")  # in each stage's third step
    assert killed.returncode == 4
    assert "continue from its last checkpoint" in killed.stderr
    again = quilate(folder, "--out", "killed", QUILATE_FAULTS="fit.step:3:kill")
    tries = 1
    while again.returncode == 4 and tries < 12:
        again, tries = quilate(folder, "--out", "killed", QUILATE_FAULTS="fit.step:3:kill"), tries + 1
    assert again.returncode == 0, again.stderr
    for stage in ("new", "adapted", "masked"):
        assert bytes_of(folder / "killed", stage) == bytes_of(folder / "whole", stage)

    evidence = read_json(folder / "whole" / "evidence.json")
    measured = {(row["model"], row["corpus"]) for row in evidence["language_modelling"]}
    assert measured == {("after new-s0", "clinic"), ("before adapted-s0", "clinic"), ("after adapted-s0", "clinic")}
    lineage = {link["stage"]: link for link in evidence["lineage"]}
    assert lineage["corpus-clinic"]["id"] in lineage["new-s0"]["inputs"]
    assert lineage["new-s0"]["id"] in lineage["adapted-s0"]["inputs"]


def test_corpus_that_holds_a_test_item_stops_the_run(folder: Path) -> None:
    from quilate.engine.interrupts import StopRequest
    from quilate.phases.corpus import CORPUS, CorpusConfig, CorpusStageConfig
    from quilate.phases.inputs import TASK, TaskStageConfig
    from quilate.phases.stage import StageContext

    recipe = config.load(Recipe, folder / "r.yaml")

    def context(settings, name: str, **inputs: Path):  # type: ignore[no-untyped-def]
        place = folder / name
        place.mkdir()
        return StageContext(settings, inputs, place, 0, folder, lambda _: None, lambda _: None, StopRequest())

    TASK.run(context(TaskStageConfig(task=recipe.task, sources=recipe.data), "task"))
    from quilate.tasks.kinds import load_task

    item = load_task(folder / "task" / "task").test[0].text
    with (folder / "corpus.txt").open("a", encoding="utf-8") as file:
        file.write(f"\n{item.upper()}\n")
    corpus = CorpusConfig(path="corpus.txt", documents="line", held_out=0.2)
    with pytest.raises(GateError, match="1 of 12 test items"):
        CORPUS.run(context(CorpusStageConfig(corpus=corpus), "stopped", task=folder / "task"))
    allowed = CorpusStageConfig(corpus=corpus, allow_leak=True)
    assert CORPUS.run(context(allowed, "allowed", task=folder / "task")).facts["train_documents"] > 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.new.corpora.clinic=0", "weights must be above zero"),
        ("stages.new.corpora.other=1.0", "names 'other', which is not in `corpora`"),
        ("stages.adapted.on=adapted", "in a circle: adapted -> adapted"),
        ("stages.adapted.on=base", "give the recipe a `base`"),
        ("stages.new.length=1024", "exceeds the model's context of 64"),
        ("stages.masked.shape=bert", "Input should be 'llama', 'gpt2', 'falcon' or 'roberta'"),
        ("stages.new.tokenss=3", "did you mean 'tokens'"),
    ],
)
def test_impossible_stages_are_refused_before_anything_runs(folder: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.load(Recipe, folder / "r.yaml", [override])


def test_changed_corpus_is_another_stage(folder: Path) -> None:
    recipe = config.load(Recipe, folder / "r.yaml")
    before = build_graph(recipe, folder).nodes
    with (folder / "corpus.txt").open("a", encoding="utf-8") as file:
        file.write("\nuna línea más\n")
    after = build_graph(recipe, folder).nodes
    assert before["task"].id == after["task"].id
    assert before["new-s0"].id != after["new-s0"].id
    assert before["adapted-s0"].id != after["adapted-s0"].id


def test_masked_model_cannot_be_asked_to_write(tmp_path: Path, tokenizer) -> None:  # type: ignore[no-untyped-def]
    import torch

    from quilate.models.create import create, shape_config
    from quilate.models.load import load_causal, load_language_model

    settings = shape_config("roberta", "tiny", vocabulary=len(tokenizer), context=64, end=0, pad=1)
    create(settings, masked=True).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="cannot write an answer"):
        load_causal(tmp_path, dtype=torch.float32)
    assert type(load_language_model(tmp_path, dtype=torch.float32)).__name__ == "RobertaForMaskedLM"
