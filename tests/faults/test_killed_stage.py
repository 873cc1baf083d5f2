"""A whole stage through the recipe: killed, stopped, locked out; run again, it ends with the undisturbed bytes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import SENTENCES

from quilate import config
from quilate.engine.interrupts import StopRequest
from quilate.engine.runlog import Progress
from quilate.errors import DataError, Interrupted, MachineError
from quilate.files import folder_lock, read_json, write_text
from quilate.recipe.graph import Node
from quilate.recipe.run import run_recipe, run_status
from quilate.recipe.schema import Recipe

RECIPE = """\
recipe: interrumpida
base: {base}
data: {{all: {{path: notas.csv}}}}
task:
  name: notas
  text: texto
  label: etiqueta
  split: {{train: 24, dev: 6, test: 12}}
arms:
  lora: {{kind: finetune, method: lora, lora: {{rank: 4, dropout: 0.2}}, precision: bf16, batch_size: 6, epochs: 3,
         checkpoint_steps: 3, lr: 1e-2}}
  adapter: {{kind: finetune, method: adapter, adapter: {{size: 4}}, precision: bf16, batch_size: 6, epochs: 3,
            checkpoint_steps: 3, lr: 1e-2}}
  full: {{kind: finetune, method: full, precision: fp32, batch_size: 6, epochs: 3, checkpoint_steps: 3}}
seeds: [0]
"""

ARMS = ("lora", "adapter", "full")


class Silent:
    """A listener that remembers, and may do something at each event."""

    def __init__(self, on_event: Callable[[Progress | str], None] = lambda _: None) -> None:
        self.on_event = on_event
        self.run: list[str] = []
        self.reused: list[str] = []

    def started(self, node: Node, number: int, total: int, *, resumed: bool) -> None:
        self.run.append(node.name + (" again" if resumed else ""))

    def event(self, node: Node, event: Progress | str) -> None:
        self.on_event(event)

    def finished(self, node: Node, seconds: float, *, reused: bool) -> None:
        if reused:
            self.reused.append(node.name)


class Place:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stop = StopRequest()

    @property
    def recipe(self) -> Path:
        return self.folder / "receta.yaml"

    def run(self, until: str, out: str, listener: Silent | None = None) -> Silent:
        listener = listener or Silent()
        parsed = config.load(Recipe, self.recipe)
        run_recipe(
            parsed, base_folder=self.folder, out=self.folder / out, listener=listener, stop=self.stop, until=until
        )
        return listener

    def stage(self, out: str, name: str) -> Path:
        return next((self.folder / out / "stages").glob(f"{name}-*"))

    def fresh(self, name: str) -> str:
        """A run whose task and base are done and whose arms are not."""
        shutil.copytree(self.folder / "prepared", self.folder / name)
        return name


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, llama_directory: Path) -> Place:
    folder = tmp_path_factory.mktemp("killed")
    rows = [f'"{sentence} Caso {n}.",{"sí" if n % 2 else "no"}' for n, sentence in enumerate(SENTENCES * 4)]
    write_text(folder / "notas.csv", "\n".join(["texto,etiqueta", *rows]) + "\n")
    write_text(folder / "receta.yaml", RECIPE.format(base=llama_directory))
    place = Place(folder)
    for stage in ("task", "base"):
        place.run(stage, "prepared")
    return place


@pytest.fixture(scope="module")
def undisturbed(place: Place) -> dict[str, Path]:
    out = place.fresh("undisturbed")
    for arm in ARMS:
        place.run(f"{arm}-s0", out)
    return {arm: place.stage(out, f"{arm}-s0") for arm in ARMS}


def bytes_of(stage: Path) -> dict[str, bytes]:
    """What must repeat: every file of the model, and the metrics. Left out: seconds and logs."""
    files = [stage / "metrics.jsonl", *(p for p in (stage / "model").rglob("*") if p.is_file())]
    return {str(path.relative_to(stage)): path.read_bytes() for path in files}


@pytest.fixture(autouse=True)
def _listening_again(place: Place) -> None:
    place.stop.signal = None


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_kill_9_inside_training_then_run_again(
    place: Place, undisturbed: dict[str, Path], arm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = place.fresh(f"killed-{arm}")
    monkeypatch.setenv("QUILATE_FAULTS", "fit.step:7:kill")
    with pytest.raises(MachineError, match=f"stage {arm}-s0 was killed by signal 9") as caught:
        place.run(f"{arm}-s0", out)
    assert caught.value.exit_code == 4
    stage = place.stage(out, f"{arm}-s0")
    assert [p.name for p in (stage / "checkpoints").iterdir()] == ["step-00000006"]
    assert not (stage / "manifest.json").exists()
    states = {status.name: status.state for status in run_status(place.folder / out)}
    assert states[f"{arm}-s0"] == "interrupted at step 6"
    monkeypatch.delenv("QUILATE_FAULTS")
    listener = place.run(f"{arm}-s0", out)
    assert listener.run == [f"{arm}-s0 again"]
    assert sorted(listener.reused) == ["base", "task"]
    assert bytes_of(stage) == bytes_of(undisturbed[arm])
    manifests = [read_json(folder / "manifest.json") for folder in (stage, undisturbed[arm])]
    assert manifests[0]["facts"] == manifests[1]["facts"]
    assert manifests[0]["cost"]["train_tokens"] == manifests[1]["cost"]["train_tokens"]
    assert manifests[0]["id"] == manifests[1]["id"]
    assert not (stage / "checkpoints").exists()
    listener = place.run(f"{arm}-s0", out)
    assert listener.run == []


@pytest.mark.slow
def test_a_stop_request_saves_and_leaves_with_75(place: Place, undisturbed: dict[str, Path]) -> None:
    out = place.fresh("stopped")

    def stop_at_two(event: Progress | str) -> None:
        if isinstance(event, Progress) and event.done == 2:
            place.stop.signal = "SIGINT"

    with pytest.raises(Interrupted, match="stage full-s0: stopped by SIGTERM after step") as caught:
        place.run("full-s0", out, Silent(stop_at_two))
    assert caught.value.exit_code == 75
    place.stop.signal = None
    place.run("full-s0", out)
    assert bytes_of(place.stage(out, "full-s0")) == bytes_of(undisturbed["full"])


@pytest.mark.slow
def test_a_stop_while_the_stage_still_imports_is_a_stop_too(place: Place) -> None:
    """SIGTERM before the child listens ends it by the signal; that is no machine error."""
    out = place.fresh("early")

    class StopAtOnce(Silent):
        def started(self, node: Node, number: int, total: int, *, resumed: bool) -> None:
            place.stop.signal = "SIGTERM"

    with pytest.raises(Interrupted, match=r"stopped by SIGTERM") as caught:
        place.run("full-s0", out, StopAtOnce())
    assert caught.value.exit_code == 75
    assert not list(place.stage(out, "full-s0").glob("manifest.json"))


@pytest.mark.slow
def test_sigterm_to_the_worker_itself(place: Place, undisturbed: dict[str, Path]) -> None:
    out = place.fresh("worker")
    shutil.copytree(undisturbed["full"], place.folder / out / "stages" / undisturbed["full"].name)
    stage = place.stage(out, "full-s0")
    for path in stage.iterdir():
        if path.name != "config.yaml":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    command = [sys.executable, "-m", "quilate.recipe.worker", str(stage)]
    environment = os.environ | {"QUILATE_FAULTS": "fit.step:5:terminate"}
    stopped = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert stopped.returncode == 75, stopped.stderr
    assert [p.name for p in (stage / "checkpoints").iterdir()] == ["step-00000005"]
    assert "stopped by SIGTERM after step 5" in read_json(stage / "error.json")["message"]
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == 0
    assert bytes_of(stage) == bytes_of(undisturbed["full"])


@pytest.mark.slow
def test_sigterm_to_quilate_run(place: Place) -> None:
    """From the command line: 75 and resumable."""
    out = place.fresh("terminal")
    command = [sys.executable, "-m", "quilate", "run", str(place.recipe), "--out", str(place.folder / out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    stages = place.folder / out / "stages"
    try:
        while process.poll() is None and not list(stages.glob("*-s0-*/metrics.jsonl")):
            signal.sigtimedwait([], 0.05)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 75, output
    assert "run the same command again" in output
    state = next(s.state for s in run_status(place.folder / out) if s.name == "lora-s0")
    assert state.startswith("interrupted at step")
    place.run("lora-s0", out)
    assert next(s.state for s in run_status(place.folder / out) if s.name == "lora-s0") == "done"


@pytest.mark.slow
def test_two_runs_on_one_folder(place: Place) -> None:
    out = place.fresh("twice")
    command = [sys.executable, "-m", "quilate", "run", str(place.recipe), "--out", str(place.folder / out)]
    with folder_lock(place.folder / out):
        second = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert second.returncode == 4
    assert "another quilate process is working in" in second.stderr
    assert "--out" in second.stderr
    assert not list((place.folder / out / "stages").glob("lora-*"))


@pytest.mark.slow
def test_data_changed_under_an_interrupted_stage_are_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The finished task is altered behind the recipe's back, its sizes unchanged: its digests know better."""
    out = place.fresh("changed")
    monkeypatch.setenv("QUILATE_FAULTS", "fit.step:4:kill")
    with pytest.raises(MachineError):
        place.run("full-s0", out)
    monkeypatch.delenv("QUILATE_FAULTS")
    train = place.stage(out, "task") / "task" / "train.jsonl"
    train.write_text(train.read_text(encoding="utf-8").replace("Caso", "Daso"), encoding="utf-8")
    with pytest.raises(Exception, match=r"train\.jsonl was altered since its stage finished") as caught:
        place.run("full-s0", out)
    assert getattr(caught.value, "exit_code", None) == DataError.exit_code == 3


@pytest.mark.slow
def test_a_full_disk_in_a_stage_is_a_machine_error_and_resumable(
    place: Place, undisturbed: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = place.fresh("full-disk")
    monkeypatch.setenv("QUILATE_FAULTS", "checkpoint.write:3:disk-full")
    with pytest.raises(MachineError, match=r"stage full-s0: .*the disk is full") as caught:
        place.run("full-s0", out)
    assert "free some space" in (caught.value.hint or "")
    monkeypatch.delenv("QUILATE_FAULTS")
    stage = place.stage(out, "full-s0")
    assert [p.name for p in (stage / "checkpoints").iterdir()] == ["step-00000003"]
    place.run("full-s0", out)
    assert bytes_of(stage) == bytes_of(undisturbed["full"])
