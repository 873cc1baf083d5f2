"""The Ray executor on a local cluster of several nodes: the stages' bytes are those of the subprocess executor, also
when a node is lost in the middle of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import SENTENCES

from quilate import config
from quilate.engine.interrupts import StopRequest
from quilate.engine.runlog import Progress
from quilate.errors import DataError, Interrupted
from quilate.files import read_json, read_jsonl, write_text
from quilate.recipe.graph import Node
from quilate.recipe.run import run_recipe
from quilate.recipe.schema import Recipe

ray = pytest.importorskip("ray", reason="ray is not installed (pip install 'quilate[ray]')")

RECIPE = """\
recipe: repartida
base: {base}
data: {{all: {{path: notas.csv}}}}
task:
  name: notas
  text: texto
  label: etiqueta
  split: {{train: 24, dev: 6, test: 12}}
arms:
  lora: {{kind: finetune, method: lora, lora: {{rank: 4, dropout: 0.2}}, precision: bf16, batch_size: 6, epochs: 1,
         lr: 1e-2}}
  full: {{kind: finetune, method: full, precision: fp32, batch_size: 6, epochs: 3, checkpoint_steps: 3}}
  tfidf: {{kind: baseline, method: tfidf}}
seeds: [0]
resamples: 1000
"""


class Watching(StopRequest):
    """Calls `look` whenever the executor looks for a request to stop."""

    def __init__(self, look: Callable[[StopRequest], None] = lambda _: None) -> None:
        super().__init__()
        self.look = look

    def __bool__(self) -> bool:
        self.look(self)
        return super().__bool__()


class Listening:
    """Remembers what ran and where."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.reused: list[str] = []
        self.nodes: dict[str, list[str]] = {}
        self.running: dict[str, str] = {}  # stage -> node

    def started(self, node: Node, number: int, total: int, *, resumed: bool) -> None:
        self.begun.append(node.name)

    def event(self, node: Node, event: Progress | str) -> None:
        _, said, where = str(event).partition("on node ")
        if said:
            assert where not in self.running.values(), f"{node.name} beside another stage"
            self.nodes.setdefault(node.name, []).append(where)
            self.running[node.name] = where

    def finished(self, node: Node, seconds: float, *, reused: bool) -> None:
        if reused:
            self.reused.append(node.name)
        self.running.pop(node.name, None)


class Place:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(
        self, out: str, *, ray: str | None = None, stop: StopRequest | None = None, listener: Listening | None = None
    ) -> Listening:
        listener = listener or Listening()
        recipe = config.load(Recipe, self.folder / "receta.yaml")
        run_recipe(
            recipe, base_folder=self.folder, out=self.folder / out, listener=listener,
            stop=StopRequest() if stop is None else stop, ray=ray,
        )  # fmt: skip
        return listener

    def stage(self, out: str, name: str) -> Path:
        return next((self.folder / out / "stages").glob(f"{name}-{'?' * 10}"))  # not its evaluation


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, llama_directory: Path) -> Place:
    folder = tmp_path_factory.mktemp("ray")
    rows = [f'"{sentence} Caso {n}.",{"sí" if n % 2 else "no"}' for n, sentence in enumerate(SENTENCES * 4)]
    write_text(folder / "notas.csv", "\n".join(["texto,etiqueta", *rows]) + "\n")
    write_text(folder / "receta.yaml", RECIPE.format(base=llama_directory))
    place = Place(folder)
    place.run("undisturbed")
    return place


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that computes nothing, a node of one CPU and one of two, on which Ray itself would put two stages."""
    from ray.cluster_utils import Cluster

    settings = {"worker_niceness": 0}  # 15 otherwise: beside other work the tests would take for ever
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": settings})
    for cpus in (1, 2):
        cluster.add_node(num_cpus=cpus)
    cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.slow
def test_a_node_killed_in_the_middle_and_the_same_bytes(
    place: Place, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each stage has the identity and the bytes that it has on one machine. `full` is paused in step 10 of 12, behind
    its checkpoint of step 9, until its node is killed; the second try makes three steps, too few to be paused."""
    monkeypatch.setenv("QUILATE_FAULTS", "fit.step:10:pause")
    listener = Listening()
    stages = place.folder / "ray" / "stages"

    def kill_the_node_of_full(_: StopRequest) -> None:
        if len(listener.nodes.get("full-s0", [])) == 1 and list(stages.glob("full-s0-*/checkpoints/step-00000009")):
            (lost,) = [node for node in cluster.list_all_nodes() if node.node_id == listener.nodes["full-s0"][0]]
            cluster.remove_node(lost, allow_graceful=False)
            cluster.add_node(num_cpus=1)
            listener.nodes["full-s0"].append("killed")

    place.run("ray", ray=cluster.address, stop=Watching(kill_the_node_of_full), listener=listener)
    before, killed, after = listener.nodes["full-s0"]
    assert killed == "killed" and before != after
    for name in ("lora-s0", "full-s0", "tfidf-s0-evaluate"):
        ours, theirs = place.stage("ray", name), place.stage("undisturbed", name)
        assert ours.name == theirs.name
        manifests = [read_json(folder / "manifest.json") for folder in (ours, theirs)]
        assert manifests[0]["outputs"].keys() == manifests[1]["outputs"].keys()
        same = [n for n in manifests[0]["outputs"] if n.startswith("model/") or n == "metrics.jsonl"]
        assert {n: manifests[0]["outputs"][n] for n in same} == {n: manifests[1]["outputs"][n] for n in same}
    assert (place.folder / "ray" / "evidence.json").exists()
    again = place.run("ray", ray=cluster.address)
    assert again.begun == []


@pytest.mark.slow
def test_a_stop_request_reaches_the_nodes(place: Place, cluster: Any) -> None:
    stages = place.folder / "stopped" / "stages"

    def stop_when_training(stop: StopRequest) -> None:
        if list(stages.glob("full-s0-*/metrics.jsonl")):
            stop.signal = "SIGINT"

    with pytest.raises(Interrupted, match="SIGINT"):
        place.run("stopped", ray=cluster.address, stop=Watching(stop_when_training))
    assert not list(stages.glob("report-*/manifest.json"))
    place.run("stopped", ray=cluster.address)
    metrics = [read_jsonl(place.stage(out, "full-s0") / "metrics.jsonl") for out in ("stopped", "undisturbed")]
    assert metrics[0] == metrics[1]


@pytest.mark.slow
def test_a_stage_that_fails_says_why(place: Place, cluster: Any) -> None:
    write_text(place.folder / "receta.yaml", (place.folder / "receta.yaml").read_text().replace("etiqueta\n", "otra\n"))
    with pytest.raises(DataError, match="stage task: "):
        place.run("broken", ray=cluster.address)
