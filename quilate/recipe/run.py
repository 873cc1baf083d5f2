"""Run a recipe: reuse what is finished, resume what is not, run the rest."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from quilate.engine.interrupts import StopRequest
from quilate.errors import GateError, Interrupted
from quilate.files import folder_lock, make_folder, write_json
from quilate.recipe.evidence_stage import run_plan
from quilate.recipe.executors.subprocess import ALONE, StageProcesses, Together
from quilate.recipe.graph import Graph, Node, build_graph
from quilate.recipe.kinds import stage_kind
from quilate.recipe.listener import RunListener
from quilate.recipe.manifest import left_off, read_manifest
from quilate.recipe.schema import Recipe
from quilate.recipe.spec import StageSpec

MAKE_MODELS = ("base", "pretrain")
USE_NO_MODEL = ("task", "base", "curate", "corpus", "baseline", "api", "alignment", "report")
RESULTS = {"curate": "data-card", "alignment": "alignment", "report": "evidence"}


def run_recipe(
    recipe: Recipe,
    *,
    base_folder: Path,
    out: Path,
    listener: RunListener,
    stop: StopRequest,
    until: str | Sequence[str] | None = None,
    allow_code: bool = False,
    together: Together = ALONE,
    ray: str | None = None,
) -> Graph:
    """Bring every stage of the recipe to its end.

    Args:
        base_folder: relative paths in the recipe start here.
        out: the run's folder; `evidence`, `alignment` and data cards, `.json` and `.html`, are copied to its top.
        until: run only this part, or these parts, see `Graph.part`.
        allow_code: run the Python files that rewards of kind `function` name.
        together: how many processes train a stage; its identity does not depend on it.
        ray: the address of a Ray cluster whose nodes are to run the stages, instead of this machine in turn.

    Raises:
        ConfigError: the recipe does not have what `until` names.
        GateError: there are such files, and `allow_code` was not given.
        Interrupted: a stop was requested; finished stages and checkpoints are kept.
        MachineError: another process works in `out`.
        QuilateError: what a stage raised.
    """
    graph = build_graph(recipe, base_folder)
    parts = [until] if isinstance(until, str) else until
    nodes = list(graph.nodes.values()) if parts is None else graph.part(*parts)
    if not allow_code:
        _refuse_code(nodes)
    with folder_lock(out):
        _write_plan(graph, recipe, base_folder, out)
        if ray is None:
            _run_in_turn(graph, nodes, base_folder, out, together, listener, stop)
        else:
            _run_on_ray(graph, nodes, base_folder, out, ray, listener, stop)
        _copy_results(nodes, out)
    return graph


def _run_in_turn(
    graph: Graph, nodes: list[Node], base_folder: Path, out: Path, together: Together, listener: RunListener,
    stop: StopRequest,
) -> None:  # fmt: skip
    with StageProcesses(together) as processes:
        for number, node in enumerate(nodes, start=1):
            if stop:
                raise Interrupted(
                    f"stopped by {stop.signal} before stage {node.name}", hint="run the same command again to continue"
                )
            if _reused(node, out, listener):
                continue
            folder = node.folder(out)
            listener.started(node, number, len(nodes), resumed=left_off(folder) is not None)
            started = time.monotonic()
            processes.run(
                spec_of(node, graph, out, base_folder),
                folder,
                uses_models=node.kind not in USE_NO_MODEL and any(n.kind in MAKE_MODELS for n in nodes),
                on_event=partial(listener.event, node),
                stop=stop,
            )
            listener.finished(node, time.monotonic() - started, reused=False)


def _run_on_ray(
    graph: Graph, nodes: list[Node], base_folder: Path, out: Path, address: str, listener: RunListener,
    stop: StopRequest,
) -> None:  # fmt: skip
    from quilate.recipe.executors.ray import Job, run_on_ray

    finished = {node.name for node in nodes if _reused(node, out, listener)}
    unfinished = [node for node in nodes if node.name not in finished]
    jobs = [Job(node, spec_of(node, graph, out, base_folder), node.folder(out)) for node in unfinished]
    run_on_ray(jobs, finished=finished, address=address, listener=listener, stop=stop)


def _reused(node: Node, out: Path, listener: RunListener) -> bool:
    """Whether the stage is finished already; the listener is told."""
    manifest = read_manifest(node.folder(out))
    if manifest is None or manifest["id"] != node.id:
        return False
    listener.finished(node, manifest["cost"]["seconds"], reused=True)
    return True


def refuse_failed_gates(graph: Graph, out: Path) -> None:
    """To be asked last, when everything there is to see of what failed has been written and shown.

    Raises:
        GateError: an examination found more than the recipe allows.
    """
    failed = []
    for node in graph.nodes.values():
        manifest = read_manifest(node.folder(out)) if node.kind == "privacy" else None
        gates = [] if manifest is None else manifest["facts"]["gates"]
        failed += [
            f"{node.name}: {gate['name']} may be as high as {gate['seen']:.3f}, the limit is {gate['limit']:g}"
            for gate in gates
            if not gate["passed"]
        ]
    if failed:
        raise GateError(
            "\n".join(failed),
            hint="train less on what it kept, deduplicate, or raise the limit; a limit holds for the upper end of the "
            "interval, which more documents narrow",
        )


def _copy_results(nodes: Iterable[Node], out: Path) -> None:
    """What finished stages have to show, at the top of the run's folder."""
    for node in nodes:
        if node.kind in RESULTS:
            name = RESULTS[node.kind]
            shown = f"{node.name}-card" if node.kind == "curate" else name
            for suffix in ("json", "html"):
                shutil.copyfile(node.folder(out) / f"{name}.{suffix}", out / f"{shown}.{suffix}")


def _refuse_code(nodes: Sequence[Node]) -> None:
    """A recipe is data, whoever wrote it; what it can make this machine do must not grow with a key in it."""
    for node in nodes:
        sources = [*(node.config.get("rewards") or {}).values(), *(node.config.get("judges") or {}).values()]
        for source in sources:  # what compares policies has its judges' names alone
            if isinstance(source, dict) and source["kind"] == "function":
                raise GateError(
                    f"stage '{node.name}' would run Python code, {source['path']}",
                    hint="read the file; if you trust it, give --allow-code",
                )


def spec_of(node: Node, graph: Graph, out: Path, base_folder: Path) -> StageSpec:
    """What a worker is told of a stage of a run in `out`."""
    sources = {role: graph.nodes[name] for role, name in node.inputs.items()}
    return StageSpec(
        name=node.name,
        kind=node.kind,
        version=stage_kind(node.kind).version,
        id=node.id,
        seed=node.seed,
        config=node.config,
        inputs={role: str(source.folder(out).resolve()) for role, source in sources.items()},
        input_ids={role: {"stage": source.name, "id": source.id} for role, source in sources.items()},
        base_folder=str(base_folder.resolve()),
    )


def _write_plan(graph: Graph, recipe: Recipe, base_folder: Path, out: Path) -> None:
    """`run.json`: the recipe as it is run, and where each stage's folder is, for the verbs that come later."""
    stages = {
        n.name: {"kind": n.kind, "id": n.id, "folder": str(n.folder(out).relative_to(out)), "arm": n.arm}
        for n in graph.nodes.values()
    }
    plan = {"recipe": recipe.as_json(), "base_folder": str(base_folder.resolve()), "stages": stages}
    write_json(out / "run.json", plan)


@dataclass(frozen=True)
class StageStatus:
    """`state` is "done", "interrupted" (and where it would go on, see `left_off`) or "not run"."""

    name: str
    kind: str
    state: str
    seconds: float | None
    folder: Path


def run_status(out: Path) -> list[StageStatus]:
    """Where each stage of a run stands."""
    statuses = []
    for name, stage in run_plan(out)["stages"].items():
        folder = out / stage["folder"]
        manifest = read_manifest(folder)
        if manifest is not None:
            state, seconds = "done", manifest["cost"]["seconds"]
        else:
            left, seconds = left_off(folder), None
            state = "not run" if left is None else f"interrupted {left}"
        statuses.append(StageStatus(name, stage["kind"], state, seconds, folder))
    return statuses


def unused_stages(out: Path) -> list[Path]:
    """Folders of stages that the present recipe no longer names."""
    used = {stage["folder"] for stage in run_plan(out)["stages"].values()}
    folders = sorted(make_folder(out / "stages").iterdir())
    return [f for f in folders if f.is_dir() and not f.name.startswith(".") and str(f.relative_to(out)) not in used]
