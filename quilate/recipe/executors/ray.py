"""Run a recipe's stages on the nodes of a Ray cluster: every stage as on one machine, several at a time.

The run's folder must be on a file system that all nodes see. A stage is a Ray task that starts the same worker process;
one whose node is lost is started again on another, and goes on from its last checkpoint.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quilate.engine.interrupts import StopRequest
from quilate.engine.runlog import Progress
from quilate.errors import Interrupted, MachineError, QuilateError
from quilate.files import folder_lock, make_folder
from quilate.recipe.executors.subprocess import USES_NETWORK, event_of, stage_environment, stage_failure
from quilate.recipe.graph import Node
from quilate.recipe.listener import RunListener
from quilate.recipe.manifest import left_off
from quilate.recipe.spec import StageSpec

MOST_RETRIES = 3  # after as many lost nodes a stage is given up (as in Ray itself)
POLL_SECONDS = 0.5


@dataclass
class Job:
    """A stage to run.

    Attributes:
        read: how much of its events was passed on.
        begun: when it began on its node; until that is known, when it was sent there.
        losses: how many nodes it has lost.
    """

    node: Node
    spec: StageSpec
    folder: Path
    read: int = 0
    begun: float = 0.0
    losses: int = 0


def run_on_ray(
    jobs: Sequence[Job], *, finished: set[str], address: str, listener: RunListener, stop: StopRequest
) -> None:
    """Bring every stage to its end, each as soon as what it stands on is there and a node is free.

    A stage has a node to itself, with all its CPUs and GPUs, so that no stage disturbs another's times. Large nodes are
    taken first; where some have GPUs the others compute nothing.

    Args:
        finished: names of the stages that need not run.
        address: of the cluster, as `ray.init` takes it: "auto", or HOST:PORT.

    Raises:
        QuilateError: what a stage raised; those that run beside it are stopped, saved.
        MachineError: Ray is missing or cannot be reached; a stage lost its node again and again; a node does not see
            the run's folder.
        Interrupted: a stop was requested; the stages have saved.
    """
    cluster = _Cluster(_connected(address))
    waiting, done, total = list(jobs), set(finished), len(finished) + len(jobs)
    running: dict[Any, Job] = {}
    begun, told = len(finished), False
    try:
        while waiting or running:
            if stop:
                raise Interrupted(f"stopped by {stop.signal}", hint="run the same command again to continue")
            ready = [job for job in waiting if done.issuperset(job.node.inputs.values())]
            for job, machine in zip(ready, cluster.free(), strict=False):  # the rest waits, of either
                waiting.remove(job)
                if job.losses == 0:
                    begun, job.begun = begun + 1, time.monotonic()
                    listener.started(job.node, begun, total, resumed=left_off(job.folder) is not None)
                _prepare(job)
                running[cluster.start(job, machine)] = job
            if not running and not told:
                listener.event(ready[0].node, "the cluster has no node left: waiting for one")
            told = not running
            ended = cluster.wait(list(running))
            for job in running.values():
                _pass_on_events(job, listener)
            for reference in ended:
                job = running.pop(reference)
                if cluster.finished(reference, job):
                    done.add(job.node.name)
                    listener.finished(job.node, time.monotonic() - job.begun, reused=False)
                else:
                    waiting.insert(0, job)
                    listener.event(job.node, "lost with its node; it goes on from its last checkpoint")
    finally:
        cluster.cancel(list(running))


@dataclass(frozen=True)
class _Machine:
    """A node of the cluster, and what it has."""

    id: str
    gpus: float
    cpus: float


class _Cluster:
    """The nodes that compute, each for one stage at a time: Ray itself would put several on a large one."""

    def __init__(self, ray: Any) -> None:
        self.ray = ray
        self._task = ray.remote(max_retries=0)(run_stage)
        self._busy: dict[Any, _Machine] = {}
        self._lost: set[str] = set()  # Ray may list a node as alive for a while after it lost it
        self._with_gpu = False
        if not self.free():
            raise MachineError("the Ray cluster has no node with a CPU", hint="add nodes with `ray start --address`")

    def free(self) -> list[_Machine]:
        """The nodes on which no stage runs, the largest first."""
        have = {node["NodeID"]: node["Resources"] for node in self.ray.nodes() if node["Alive"]}
        machines = [_Machine(name, own.get("GPU", 0), own.get("CPU", 0)) for name, own in have.items()]
        machines = [machine for machine in machines if machine.cpus >= 1]
        self._with_gpu |= any(machine.gpus for machine in machines)
        busy = {machine.id for machine in self._busy.values()} | self._lost
        free = [m for m in machines if m.id not in busy and (m.gpus or not self._with_gpu)]
        return sorted(free, key=lambda machine: (machine.gpus, machine.cpus), reverse=True)

    def start(self, job: Job, machine: _Machine) -> Any:
        """Start a stage that is prepared on a free node; returns Ray's reference to its exit code."""
        there = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(machine.id, soft=False)
        task = self._task.options(num_cpus=machine.cpus, num_gpus=machine.gpus, scheduling_strategy=there)
        environment = stage_environment(offline=job.spec.kind not in USES_NETWORK)
        reference = task.remote(str(job.folder.resolve()), machine.id, _given(environment))
        self._busy[reference] = machine
        return reference

    def wait(self, references: list[Any]) -> list[Any]:
        """Those that have ended, after a moment at most."""
        if references:
            return list(self.ray.wait(references, timeout=POLL_SECONDS)[0])
        time.sleep(POLL_SECONDS)
        return []

    def finished(self, reference: Any, job: Job) -> bool:
        """Whether the stage is finished, which has ended; otherwise it lost its node and is to be started again.

        Raises:
            QuilateError: what it raised.
            MachineError: it could not be run there, or has lost too many nodes.
        """
        machine, errors = self._busy.pop(reference), self.ray.exceptions
        try:
            code = self.ray.get(reference)
        except errors.RayTaskError as error:  # the one RayError that is our own code's
            cause = error.cause
            if isinstance(cause, QuilateError):
                raise type(cause)(f"stage {job.node.name}: {cause.message}", hint=cause.hint) from error
            raise MachineError(
                f"stage {job.node.name} could not be run on node {machine.id}: {type(cause).__name__}: {cause}",
                hint="the same quilate must be installed on all nodes",
            ) from error
        except errors.RayError as error:
            job.losses += 1
            if isinstance(error, errors.NodeDiedError | errors.TaskUnschedulableError):
                self._lost.add(machine.id)
            if job.losses > MOST_RETRIES:
                log = job.folder / "log.txt"
                raise MachineError(
                    f"stage {job.node.name} was lost with its node {job.losses} times, last by {type(error).__name__}",
                    hint=f"run the same command again to continue from its last checkpoint; its log is {log}",
                ) from error
            return False
        if code != 0:
            raise stage_failure(code, job.node.name, job.folder)
        return True

    def cancel(self, references: list[Any]) -> None:
        """Let the stages save and leave."""
        for reference in references:
            self.ray.cancel(reference)
        if references:
            self.ray.wait(references, num_returns=len(references))


def run_stage(folder: str, node: str, environment: dict[str, str]) -> int:
    """In a Ray task on `node`: the stage's process, its events into a file of its folder; returns its exit code.

    Raises:
        MachineError: the folder is another one here, or a process works in it.
    """
    path = Path(folder)
    if not (path / "config.yaml").exists():
        raise MachineError(
            f"node {node} ({socket.gethostname()}) does not see {path / 'config.yaml'}",
            hint="--out must lie on a file system that all nodes see",
        )
    with (
        folder_lock(path),
        (path / "events.jsonl").open("a", encoding="utf-8") as events,
        (path / "log.txt").open("a", encoding="utf-8") as log,
    ):
        events.write(json.dumps({"note": f"on node {node}"}) + "\n")
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
        import ray.util.scheduling_strategies
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


def _prepare(job: Job) -> None:
    make_folder(job.folder)
    job.spec.write(job.folder)
    for name in ("error.json", "events.jsonl"):
        (job.folder / name).unlink(missing_ok=True)
    job.read = 0


def _given(environment: dict[str, str]) -> dict[str, str]:
    """What a stage is given beyond the environment of the node it runs on."""
    return {name: value for name, value in environment.items() if os.environ.get(name) != value} | {
        "PYTHONPATH": os.pathsep.join(sys.path)
    }


def _pass_on_events(job: Job, listener: RunListener) -> None:
    """What the stage has said since the last time; the first it says is that it has begun."""
    path = job.folder / "events.jsonl"
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(job.read)
        lines = file.read().split(b"\n")[:-1]  # what follows the last line end is not whole yet
    if lines and job.read == job.losses == 0:
        job.begun = time.monotonic()
    job.read += sum(len(line) + 1 for line in lines)
    for line in lines:
        event = event_of(line.decode(errors="replace"))
        if isinstance(event, Progress | str):
            listener.event(job.node, event)
