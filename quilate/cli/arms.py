"""Which arm of a finished run a verb is about."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quilate.errors import DataError, UsageError
from quilate.inference.api_model import ApiModel
from quilate.inference.scorer import load_scorer
from quilate.recipe.evidence_stage import read_evidence, run_plan
from quilate.recipe.manifest import read_manifest
from quilate.tasks.classification import ClassificationTask
from quilate.tasks.kinds import load_task
from quilate.tasks.task import Task


@dataclass(frozen=True)
class ChosenArm:
    """One trained run of an arm. `scorer` is what `load_scorer` gives for the task's kind; `why` says how the arm was
    chosen; `temperature` is the one fitted on dev, and so are the `thresholds` of labels of which a text may have
    several, as log-odds."""

    name: str
    seed: int
    scorer: Any
    temperature: float
    thresholds: dict[str, float]
    why: str


def task_of(run: Path) -> Task:
    """The prepared task of a run."""
    return load_task(run / run_plan(run)["stages"]["task"]["folder"] / "task")


def classification_of(run: Path, *, verb: str) -> ClassificationTask:
    """The prepared task of a run, for a verb that knows classification only.

    Raises:
        UsageError: the task is of another kind.
    """
    task = task_of(run)
    if not isinstance(task, ClassificationTask):
        raise UsageError(
            f"`quilate {verb}` does not know tasks of the kind {task.config.kind}",
            hint="give the new rows as the recipe's `test` file and run the recipe: only what changed runs again",
        )
    return task


def choose_arm(run: Path, name: str | None) -> ChosenArm:
    """The named arm; by default the only one, or the recommended one; if undecided, the one with the highest score.

    Raises:
        UsageError: there is no such arm.
        DataError: the arm has no finished run.
    """
    stages = run_plan(run)["stages"]
    arms = list(dict.fromkeys(s["arm"] for s in stages.values() if s["arm"]))
    why = "as asked"
    if name is None:
        name, why = (arms[0], "the only arm") if len(arms) == 1 else _recommended(run, arms)
    if name not in arms:
        raise UsageError(f"{run} has no arm '{name}'", hint=f"its arms: {', '.join(arms)}")
    for stage, entry in stages.items():
        if entry["arm"] != name or entry["kind"] != "evaluate":
            continue
        solved = run / stages[stage.removesuffix("-evaluate")]["folder"]
        evaluated, trained = read_manifest(run / entry["folder"]), read_manifest(solved)
        if evaluated is not None and trained is not None:
            scorer = load_scorer(solved / "scorer")
            _warn_of_sending(scorer)
            facts = evaluated["facts"]
            return ChosenArm(name, trained["seed"], scorer, facts["temperature"], facts.get("thresholds", {}), why)
    raise DataError(f"arm '{name}' of {run} has no finished run", hint="run its recipe to the end")


def _warn_of_sending(scorer: Any) -> None:
    model = getattr(scorer, "model", None)
    if isinstance(model, ApiModel) and model.remote_host is not None:
        print(f"warning: the texts leave this machine: they are sent to {model.remote_host}", file=sys.stderr)


def _recommended(run: Path, arms: Sequence[str]) -> tuple[str, str]:
    if not (run / "evidence.json").exists():
        raise DataError(
            f"{run} has no evidence yet, so there is no recommended arm",
            hint=f"name one with --arm: {', '.join(arms)}",
        )
    evidence = read_evidence(run)
    recommended = evidence["recommendation"]["arm"]
    if recommended is not None:
        return recommended, "recommended by the evidence"
    best = max(evidence["arms"], key=lambda arm: arm["score"])
    return best["name"], "the evidence is undecided; this arm has the highest score"
