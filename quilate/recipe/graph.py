"""From a recipe to its graph of stages. A stage's identity is the digest of everything its result depends on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quilate.errors import ConfigError
from quilate.files import digest
from quilate.models.source import content_of_model
from quilate.phases.baselines import BaselineConfig
from quilate.phases.finetune import FinetuneConfig
from quilate.phases.icl import IclConfig
from quilate.phases.inputs import content_of_sources
from quilate.recipe.kinds import stage_kind
from quilate.recipe.schema import BASE, ArmConfig, Recipe


@dataclass(frozen=True)
class Node:
    """One stage of a run.

    Attributes:
        name: unique and readable: "task", "base", "lora-s0", "lora-s0-evaluate", "report".
        kind: see `KINDS`.
        config: the stage's config as JSON.
        seed: 0 where it has no meaning.
        inputs: role -> node name.
        id: digest of kind, version, config, seed, content and the inputs' ids.
        arm: the arm it belongs to, or None.
    """

    name: str
    kind: str
    config: dict[str, Any]
    seed: int
    inputs: dict[str, str]
    id: str
    arm: str | None = None

    def folder(self, out: Path) -> Path:
        return out / "stages" / f"{self.name}-{self.id[:10]}"


@dataclass
class Graph:
    """The nodes in an order in which they can run."""

    recipe: Recipe
    nodes: dict[str, Node] = field(default_factory=dict)

    def add(
        self,
        name: str,
        kind: str,
        config: dict[str, Any],
        inputs: dict[str, str],
        *,
        seed: int = 0,
        content: Any = None,
        arm: str | None = None,
    ) -> str:
        if name in self.nodes:
            raise ConfigError(f"two stages would be called '{name}'", hint="rename one of the arms")
        upstream = {role: self.nodes[node].id for role, node in inputs.items()}
        identity = digest([kind, stage_kind(kind).version, config, seed, content, upstream])
        self.nodes[name] = Node(name, kind, config, seed, inputs, identity, arm)
        return name

    def upstream(self, name: str) -> list[Node]:
        """The node and all it stands on, sources first."""
        wanted: set[str] = set()
        pending = [name]
        while pending:
            node = pending.pop()
            if node not in wanted:
                wanted.add(node)
                pending += self.nodes[node].inputs.values()
        return [node for node in self.nodes.values() if node.name in wanted]


def phase_and_method(arm: ArmConfig) -> tuple[str, str]:
    """The field's names for an arm."""
    match arm:
        case BaselineConfig():
            return "baseline", arm.method
        case IclConfig(shots=0):
            return "in-context", "zero-shot"
        case IclConfig(per_class=True):
            return "in-context", f"{arm.shots} per class"
        case IclConfig():
            return "in-context", f"{arm.shots}-shot"
        case FinetuneConfig():
            return "fine-tuning", arm.method


def seeds_of(recipe: Recipe, arm: ArmConfig) -> list[int]:
    """The seeds an arm is run with: one if nothing in it is random."""
    random = isinstance(arm, FinetuneConfig) or (isinstance(arm, IclConfig) and (arm.shots > 0 or arm.on != BASE))
    return recipe.seeds if random else recipe.seeds[:1]


def build_graph(recipe: Recipe, base_folder: Path) -> Graph:
    """Lay out the stages of a recipe; reads the sources' content for their digests.

    Raises:
        DataError: a source file or model is missing.
    """
    graph = Graph(recipe)
    stage = {"task": recipe.task.as_json(), "sources": recipe.data.as_json(), "strict": recipe.strict}
    graph.add("task", "task", stage, {}, content=content_of_sources(recipe.data, base_folder))
    if recipe.base is not None and any(not isinstance(arm, BaselineConfig) for arm in recipe.arms.values()):
        graph.add(BASE, "base", {"model": recipe.base}, {}, content=content_of_model(recipe.base, base_folder))
    evaluated: dict[str, list[str]] = {}
    for name in _upstream_first(recipe):
        arm = recipe.arms[name]
        for seed in seeds_of(recipe, arm):
            node = _add_arm(graph, name, arm, seed)
            inputs = {"task": "task", "arm": node}
            evaluated.setdefault(name, []).append(graph.add(f"{node}-evaluate", "evaluate", {}, inputs, arm=name))
    _add_report(graph, evaluated)
    return graph


def _upstream_first(recipe: Recipe) -> list[str]:
    """Arm names in the recipe's order, but each after the arm it stands on."""
    ordered: list[str] = []

    def visit(name: str) -> None:
        arm = recipe.arms[name]
        if not isinstance(arm, BaselineConfig) and arm.on != BASE and arm.on not in ordered:
            visit(arm.on)
        if name not in ordered:
            ordered.append(name)

    for name in recipe.arms:
        visit(name)
    return ordered


def _add_arm(graph: Graph, name: str, arm: ArmConfig, seed: int) -> str:
    config = arm.as_json()
    inputs = {"task": "task"}
    if not isinstance(arm, BaselineConfig):
        inputs["model"] = BASE if arm.on == BASE else f"{arm.on}-s{seed}"
    if isinstance(arm, FinetuneConfig):
        limits = [n for n in (arm.max_train_tokens, graph.recipe.budget.train_tokens) if n is not None]
        config["max_train_tokens"] = min(limits) if limits else None
    return graph.add(f"{name}-s{seed}", arm.kind, config, inputs, seed=seed, arm=name)


def _add_report(graph: Graph, evaluated: dict[str, list[str]]) -> None:
    recipe = graph.recipe
    arms = []
    for name, evaluations in evaluated.items():
        phase, method = phase_and_method(recipe.arms[name])
        arms.append({"name": name, "phase": phase, "method": method, "evaluations": evaluations})
    config = {
        "recipe": recipe.recipe,
        "arms": arms,
        "margin": recipe.margin,
        "resamples": recipe.resamples,
        "budget_seconds": recipe.budget.seconds,
        "budget_tokens": recipe.budget.train_tokens,
    }
    graph.add("report", "report", config, {name: name for name in graph.nodes})
