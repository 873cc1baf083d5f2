"""The plan of a recipe: an estimate for every stage, from what it will compute and what that takes."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from quilate.engine.interrupts import StopRequest
from quilate.errors import DataError
from quilate.plan.formulas import MFU, gpu_hours, reading_flops, reading_memory, training_flops, training_memory
from quilate.plan.hardware import Gpu
from quilate.plan.probe import measured
from quilate.plan.took import longest
from quilate.plan.workloads import NotEstimatedError, Workload, Workloads
from quilate.recipe.executors.subprocess import stage_environment
from quilate.recipe.graph import Graph, Node
from quilate.recipe.listener import RunListener
from quilate.recipe.run import run_recipe
from quilate.recipe.schema import Recipe

# They read files, and say what all others will compute: a plan brings them to their end, and a run reuses them.
READING = ("task", "base", "corpus", "conversations", "preferences")
SEED = re.compile(r"-s\d+(?=(-on-.+|-assay)?(-evaluate)?$)")  # in a node's name


@dataclass(frozen=True)
class Estimate:
    """Of one stage. `seconds`, `cpu_seconds` and `memory_bytes` are this machine's, or None where it was not probed;
    `gpu_seconds` and `gpu_memory_bytes` are those of a GPU, from tables. `load` is the busiest that the machine was
    while probed; `notes` say why a stage is not `estimated`."""

    name: str
    kind: str
    estimated: bool
    train_tokens: int = 0
    read_tokens: int = 0
    flops: float = 0.0
    parameters: int = 0
    trainable: int = 0
    seconds: float | None = None
    cpu_seconds: float | None = None
    memory_bytes: float | None = None
    gpu_seconds: float | None = None
    gpu_memory_bytes: float | None = None
    load: float = 0.0
    notes: tuple[str, ...] = ()


def read_inputs(recipe: Recipe, graph: Graph, base_folder: Path, out: Path, listener: RunListener) -> None:
    """Finish the stages that only read files, as `quilate run` would.

    Raises:
        QuilateError: as `run_recipe`.
    """
    reading = [node.name for node in graph.nodes.values() if node.kind in READING]
    run_recipe(recipe, base_folder=base_folder, out=out, listener=listener, stop=StopRequest(), until=reading)


def plan_recipe(
    graph: Graph,
    folder_of: Callable[[str], Path],
    base_folder: Path,
    *,
    probe: bool,
    gpu: Gpu | None = None,
    gpus: int = 1,
    mfu: float = MFU,
    note: Callable[[str], None] = lambda _: None,
) -> list[Estimate]:
    """Estimate every stage that computes, in the graph's order.

    Args:
        folder_of: the folders of the stages that only read, which are finished.
        probe: whether to measure on this machine; without, times are those of `gpus` times `gpu` alone.
        note: receives a line for each measurement that is not in the cache.

    Raises:
        DataError: a stage that only reads is not finished.
        QuilateError: a probe failed.
    """
    first = graph.recipe.seeds[0]
    by_name: dict[str, Estimate] = {}
    with tempfile.TemporaryDirectory() as scratch:
        workloads = Workloads(graph, folder_of, base_folder, Path(scratch))
        for node in graph.nodes.values():
            if node.kind in READING and not (folder_of(node.name) / "manifest.json").exists():
                raise DataError(f"stage {node.name} is not finished, and the plan needs it", hint="run the recipe")
            twin = SEED.sub(f"-s{first}", node.name)
            if twin in by_name:  # another seed computes as much
                by_name[node.name] = replace(by_name[twin], name=node.name)
                continue
            try:
                workload = workloads.of(node)
            except NotEstimatedError as reason:
                if node.kind not in READING:
                    by_name[node.name] = Estimate(node.name, node.kind, estimated=False, notes=(str(reason),))
                continue
            by_name[node.name] = _estimate(node, workload, gpu, gpus, mfu)
            if probe:
                by_name[node.name] = _with_rates(by_name[node.name], workload, note)
    return list(by_name.values())


def _estimate(node: Node, workload: Workload, gpu: Gpu | None, gpus: int, mfu: float) -> Estimate:
    dimensions, trainable = workload.model.dimensions(workload.tuning or workload.model.adapter)
    trained = workload.train_tokens > 0
    flops = training_flops(dimensions.parameters, workload.train_tokens, trainable)
    flops += reading_flops(dimensions.parameters, workload.read_tokens)
    estimate = Estimate(
        node.name, node.kind, estimated=True, train_tokens=workload.train_tokens, read_tokens=workload.read_tokens,
        flops=flops, parameters=dimensions.parameters, trainable=trainable * trained, notes=tuple(workload.notes),
    )  # fmt: skip
    if gpu is None:
        return estimate
    memory = reading_memory(dimensions)
    if trained:
        memory = training_memory(
            dimensions, trainable, workload.micro_batch_tokens, several_micro_batches=workload.several_micro_batches,
            gradient_checkpointing=workload.recomputes, shards=gpus,
        )  # fmt: skip
    hours = gpu_hours(flops, gpu.peak_flops, mfu)
    return replace(estimate, gpu_seconds=3600 * hours / gpus, gpu_memory_bytes=memory)


def _with_rates(estimate: Estimate, workload: Workload, note: Callable[[str], None]) -> Estimate:
    environment = stage_environment(offline=True)
    rates = [measured(part.probe, environment, note=note) for part in workload.parts]
    took = workload.other + longest(rate.loading for rate in rates)
    took += longest(rate.saving for rate in rates) * workload.saves
    for part, rate in zip(workload.parts, rates, strict=True):
        took += rate.token * part.tokens + rate.warming
    return replace(
        estimate, seconds=took.seconds, cpu_seconds=took.cpu_seconds, load=max(rate.load for rate in rates),
        memory_bytes=max(rate.peak_bytes for rate in rates),
    )  # fmt: skip
