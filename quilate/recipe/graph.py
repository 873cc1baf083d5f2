"""From a recipe to its graph of stages. A stage's identity is the digest of everything its result depends on."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quilate.curation.sources import content_of_source
from quilate.errors import ConfigError
from quilate.files import digest
from quilate.models.source import content_of_model
from quilate.phases.adapt import AdaptConfig
from quilate.phases.align.assay import AssayConfig
from quilate.phases.align.cloning import CloningConfig
from quilate.phases.align.derive import DeriveConfig, content_of_questions
from quilate.phases.align.distill import DistillConfig
from quilate.phases.align.dpo import DpoConfig
from quilate.phases.align.grpo import GrpoConfig
from quilate.phases.align.ilql import IlqlConfig
from quilate.phases.align.ppo import PpoConfig
from quilate.phases.align.preferences import content_of_preferences
from quilate.phases.align.reward import RewardConfig
from quilate.phases.align.scoring import content_of_rewards
from quilate.phases.api import ApiConfig
from quilate.phases.baselines import BaselineConfig
from quilate.phases.conversations import content_of_conversations
from quilate.phases.corpus import content_of_corpus
from quilate.phases.curate import content_of_tagger
from quilate.phases.finetune import FinetuneConfig, TuningConfig, default_search
from quilate.phases.icl import IclConfig
from quilate.phases.inputs import content_of_sources
from quilate.phases.multitask import MultitaskConfig
from quilate.phases.pretrain import PretrainConfig
from quilate.phases.privacy import PrivacyConfig
from quilate.phases.sft import SftConfig
from quilate.recipe.alignment import compared, policies_of, start_of, twins, unnamed_starts, with_unaligned_arms
from quilate.recipe.kinds import stage_kind
from quilate.recipe.schema import (
    BASE,
    ArmConfig,
    FinetuneStageConfig,
    Recipe,
    StageConfig,
    is_aligned,
    models_given_to,
    needs,
    stands_on,
)


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

    def part(self, *names: str) -> list[Node]:
        """What is run to have nodes, or stages or arms with all their seeds and evaluations; sources first.

        Args:
            names: of a node (`lora-s1`, `lora-s1-evaluate`), or of the recipe (`lora`).

        Raises:
            ConfigError: there is no such thing.
        """
        wanted = {node.name for name in names for end in self._ends(name) for node in self.upstream(end)}
        return [node for node in self.nodes.values() if node.name in wanted]

    def _ends(self, name: str) -> list[str]:
        ends = [name] if name in self.nodes else [n for n in self.nodes if _of_recipe(n) == name]
        if not ends:
            known = {_of_recipe(n) for n in self.nodes} | self.nodes.keys()
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else "check its name"
            raise ConfigError(f"the recipe has no stage or arm '{name}'", hint=hint)
        return ends


def _of_recipe(node: str) -> str:
    """`lora` of `lora-s1` and of `lora-s1-evaluate`."""
    return re.sub(r"-s\d+(-evaluate)?$", "", node)


PHASE_OF_STAGE = {
    "pretrain": "pretraining",
    "adapt": "adaptation",
    "sft": "fine-tuning",
    "finetune": "fine-tuning",
    "multitask": "fine-tuning",
    "dpo": "alignment",
    "ppo": "alignment",
    "grpo": "alignment",
    "cloning": "alignment",
    "ilql": "alignment",
    "distill": "alignment",
}


def phase_and_method(recipe: Recipe, arm: ArmConfig) -> tuple[str, str]:
    """The last phase that shaped an arm, and the field's name for its method."""
    phase: str
    method: str
    match arm:
        case BaselineConfig():
            return "baseline", arm.method
        case ApiConfig():
            return "in-context", f"{arm.model}, {arm.method()}"
        case FinetuneConfig():
            phase, method = "fine-tuning", arm.method
        case IclConfig():
            phase, method = "in-context", arm.method()
    if arm.on == BASE:
        return phase, method
    below = (recipe.stages | recipe.arms)[arm.on]
    if phase == "in-context":  # prompting a model that was trained for this is not "no training"
        phase = PHASE_OF_STAGE[below.kind]
    return phase, f"{arm.on} then {method}"


def seeds_of(recipe: Recipe, node: ArmConfig | StageConfig) -> list[int]:
    """The seeds an arm or stage is run with: one if neither it nor what it stands on changes with the seed."""
    once = getattr(node, "once", None)
    if once is not None:  # a stage
        return recipe.seeds[:1] if once else recipe.seeds
    assert isinstance(node, BaselineConfig | IclConfig | ApiConfig | FinetuneConfig | PrivacyConfig)
    below = _below(recipe, node)
    changes = _draws(recipe, node) or (below is not None and len(seeds_of(recipe, below)) > 1)
    return recipe.seeds if changes else recipe.seeds[:1]


def is_deterministic(recipe: Recipe, arm: ArmConfig) -> bool:
    """Whether any seed at all would give the same."""
    return not _draws(recipe, arm) and _below(recipe, arm) is None


def _draws(recipe: Recipe, node: ArmConfig | PrivacyConfig) -> bool:
    """Whether an arm, or an examination, itself draws something: an order, initial weights, demonstrations."""
    match node:
        case PrivacyConfig():
            return False
        case BaselineConfig():
            return node.train_rows is not None
        case FinetuneConfig():  # a head on whole texts has one solution
            one_solution = node.method == "head" and (recipe.task is None or recipe.task.kind != "extraction")
            return node.train_rows is not None or not one_solution
        case IclConfig() | ApiConfig():
            return node.draws()


def _below(recipe: Recipe, node: ArmConfig | StageConfig) -> ArmConfig | StageConfig | None:
    """What a node stands on; None if that is the base, or nothing."""
    on = stands_on(node)
    return None if on is None or on == BASE else (recipe.stages | recipe.arms)[on]


def build_graph(recipe: Recipe, base_folder: Path) -> Graph:
    """Lay out the stages of a recipe; reads the sources' content for their digests.

    Raises:
        DataError: a source file or model is missing.
    """
    recipe, added = with_unaligned_arms(recipe)
    graph = Graph(recipe)
    if recipe.task is not None and recipe.data is not None:
        stage = {"task": recipe.task.as_json(), "sources": recipe.data.as_json(), "strict": recipe.strict}
        graph.add("task", "task", stage, {}, content=content_of_sources(recipe.data, base_folder))
    _add_further_tasks(graph, base_folder)
    compared = policies_of(recipe) if recipe.alignment is not None else []
    if BASE in compared or any(BASE in models_given_to(node) for node in (recipe.stages | recipe.arms).values()):
        assert recipe.base is not None  # the recipe was validated
        graph.add(BASE, "base", {"model": recipe.base}, {}, content=content_of_model(recipe.base, base_folder))
    _add_corpora(graph, base_folder)
    for name, conversations in recipe.conversations.items():
        stage = {"conversations": conversations.as_json()}
        stage["allow_leak"] = recipe.task is not None and recipe.task.allow_leak
        content = content_of_conversations(conversations, base_folder)
        graph.add(f"conversations-{name}", "conversations", stage, _tasks_of(graph), content=content)
    for name, preferences in recipe.preferences.items():
        stage = {"preferences": preferences.as_json()}
        stage["allow_leak"] = recipe.task is not None and recipe.task.allow_leak
        content = content_of_preferences(preferences, base_folder)
        graph.add(f"preferences-{name}", "preferences", stage, _tasks_of(graph), content=content)
    evaluated: dict[str, list[str]] = {}
    for name in _upstream_first(recipe.stages):
        for seed in seeds_of(recipe, recipe.stages[name]):
            _add_stage(graph, name, recipe.stages[name], seed, base_folder)
    align = any(isinstance(stage, RewardConfig) or is_aligned(stage) for stage in recipe.stages.values())
    if align or recipe.alignment is not None:
        _add_alignment(graph, base_folder, added)
    for name in _upstream_first(recipe.arms):
        arm = recipe.arms[name]
        for seed in seeds_of(recipe, arm):
            node = _add_arm(graph, name, arm, seed)
            inputs = {"task": "task", "arm": node}
            evaluated.setdefault(name, []).append(graph.add(f"{node}-evaluate", "evaluate", {}, inputs, arm=name))
    if evaluated:
        _add_report(graph, evaluated, _ask_every_task(graph))
    return graph


def _add_further_tasks(graph: Graph, base_folder: Path) -> None:
    recipe = graph.recipe
    for name, other in recipe.tasks.items():
        stage = {"task": other.task.as_json(), "sources": other.data.as_json(), "strict": recipe.strict}
        before = {f"task:{node}": node for node in graph.nodes}  # no two of them may share test items
        graph.add(f"task-{name}", "task", stage, before, content=content_of_sources(other.data, base_folder))


def _task_node(name: str) -> str:
    return "task" if name == "task" else f"task-{name}"


def _ask_every_task(graph: Graph) -> list[dict[str, Any]]:
    """Where there are several tasks, every model that was fine-tuned, and what it stands on, answers each of them.

    Returns:
        A row a model and task: `model` and `on` (the model it was trained from) by their names in the recipe, what it
        was `trained_on`, and its `evaluations`, one a seed.
    """
    recipe = graph.recipe
    nodes: dict[str, Any] = recipe.stages | recipe.arms
    tuned = {n: node for n, node in nodes.items() if isinstance(node, TuningConfig) and node.method != "head"}
    models = dict.fromkeys(name for n, node in tuned.items() for name in (str(stands_on(nodes[n])), n))
    rows = []
    for name in models if recipe.tasks else ():
        node = nodes.get(name)
        for task in ("task", *recipe.tasks):
            asked = {
                "answer": node.option_form() if isinstance(node, TuningConfig) else "text",
                "precision": getattr(node, "precision", "auto"),
                "max_item_tokens": getattr(node, "max_item_tokens", 512),
                "max_new_tokens": getattr(node, "max_new_tokens", 256),
            }
            evaluations = []
            for seed in seeds_of(recipe, node) if node is not None else [0]:
                model = _model_node(recipe, name, seed)
                solver = graph.add(f"{model}-on-{task}", "ask", asked, {"task": _task_node(task), "model": model})
                inputs = {"task": _task_node(task), "arm": solver}
                evaluations.append(graph.add(f"{solver}-evaluate", "evaluate", {}, inputs))
            rows.append(
                {
                    "model": name,
                    "on": None if node is None else stands_on(node),
                    "method": getattr(node, "method", None),
                    "task": task,
                    "trained_on": _trained_on(node),
                    "evaluations": evaluations,
                }
            )
    return rows


def _trained_on(node: StageConfig | ArmConfig | None) -> list[str]:
    """The tasks that a model's own step was trained on."""
    match node:
        case MultitaskConfig():
            return node.tasks
        case FinetuneStageConfig():
            return [node.task]
        case FinetuneConfig():
            return ["task"]
    return []


def _task_of(graph: Graph) -> dict[str, str]:
    return {"task": "task"} if "task" in graph.nodes else {}


def _tasks_of(graph: Graph) -> dict[str, str]:
    """Every task of the recipe: what is read must hold nothing that one of them tests with."""
    return _task_of(graph) | {f"task:{name}": _task_node(name) for name in graph.recipe.tasks}


def _add_corpora(graph: Graph, base_folder: Path) -> None:
    """Raw text, curated or as it is."""
    recipe = graph.recipe
    for name, curated in recipe.curated.items():
        read = {source: content_of_source(config, base_folder) for source, config in curated.sources.items()}
        if curated.personal_data is not None and curated.personal_data.tagger is not None:
            read["personal_data.tagger"] = content_of_tagger(curated.personal_data.tagger, base_folder)
        graph.add(f"curated-{name}", "curate", curated.as_json(), _tasks_of(graph), content=read)
    for name, corpus in recipe.corpora.items():
        stage = {"corpus": corpus.as_json(), "allow_leak": recipe.task is not None and recipe.task.allow_leak}
        inputs, content = _tasks_of(graph), None
        if corpus.curated is not None:
            inputs["curated"] = f"curated-{corpus.curated}"
        else:
            content = content_of_corpus(corpus, base_folder)
        graph.add(f"corpus-{name}", "corpus", stage, inputs, content=content)


def _upstream_first(named: Mapping[str, StageConfig | ArmConfig]) -> list[str]:
    """Names in the recipe's order, but each after those it needs."""
    ordered: list[str] = []

    def visit(name: str) -> None:
        for needed in needs(named[name]):
            if needed in named and needed not in ordered:
                visit(needed)
        if name not in ordered:
            ordered.append(name)

    for name in named:
        visit(name)
    return ordered


def _model_node(recipe: Recipe, name: str, seed: int) -> str:
    """The node whose model a node of this seed stands on: of the same seed, if it was made with it."""
    if name == BASE:
        return BASE
    seeds = seeds_of(recipe, (recipe.stages | recipe.arms)[name])
    return f"{name}-s{seed if seed in seeds else seeds[0]}"


def _set_node(recipe: Recipe, name: str, seed: int) -> str:
    """The node that holds a set of judgements: a file's, or what a `derive` stage made."""
    return _model_node(recipe, name, seed) if name in recipe.stages else f"preferences-{name}"


def _add_stage(graph: Graph, name: str, stage: StageConfig, seed: int, base_folder: Path) -> None:
    """A stage trains on some corpora, sets of conversations or of judgements, and is measured on all of these; the
    task's own texts may be among the corpora. An aligned model is measured on the corpora too."""
    recipe = graph.recipe
    content: Any = None
    corpora = {f"corpus:{name}": f"corpus-{name}" for name in recipe.corpora}
    judgements = {f"preferences:{name}": f"preferences-{name}" for name in recipe.preferences}
    if isinstance(stage, RewardConfig | DpoConfig):  # a derived set is measured by those that are trained on it
        judgements |= {f"preferences:{name}": _set_node(recipe, name, seed) for name in stage.preferences}
    match stage:
        case DistillConfig():
            inputs = {f"conversations:{name}": f"conversations-{name}" for name in stage.conversations}
        case DeriveConfig():
            inputs, content = _tasks_of(graph), content_of_questions(stage, base_folder)
        case SftConfig():
            inputs = {f"conversations:{name}": f"conversations-{name}" for name in recipe.conversations}
        case RewardConfig():
            inputs = judgements
        case DpoConfig():
            inputs = corpora | judgements
        case PpoConfig() | GrpoConfig() | CloningConfig() | IlqlConfig():
            inputs = _inputs_of_rewards(recipe, stage, seed)
            content = content_of_rewards(stage.rewards, base_folder)
        case PretrainConfig() | AdaptConfig():
            inputs = _task_of(graph) | corpora
        case PrivacyConfig():
            inputs = {
                "corpus": f"corpus-{stage.corpus}",
                "reference": _model_node(recipe, stage.reference, seed),
            }
        case FinetuneStageConfig() | MultitaskConfig():
            inputs = _tasks_trained_on(stage)
    on = stands_on(stage)
    if on is not None:
        inputs["model"] = _model_node(graph.recipe, on, seed)
    config = _config_of(stage)
    graph.add(f"{name}-s{seed}", stage.kind, config, inputs, seed=seed, content=content)


def _config_of(stage: StageConfig) -> dict[str, Any]:
    """A stage's config as its kind knows it: fine-tuning on the way is an arm's, and equal ones are one stage."""
    own = ("task", "once") if isinstance(stage, FinetuneStageConfig) else ()
    return {key: value for key, value in stage.as_json().items() if key not in own}


def _tasks_trained_on(stage: FinetuneStageConfig | MultitaskConfig) -> dict[str, str]:
    if isinstance(stage, MultitaskConfig):
        return {f"task:{name}": _task_node(name) for name in stage.tasks}
    return {"task": _task_node(stage.task)}


def _inputs_of_rewards(
    recipe: Recipe, stage: PpoConfig | GrpoConfig | CloningConfig | IlqlConfig, seed: int
) -> dict[str, str]:
    """Prompts or samples, reward models, and pretraining text to learn beside."""
    inputs = {f"preferences:{name}": _set_node(recipe, name, seed) for name in stage.preferences}
    if isinstance(stage, CloningConfig | IlqlConfig):
        return inputs
    inputs |= {f"conversations:{name}": f"conversations-{name}" for name in stage.conversations}
    inputs |= {f"reward:{judge}": _model_node(recipe, judge, seed) for judge in stage.reward_stages().values()}
    if isinstance(stage, PpoConfig) and stage.text is not None:
        inputs |= {f"corpus:{name}": f"corpus-{name}" for name in stage.text.corpora}
    return inputs


def _add_alignment(graph: Graph, base_folder: Path, added_arms: list[str]) -> None:
    """Measure every policy alike, where the recipe says how, and compare them."""
    recipe, asked = graph.recipe, graph.recipe.alignment
    policies = []
    for name in policies_of(recipe):
        seeds = [0] if name == BASE else seeds_of(recipe, recipe.stages[name])
        made = [_model_node(recipe, name, seed) for seed in seeds]
        assays = [_add_assay(graph, base_folder, name, seed) for seed in seeds] if asked is not None else []
        policies.append(compared(recipe, name, seeds=seeds, made=made, assays=assays))
    config = {
        "recipe": recipe.recipe,
        "language": "en" if recipe.task is None or recipe.task.language != "es" else "es",
        "policies": policies,
        "added": [*unnamed_starts(recipe), *added_arms],
        "judges": {} if asked is None else {name: asked.judging_stages().get(name) for name in asked.judges},
        "sets": [] if asked is None else [*asked.conversations, *asked.preferences],
        "resamples": recipe.resamples,
    }
    graph.add("alignment", "alignment", config, {name: name for name in graph.nodes})


def _add_assay(graph: Graph, base_folder: Path, name: str, seed: int) -> str:
    """A policy's assay: all corpora and sets of judgements, the prompts, the judges, and what it was aligned from."""
    recipe, asked = graph.recipe, graph.recipe.alignment
    assert asked is not None  # the caller has looked
    policy, start = _model_node(recipe, name, seed), start_of(recipe, name)
    derived = [stage for stage, config in recipe.stages.items() if isinstance(config, DeriveConfig)]
    inputs = {"model": policy}
    inputs |= {} if start == name else {"start": _model_node(recipe, start, seed)}
    inputs |= {f"corpus:{corpus}": f"corpus-{corpus}" for corpus in recipe.corpora}
    inputs |= {f"preferences:{one}": _set_node(recipe, one, seed) for one in (*recipe.preferences, *derived)}
    inputs |= {f"conversations:{one}": f"conversations-{one}" for one in asked.conversations}
    inputs |= {f"reward:{judge}": _model_node(recipe, judge, seed) for judge in asked.judging_stages().values()}
    config = {key: value for key, value in asked.as_json().items() if key in AssayConfig.model_fields}
    content = content_of_rewards(asked.judges, base_folder)
    return graph.add(f"{policy}-assay", "assay", config, inputs, seed=seed, content=content)


def _add_arm(graph: Graph, name: str, arm: ArmConfig, seed: int) -> str:
    config = arm.as_json()
    inputs = {"task": "task"}
    on = stands_on(arm)
    if on is not None:
        inputs["model"] = _model_node(graph.recipe, on, seed)
    if isinstance(arm, FinetuneConfig):
        limits = [n for n in (arm.max_train_tokens, graph.recipe.budget.train_tokens) if n is not None]
        config["max_train_tokens"] = min(limits) if limits else None
        if graph.recipe.trials is not None and arm.search is None and graph.recipe.task is not None:
            config["search"] = default_search(arm, graph.recipe.task.kind, graph.recipe.trials)
    return graph.add(f"{name}-s{seed}", arm.kind, config, inputs, seed=seed, arm=name)


def _add_report(graph: Graph, evaluated: dict[str, list[str]], asked: list[dict[str, Any]]) -> None:
    recipe = graph.recipe
    arms = []
    for name, evaluations in evaluated.items():
        phase, method = phase_and_method(recipe, recipe.arms[name])
        deterministic = is_deterministic(recipe, recipe.arms[name])
        arms.append(
            {"name": name, "phase": phase, "method": method, "deterministic": deterministic, "evaluations": evaluations}
        )
    config = {
        "recipe": recipe.recipe,
        "arms": arms,
        "unaligned": twins(recipe),
        "asked": asked,
        "made_once": [
            n for n, stage in recipe.stages.items() if getattr(stage, "once", False) and len(recipe.seeds) > 1
        ],
        "margin": recipe.margin,
        "resamples": recipe.resamples,
        "budget_seconds": recipe.budget.seconds,
        "budget_tokens": recipe.budget.train_tokens,
    }
    graph.add("report", "report", config, {name: name for name in graph.nodes})
