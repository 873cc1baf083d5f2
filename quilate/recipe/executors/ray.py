"""Run a recipe's stages on the nodes of a Ray cluster: every stage as on one machine, several at a time.

The run's folder must be on a file system that all nodes see. A stage is a Ray task that starts the same worker process;
a task whose node is lost is started again by Ray on another node, and the stage goes on from its last checkpoint.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quilate.engine.interrupts import StopRequest
from quilate.errors import Interrupted, MachineError
from quilate.files import folder_lock, make_folder
from quilate.recipe.executors.subprocess import USES_NETWORK, stage_environment, stage_failure
from quilate.recipe.graph import Node
from quilate.recipe.listener import RunListener
from quilate.recipe.manifest import left_off
from quilate.recipe.spec import StageSpec

MOST_RETRIES = 3  # after as many lost nodes a stage is given up (Ray's own default)
POLL_SECONDS = 0.5
SECONDS_BETWEEN_LINES = 10.0  # of progress, for each stage


@dataclass
class Job:
    """A stage to run. `read` is how much of its events was passed on."""

    node: Node
    spec: StageSpec
    folder: Path
    read: int = 0
    started: float = field(default_factory=time.monotonic)
    next_line: float = 0.0


def run_on_ray(
    jobs: Sequence[Job], *, finished: set[str], address: str, listener: RunListener, stop: StopRequest
) -> None:
    """Bring every stage to its end, each as soon as what it stands on is there and a node is free.

    A stage takes a node's CPUs (and one GPU, where there are any), so that no stage disturbs another's times.

    Args:
        finished: names of the stages that need not run.
        address: of the cluster, as `ray.init` takes it: "auto", or HOST:PORT.

    Raises:
        QuilateError: what a stage raised; those that run beside it are stopped, saved.
        MachineError: Ray is missing or cannot be reached; a stage lost its node again and again.
        Interrupted: a stop was requested; the stages have saved.
    """
    ray = _connected(address)
    task = ray.remote(max_retries=MOST_RETRIES, **_whole_node(ray))(run_stage)
    waiting, done = list(jobs), set(finished)
    running: dict[Any, Job] = {}
    begun = len(finished)
    try:
        while waiting or running:
            if stop:
                raise Interrupted(f"stopped by {stop.signal}", hint="run the same command again to continue")
            for job in [job for job in waiting if done.issuperset(job.node.inputs.values())]:
                waiting.remove(job)
                begun += 1
                listener.started(job.node, begun, len(finished) + len(jobs), resumed=left_off(job.folder) is not None)
                _prepare(job)
                environment = stage_environment(offline=job.spec.kind not in USES_NETWORK)
                running[task.remote(str(job.folder.resolve()), _given(environment))] = job
            ended, _ = ray.wait(list(running), timeout=POLL_SECONDS)
            for job in running.values():
                _pass_on_events(job, listener)
            for reference in ended:
                job = running.pop(reference)
                _check(ray, reference, job)
                done.add(job.node.name)
                listener.finished(job.node, time.monotonic() - job.started, reused=False)
    finally:
        for reference in running:
            ray.cancel(reference)  # its stage saves and leaves
        if running:
            ray.wait(list(running), num_returns=len(running))


def run_stage(folder: str, environment: dict[str, str]) -> int:
    """In a Ray task: the stage's process, its events into a file of its folder; returns its exit code."""
    import ray

    path = Path(folder)
    with (
        folder_lock(path),
        (path / "events.jsonl").open("a", encoding="utf-8") as events,
        (path / "log.txt").open("a", encoding="utf-8") as log,
    ):
        events.write(json.dumps({"note": f"on node {ray.get_runtime_context().get_node_id()}"}) + "\n")
        events.flush()
        process = subprocess.Popen(
            [sys.executable, "-m", "quilate.recipe.worker", folder],
            stdin=subprocess.DEVNULL, stdout=events, stderr=log, env=os.environ | environment,
        )  # fmt: skip
        try:
            return process.wait()
        except KeyboardInterrupt:  # what `ray.cancel` becomes
            process.send_signal(signal.SIGTERM)
            return process.wait()


def _connected(address: str) -> Any:
    try:
        import ray
    except ImportError as error:
        raise MachineError("ray is not installed", hint="pip install 'quilate[ray]'") from error
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False, logging_level="error")
        except (ConnectionError, ValueError) as error:
            raise MachineError(
                f"no Ray cluster answers at {address}: {error}", hint="start one with `ray start --head`"
            ) from error
    return ray


def _whole_node(ray: Any) -> dict[str, float]:
    """What the smallest node that computes has."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    if not nodes:
        raise MachineError("the Ray cluster has no node with a CPU", hint="add nodes with `ray start --address`")
    return {"num_cpus": min(n["CPU"] for n in nodes), "num_gpus": min(1, min(n.get("GPU", 0) for n in nodes))}


def _prepare(job: Job) -> None:
    make_folder(job.folder)
    job.spec.write(job.folder)
    for name in ("error.json", "events.jsonl"):
        (job.folder / name).unlink(missing_ok=True)
    job.started = time.monotonic()


def _given(environment: dict[str, str]) -> dict[str, str]:
    """What a stage is given beyond the environment of the node it runs on."""
    return {name: value for name, value in environment.items() if os.environ.get(name) != value} | {
        "PYTHONPATH": os.pathsep.join(sys.path)
    }


def _pass_on_events(job: Job, listener: RunListener) -> None:
    """What the stage has said since the last time; its progress now and then."""
    path = job.folder / "events.jsonl"
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(job.read)
        lines = file.read().split(b"\n")
    job.read += sum(len(line) + 1 for line in lines[:-1])  # what follows the last line end is not whole yet
    for line in lines[:-1]:
        try:
            event = json.loads(line)
        except ValueError:
            event = {"note": line.decode(errors="replace")}
        progress = event.get("progress")
        if progress is None:
            listener.event(job.node, str(event.get("note", event)))
        elif time.monotonic() >= job.next_line:
            listener.event(job.node, f"{progress['done']}/{progress['total']} {progress['unit']}")
            job.next_line = time.monotonic() + SECONDS_BETWEEN_LINES


def _check(ray: Any, reference: Any, job: Job) -> None:
    try:
        code = ray.get(reference)
    except ray.exceptions.RayError as error:
        raise MachineError(
            f"stage {job.node.name} was lost with its node: {type(error).__name__}",
            hint=f"run the same command again to continue from its last checkpoint; see {job.folder / 'log.txt'}",
        ) from error
    if code != 0:
        raise stage_failure(code, job.node.name, job.folder)
