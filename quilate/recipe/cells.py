"""What a run has to show, finished or not: its cells (one an arm and seed) with their scores, and its models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quilate.evaluation.answers import ANSWER_SCORES
from quilate.phases.evaluate import (
    answers_are_sets,
    gold_indices,
    read_answer_scores,
    read_counts,
    read_probabilities,
)
from quilate.recipe.evidence_stage import kept, run_plan
from quilate.recipe.manifest import read_manifest
from quilate.tasks.kinds import load_task
from quilate.tasks.question_answering import QuestionTask
from quilate.tasks.task import Task


@dataclass(frozen=True)
class Cell:
    """`score` is None where the cell was not run; `seconds` are those of the arm's own stage and its evaluation, not of
    what it stands on, `seconds_to_make` those of its stage and `seconds_per_1000` of 1,000 predictions; `flops` are
    those of its training, without what it stands on; `tried` are the scores on development items of what the arm chose
    from; `load_average` is the load of the machine meanwhile."""

    arm: str
    seed: int
    metric: str
    score: float | None = None
    items: int = 0
    seconds: float | None = None
    seconds_to_make: float | None = None
    seconds_per_1000: float | None = None
    flops: float | None = None
    tried: list[float] | None = None
    load_average: float | None = None
    stages: dict[str, str] | None = None


def cells_of(run: Path) -> list[Cell]:
    """Every cell that a run's recipe names, in its order.

    Raises:
        DataError: `run` is not a run directory.
    """
    plan = run_plan(run)
    stages: dict[str, dict[str, Any]] = plan["stages"]
    metric = plan["recipe"]["task"]["metric"]
    evaluations = {name: stage for name, stage in stages.items() if stage["kind"] == "evaluate" and stage["arm"]}
    return [_cell(run, name, stages, metric) for name in evaluations]


def _cell(run: Path, name: str, stages: dict[str, dict[str, Any]], metric: str) -> Cell:
    solver = name.removesuffix("-evaluate")
    arm, _, seed = solver.rpartition("-s")
    evaluated, solved = (read_manifest(run / stages[stage]["folder"]) for stage in (name, solver))
    if evaluated is None or solved is None:
        return Cell(arm, int(seed), metric)
    task = load_task(run / stages["task"]["folder"] / "task")
    return Cell(
        arm,
        int(seed),
        metric,
        score=round(score_of(task, run / stages[name]["folder"]), 6),
        items=len(task.test),
        seconds=round(solved["cost"]["seconds"] + evaluated["cost"]["seconds"], 1),
        seconds_to_make=round(solved["cost"]["seconds"], 2),
        seconds_per_1000=round(evaluated["facts"]["seconds_per_1000"], 2),
        flops=solved["cost"]["flops"],
        tried=[round(trial["score"], 4) for trial in solved["facts"].get("trials", [])] or None,
        load_average=max(float(m["measured"]["load_average"]) for m in (evaluated, solved)),
        stages={stage: stages[stage]["id"][:16] for stage in (solver, name)},
    )


def score_of(task: Task, folder: Path) -> float:
    """The score of a finished evaluate stage by the task's metric."""
    from quilate.evaluation import metrics
    from quilate.evaluation.statistics import COUNT_SCORES

    metric = task.config.metric
    if isinstance(task, QuestionTask):
        return float(read_answer_scores(folder)[:, ANSWER_SCORES[task.config.metric]].mean())
    if answers_are_sets(task):
        return COUNT_SCORES[metric].of(read_counts(folder))
    score: float = getattr(metrics, metric)(gold_indices(task.test, task.labels), read_probabilities(folder))
    return score


MODEL_KINDS = ("pretrain", "adapt", "sft", "reward", "dpo", "ppo", "grpo", "cloning", "ilql", "distill")


@dataclass(frozen=True)
class MadeModel:
    """A finished stage that trained a model. `before` and `after` are what it measured by corpus or set, in `measure`;
    `folder` is a plain model or adapter directory."""

    stage: str
    kind: str
    train_tokens: int
    seconds: float
    flops: float
    parameters: int
    measure: str
    before: dict[str, float]
    after: dict[str, float]
    folder: str


def models_of(run: Path) -> list[MadeModel]:
    """The models that finished stages made, in the recipe's order."""
    made = []
    for name, stage in run_plan(run)["stages"].items():
        folder = run / stage["folder"]
        manifest = read_manifest(folder) if stage["kind"] in MODEL_KINDS else None
        if manifest is not None:
            cost, facts = manifest["cost"], manifest["facts"]
            made.append(
                MadeModel(
                    name, stage["kind"], cost["train_tokens"], cost["seconds"], cost["flops"], facts["parameters"],
                    facts["measure"], facts["before"] or {}, facts["after"], str(folder / "model"),
                )
            )  # fmt: skip
    return made


def examinations_of(run: Path) -> list[dict[str, Any]]:
    """What finished `privacy` stages found, in the recipe's order, with the keys of `PrivacyEvidence`."""
    stages = [run / stage["folder"] for stage in run_plan(run)["stages"].values() if stage["kind"] == "privacy"]
    return [kept(manifest) for folder in stages if (manifest := read_manifest(folder)) is not None]
