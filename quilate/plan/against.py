"""A plan held against what a run then took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quilate.config import validate
from quilate.plan.estimate import Estimate
from quilate.recipe.evidence_stage import run_plan
from quilate.recipe.graph import Graph, build_graph
from quilate.recipe.manifest import read_manifest
from quilate.recipe.schema import Recipe


@dataclass(frozen=True)
class PastRun:
    """The recipe of an earlier run, its graph, and where its stages are."""

    graph: Graph
    base_folder: Path
    folders: dict[str, Path]

    @classmethod
    def of(cls, run: Path) -> PastRun:
        """Read `run.json`.

        Raises:
            DataError: `run` is not a run directory, or its data are gone.
            ConfigError: this version does not know its recipe any more.
        """
        plan = run_plan(run)
        recipe = validate(Recipe, plan["recipe"], source=str(run / "run.json"))
        base_folder = Path(plan["base_folder"])
        folders = {name: run / stage["folder"] for name, stage in plan["stages"].items()}
        return cls(build_graph(recipe, base_folder), base_folder, folders)


@dataclass(frozen=True)
class Comparison:
    """A stage's estimate beside its manifest. `busy` is the load average while it ran: above the machine's cores, its
    time was disturbed by others."""

    planned: Estimate
    seconds: float
    cpu_seconds: float
    memory_bytes: int
    train_tokens: int
    read_tokens: int | None
    busy: float


def compare(estimates: Sequence[Estimate], folders: dict[str, Path]) -> list[Comparison]:
    """Every stage that was estimated and is finished."""
    found = []
    for estimate in estimates:
        manifest = read_manifest(folders[estimate.name]) if estimate.name in folders else None
        if manifest is not None and estimate.estimated:
            found.append(_comparison(estimate, manifest))
    return found


def _comparison(estimate: Estimate, manifest: dict[str, Any]) -> Comparison:
    cost, measured = manifest["cost"], manifest["measured"]
    return Comparison(
        estimate,
        seconds=cost["seconds"],
        cpu_seconds=measured["cpu_seconds"],
        memory_bytes=cost["peak_memory_bytes"],
        train_tokens=cost["train_tokens"],
        read_tokens=manifest["facts"].get("tokens"),
        busy=measured["load_average"],
    )
