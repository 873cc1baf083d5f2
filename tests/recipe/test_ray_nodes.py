"""Where the Ray executor puts stages and what it says of them; the cluster is only pretended, no ray is needed."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quilate.cli.display import RunDisplay
from quilate.engine.interrupts import StopRequest
from quilate.engine.runlog import Progress
from quilate.errors import DataError, MachineError
from quilate.files import make_folder, write_json
from quilate.recipe.executors import ray as executor
from quilate.recipe.executors.ray import Job, run_on_ray, run_stage
from quilate.recipe.graph import Node
from quilate.recipe.spec import StageSpec


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: Exception) -> None:
        self.cause = cause


class NodeDiedError(RayError):
    pass


class TaskUnschedulableError(RayError):
    pass


@dataclass
class Pretended:
    """A cluster in which every stage takes one look of the executor, and all on it end together."""

    nodes_: dict[str, dict[str, float]]
    outcome: Callable[[str, str], int] = lambda stage, node: 0
    running: dict[str, tuple[str, str]] = field(default_factory=dict)
    rounds: list[dict[str, str]] = field(default_factory=list)
    asked: dict[str, tuple[float, float]] = field(default_factory=dict)
    exceptions = SimpleNamespace(
        RayError=RayError, RayTaskError=RayTaskError, NodeDiedError=NodeDiedError,
        TaskUnschedulableError=TaskUnschedulableError,
    )  # fmt: skip
    util = SimpleNamespace(
        scheduling_strategies=SimpleNamespace(NodeAffinitySchedulingStrategy=lambda node, soft: (node, soft))
    )

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": name, "Alive": True, "Resources": has} for name, has in self.nodes_.items()]

    def remote(self, **_: int) -> Callable[[Any], Any]:
        return lambda function: SimpleNamespace(options=self.options)

    def options(self, num_cpus: float, num_gpus: float, scheduling_strategy: tuple[str, bool]) -> Any:
        where, soft = scheduling_strategy
        assert not soft
        self.asked[where] = (num_cpus, num_gpus)

        def start(folder: str, node: str, environment: dict[str, str]) -> str:
            assert node == where and "PYTHONPATH" in environment
            name = Path(folder).name.rpartition("-")[0]
            note = {"note": f"on node {node}"}
            progress = {"progress": {"done": 1, "total": 2, "unit": "steps"}}
            (Path(folder) / "events.jsonl").write_text(json.dumps(note) + "\n" + json.dumps(progress) + "\n")
            self.running[f"{name}/{len(self.rounds)}"] = (name, node)
            return f"{name}/{len(self.rounds)}"

        return SimpleNamespace(remote=start)

    def wait(self, references: list[str], **_: float) -> tuple[list[str], list[str]]:
        self.rounds.append(dict(self.running.values()))
        assert len(set(self.rounds[-1].values())) == len(self.rounds[-1]), "two stages on one node"
        return references, []

    def get(self, reference: str) -> int:
        return self.outcome(*self.running.pop(reference))

    def cancel(self, reference: str) -> None:
        pass


def job(folder: Path, name: str, *inputs: str) -> Job:
    node = Node(name, "finetune", {}, 0, {f"input-{i}": source for i, source in enumerate(inputs)}, "0" * 64)
    spec = StageSpec(name, "finetune", 1, node.id, 0, {}, {}, {}, str(folder))
    return Job(node, spec, node.folder(folder))


class Remembers:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def started(self, node: Node, number: int, total: int, *, resumed: bool) -> None:
        self.lines.append(f"{number}/{total} {node.name}")

    def event(self, node: Node, event: Progress | str) -> None:
        self.lines.append(f"{node.name}: {event if isinstance(event, str) else event.done}")

    def finished(self, node: Node, seconds: float, *, reused: bool) -> None:
        self.lines.append(f"{node.name} ended")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[str]]]:
    """Run stages named with what they stand on, after a finished one."""

    def run(cluster: Pretended, *stages: tuple[str, ...]) -> list[str]:
        listener = Remembers()
        monkeypatch.setattr(executor, "_connected", lambda _: cluster)
        monkeypatch.setattr(executor, "POLL_SECONDS", 0.0)
        jobs = [job(tmp_path, *stage) for stage in stages]
        run_on_ray(jobs, finished={"task"}, address="", listener=listener, stop=StopRequest())
        return listener.lines

    yield run


def test_one_stage_a_node_and_all_of_the_node(run: Callable[..., list[str]]) -> None:
    cluster = Pretended({"head": {}, "small": {"CPU": 8.0}, "large": {"CPU": 32.0}})
    lines = run(cluster, ("a", "task"), ("b", "task"), ("c", "task"), ("d", "c"))
    assert cluster.rounds == [{"a": "large", "b": "small"}, {"c": "large"}, {"d": "large"}]
    assert cluster.asked == {"large": (32.0, 0), "small": (8.0, 0)}
    assert lines[:2] == ["2/5 a", "3/5 b"]
    assert [line for line in lines if "/" in line] == ["2/5 a", "3/5 b", "4/5 c", "5/5 d"]
    assert "a: on node large" in lines and "a: 1" in lines


def test_where_there_are_gpus_stages_are_there(run: Callable[..., list[str]]) -> None:
    cluster = Pretended({"head": {"CPU": 64.0}, "one": {"CPU": 8.0, "GPU": 1.0}, "two": {"CPU": 8.0, "GPU": 2.0}})
    run(cluster, ("a", "task"), ("b", "task"), ("c", "task"))
    assert cluster.rounds == [{"a": "two", "b": "one"}, {"c": "two"}]
    assert cluster.asked == {"two": (8.0, 2.0), "one": (8.0, 1.0)}


def test_a_lost_node_is_not_asked_again_and_four_end_the_run(run: Callable[..., list[str]]) -> None:
    def lost(stage: str, node: str) -> int:
        if node != "d":
            raise NodeDiedError
        return 0

    four = {name: {"CPU": 4.0 - number} for number, name in enumerate("abcd")}
    cluster = Pretended(four, lost)
    lines = run(cluster, ("x", "task"))
    assert [found["x"] for found in cluster.rounds] == ["a", "b", "c", "d"]
    assert lines.count("2/2 x") == lines.count("x ended") == 1
    assert lines.count("x: lost with its node; it goes on from its last checkpoint") == 3
    cluster = Pretended({name: {"CPU": 1.0} for name in "abcef"}, lost)
    with pytest.raises(MachineError, match="stage y was lost with its node 4 times, last by NodeDiedError"):
        run(cluster, ("y", "task"))


def test_what_a_task_raised_is_said_as_it_is(run: Callable[..., list[str]]) -> None:
    causes = [MachineError("node a does not see it", hint="share it"), PermissionError("log.txt")]

    def refused(stage: str, node: str) -> int:
        raise RayTaskError(causes.pop(0))

    cluster = Pretended({"a": {"CPU": 1.0}}, refused)
    with pytest.raises(MachineError, match=r"^stage x: node a does not see it") as caught:
        run(cluster, ("x", "task"))
    assert caught.value.hint == "share it"
    with pytest.raises(MachineError, match=r"stage x could not be run on node a: PermissionError: log\.txt"):
        run(cluster, ("x", "task"))


def test_a_stage_that_failed_says_why(run: Callable[..., list[str]], tmp_path: Path) -> None:
    def failed(stage: str, node: str) -> int:
        write_json(job(tmp_path, stage).folder / "error.json", {"message": "ñ", "hint": None, "exit_code": 3})
        return 3

    with pytest.raises(DataError, match="stage x: ñ"):
        run(Pretended({"a": {"CPU": 1.0}}, failed), ("x", "task"))


def test_a_cluster_without_cpus_is_refused(run: Callable[..., list[str]]) -> None:
    with pytest.raises(MachineError, match="no node with a CPU"):
        run(Pretended({"head": {}}), ("x", "task"))


def test_a_folder_that_a_node_does_not_see_is_named_and_not_made(tmp_path: Path) -> None:
    missing = tmp_path / "elsewhere" / "stages" / "x"
    with pytest.raises(MachineError, match=r"node n1 \(.*\) does not see .*config\.yaml") as caught:
        run_stage(str(missing), "n1", {})
    assert "--out must lie on a file system that all nodes see" in (caught.value.hint or "")
    assert not (tmp_path / "elsewhere").exists()


def test_a_stage_says_where_it_is_and_its_lines_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = job(tmp_path, "x")
    stage.spec.write(make_folder(stage.folder))
    real = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda command, **how: real(["sh", "-c", 'echo "$SAID"; echo no >&2; exit 3'], **how)
    )
    assert run_stage(str(stage.folder), "n1", {"SAID": "algo"}) == 3
    assert (stage.folder / "events.jsonl").read_text() == '{"note": "on node n1"}\nalgo\n'
    assert (stage.folder / "log.txt").read_text() == "no\n"


def test_the_display_shows_them_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(executor, "_connected", lambda _: Pretended({"n1": {"CPU": 2.0}, "n2": {"CPU": 1.0}}))
    jobs = [job(tmp_path, "a"), job(tmp_path, "b")]
    run_on_ray(jobs, finished=set(), address="", listener=RunDisplay(), stop=StopRequest())
    assert [re.sub(r"[0-9.]+ s$", "S", line) for line in capsys.readouterr().err.splitlines()] == [
        "[1/2] a: on node n1", "[2/2] b: on node n2", "[1/2] a: done in S", "[2/2] b: done in S"
    ]  # fmt: skip
