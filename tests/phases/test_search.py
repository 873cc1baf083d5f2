"""A search inside an arm: what is tried, what is kept, what it costs, and what the evidence says of it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from test_finetune import Folder

from quilate.config import validate
from quilate.engine.interrupts import StopRequest
from quilate.errors import Interrupted
from quilate.evaluation.search import Tried, search_evidence
from quilate.evaluation.statistics import STATISTICS, label_features
from quilate.inference.scorer import load_scorer
from quilate.models.load import load_causal
from quilate.phases.evaluate import features_of
from quilate.phases.finetune import FinetuneConfig, default_search
from quilate.phases.search import _Done, best_of_trials, combinations, config_of, sweep
from quilate.phases.stage import StageReport, model_of
from quilate.recipe.graph import build_graph
from quilate.recipe.schema import Recipe
from quilate.tasks.kinds import load_task

SEARCH: dict[str, Any] = {"search": {"lr": [1e-5, 3e-2], "lora.rank": [1, 4]}, "epochs": 4, "method": "lora"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, llama_directory: Path) -> Folder:
    return Folder(tmp_path_factory.mktemp("search"), llama_directory)


@pytest.fixture(scope="module")
def report(folder: Folder) -> StageReport:
    return folder.run("arm", **SEARCH)


def test_every_combination_is_tried_and_the_best_on_dev_is_kept(folder: Folder, report: StageReport) -> None:
    tried = report.facts["tried"]
    assert [entry["values"] for entry in tried] == [
        {"lr": lr, "lora.rank": rank} for lr in (1e-5, 3e-2) for rank in (1, 4)
    ]
    task = load_task(folder.root / "task" / "task")
    scores = [entry["score"] for entry in tried]
    assert report.facts["chosen"] == scores.index(max(scores))
    kept = load_scorer(folder.root / "arm" / "scorer").score([item.text for item in task.dev]).scores
    right = [task.labels[i] == item.label for i, item in zip(kept.argmax(axis=1), task.dev, strict=True)]
    assert np.mean(right) == pytest.approx(max(scores))
    config = json.loads((model_of(folder.root / "arm") / "adapter_config.json").read_text())
    assert config["r"] == tried[report.facts["chosen"]]["values"]["lora.rank"]
    assert len(list((folder.root / "arm").rglob("adapter_model.safetensors"))) == 1  # what lost was removed
    assert tried[1]["trainable_parameters"] == 4 * tried[0]["trainable_parameters"]


def test_all_trials_are_the_arms_cost_and_share_its_tokens(folder: Folder, report: StageReport) -> None:
    alone = folder.run("alone", method="lora", epochs=4)
    assert report.train_tokens == 4 * alone.train_tokens == sum(e["train_tokens"] for e in report.facts["tried"])
    assert report.flops > 2 * alone.flops  # of smaller ranks
    budget = alone.train_tokens
    shared = folder.run("shared", **SEARCH, max_train_tokens=budget)
    assert 0 < shared.train_tokens <= budget
    assert max(e["train_tokens"] for e in shared.facts["tried"]) <= budget // 4


def test_a_trial_is_the_arm_with_its_values(folder: Folder, report: StageReport) -> None:
    values = report.facts["tried"][report.facts["chosen"]]["values"]
    folder.run("same", method="lora", epochs=4, lr=values["lr"], lora={"rank": values["lora.rank"]})
    for name in ("model/adapter_model.safetensors", "metrics.jsonl"):
        assert (folder.root / "same" / name).read_bytes() == (folder.root / "arm" / name).read_bytes()


def test_a_killed_search_goes_on_where_it_was(folder: Folder, report: StageReport) -> None:
    stop = StopRequest()
    stop.signal = "SIGTERM"
    for _ in range(3):
        with pytest.raises(Interrupted):
            folder.run("stopped", **SEARCH, stop=stop)
    assert folder.run("stopped", **SEARCH).facts["tried"] == report.facts["tried"]
    for name in ("model/adapter_model.safetensors", "metrics.jsonl"):
        assert (folder.root / "stopped" / name).read_bytes() == (folder.root / "arm" / name).read_bytes()


def test_the_base_that_a_trial_merged_is_found_from_the_kept_model(folder: Folder, report: StageReport) -> None:
    import torch

    folder.run("above", on="arm", method="lora", epochs=1, search={"lora.rank": [2, 3]})
    model = load_causal(model_of(folder.root / "above"), dtype=torch.float32)
    assert model.peft_config["default"].base_model_name_or_path == str(folder.root / "above" / "base")


def test_a_heads_penalty_is_searched(folder: Folder) -> None:
    search = default_search(config(method="head"), "classification", 3)
    assert search == {"head.regularization": [0.001, 0.01, 0.1]}
    report = folder.run("head", method="head", lr=None, search=search)
    alone = folder.run("alone", method="head", lr=None)
    assert [tried["train_tokens"] for tried in report.facts["tried"]] == [alone.train_tokens, 0, 0]  # one pass for all
    assert (report.train_tokens, report.flops) == (alone.train_tokens, alone.flops)
    budget = alone.train_tokens // 2
    less = folder.run("less", method="head", lr=None, search=search, max_train_tokens=budget)
    half = folder.run("half", method="head", lr=None, max_train_tokens=budget)
    assert less.facts["train_rows"] == half.facts["train_rows"] > 0  # and all of the budget's rows for each
    pools = {"head.pooling": ["last", "mean"], "head.regularization": [0.01, 0.1]}
    both = folder.run("pools", method="head", lr=None, search=pools)
    paid = [tried["train_tokens"] for tried in both.facts["tried"]]
    assert paid == [alone.train_tokens, 0, alone.train_tokens, 0]


def config(**keys: Any) -> FinetuneConfig:
    return validate(FinetuneConfig, {"kind": "finetune", **keys}, source="t")


def test_a_default_sweep_is_around_the_methods_rate() -> None:
    assert sweep(3e-4, 3) == [1e-4, 3e-4, 9e-4]
    assert sweep(1.0, 2, 4.0) == [0.5, 2.0]
    assert default_search(config(method="lora", lr=1e-3), "classification", 3) == {"lr": [3.3e-4, 1e-3, 3e-3]}
    assert default_search(config(method="head"), "extraction", 2) == {"lr": [5.8e-4, 1.7e-3]}


def test_what_cannot_be_searched() -> None:
    for search, reason in (
        ({"lr": []}, "must list values"),
        ({"lr": [1e-3, 1e-3]}, "none twice"),
        ({"method": ["full", "lora"]}, "an arm of its own"),
        ({"lora.rang": [1, 2]}, "rang"),
        ({"lora.rank": [0, 2]}, "greater than or equal to 1"),
        ({"lr.peak": [1, 2]}, "`lr` has no keys"),
        ({"adapter.size": [4, 8]}, "go with `method: adapter`"),
    ):
        with pytest.raises(ValidationError, match=reason):
            FinetuneConfig.model_validate({"kind": "finetune", "method": "lora", "lr": 1e-3, "search": search})
    trial = combinations({"lora.rank": [2], "epochs": [1.0]})[0]
    made = config_of(config(method="lora", max_train_tokens=100, lora={"alpha": 8}), trial, 5)
    assert (made.lora.rank, made.lora.alpha, made.epochs, made.max_train_tokens, made.search) == (2, 8, 1.0, 20, None)


def recipe(**keys: Any) -> Recipe:
    value: dict[str, Any] = {
        "recipe": "r",
        "base": "base",
        "data": {"all": {"path": "rows.csv"}},
        "task": {"name": "t", "text": "texto", "label": "etiqueta"},
        "arms": {"a": {"kind": "finetune", "method": "lora"}, "b": {"kind": "finetune", "method": "full"}},
    }
    return validate(Recipe, value | keys, source="recipe")


def test_trained_arms_are_tried_equally_often(tmp_path: Path, llama_directory: Path) -> None:
    arms = {
        "a": {"kind": "finetune", "method": "lora", "search": {"lora.rank": [1, 4, 16]}},
        "b": {"kind": "finetune", "method": "full"},
        "c": {"kind": "finetune", "method": "head"},
        "d": {"kind": "baseline", "method": "majority"},
    }
    with pytest.raises(Exception, match=r"'a' is tried 3 times and 'b' 1.*`trials: 3`"):
        recipe(arms=arms)
    (tmp_path / "rows.csv").write_text("texto,etiqueta\nuno,a\n", encoding="utf-8")
    graph = build_graph(recipe(arms=arms, trials=3, base=str(llama_directory), seeds=[0]), tmp_path)
    assert graph.nodes["a-s0"].config["search"] == {"lora.rank": [1, 4, 16]}
    assert graph.nodes["b-s0"].config["search"] == {"lr": [1e-5, 3e-5, 9e-5]}
    assert graph.nodes["c-s0"].config["search"] == {"head.regularization": [0.001, 0.01, 0.1]}


def test_the_curve_by_hand() -> None:
    """Ten items; rank 4 gets 9 right with either rate, rank 1 gets 5 or 7: the better one stands for it."""
    gold = np.zeros(10, dtype=int)

    def trial(seed: int, rank: int, lr: float, right: int) -> Tried:
        answers = np.where(np.arange(10) < right, 0, 1)
        return Tried(seed, {"lora.rank": rank, "lr": lr}, label_features("accuracy", gold, answers, 2), 100 * rank)

    tried = [trial(s, 4, lr, 9) for s in (0, 1) for lr in (1e-3, 1e-4)]
    tried += [trial(0, 1, 1e-3, 5), trial(0, 1, 1e-4, 7), trial(1, 1, 1e-3, 3), trial(1, 1, 1e-4, 3)]
    found = search_evidence(tried, STATISTICS["accuracy"].score, None, margin=0.02, resamples=1000)
    rank, lr = found
    assert [(p.value, p.score, p.lowest, p.highest, p.runs, p.items) for p in rank.points] == [
        (1, pytest.approx(0.5), 0.3, 0.7, 2, 10), (4, pytest.approx(0.9), 0.9, 0.9, 2, 10),
    ]  # fmt: skip
    assert rank.enough == 4 and [p.trainable_parameters for p in rank.points] == [100, 400]
    assert (lr.key, [p.value for p in lr.points]) == ("lr", [1e-4, 1e-3])
    same = search_evidence(tried[:2], STATISTICS["accuracy"].score, None, margin=0.5, resamples=1000)
    assert same[1].enough == 1e-4  # the same answers: the least is enough


def test_answers_of_every_kind_are_scored(folder: Folder) -> None:
    task = load_task(folder.root / "task" / "task")
    answers = np.full((len(task.dev), len(task.labels)), -1.0)
    for row, item in enumerate(task.dev):
        answers[row, task.labels.index(item.label)] = 0.0
    answers[0] = answers[0][::-1] - np.eye(len(task.labels))[task.labels.index(task.dev[0].label)] * 5
    features, score = features_of(task, task.dev, answers)
    assert float(score(features.sum(axis=0).astype(float))) == pytest.approx((len(task.dev) - 1) / len(task.dev))


def test_what_happened_in_trials_that_lost_is_counted_too(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[dict[str, int]] = [
        {"refused updates": 2, "loss spikes": 3, "prompts cut": 5},
        {"refused updates": 0, "rewinds after a loss spike": 1, "prompts cut": 7},
    ]
    planted = iter(_Done(StageReport(counts=c), score) for c, score in zip(counts, (0.1, 0.9), strict=True))
    monkeypatch.setattr("quilate.phases.search._done", lambda *_: next(planted))
    context: Any = SimpleNamespace(folder=tmp_path, note=lambda _: None)
    task = load_task(folder.root / "task" / "task")
    report = best_of_trials(context, task, combinations({"lr": [1e-3, 1e-2]}), lambda _: StageReport())
    happened = {"refused updates": 2, "loss spikes": 3, "rewinds after a loss spike": 1}
    assert report.counts == happened | {"prompts cut": 7}
