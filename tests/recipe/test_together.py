"""A stage trained by two processes through the recipe: killed, and finished by one process."""

from __future__ import annotations

from pathlib import Path
from shutil import copyfile

import pytest
from safetensors.torch import load_file
from support import SENTENCES

from quilate import config
from quilate.engine.interrupts import StopRequest
from quilate.engine.runlog import Progress, read_metrics
from quilate.errors import MachineError
from quilate.files import make_folder, read_json, write_text
from quilate.recipe.executors.subprocess import Together
from quilate.recipe.graph import Node
from quilate.recipe.run import run_recipe, run_status
from quilate.recipe.schema import Recipe
from quilate.recipe.worker import run_stage

RECIPE = """\
recipe: juntos
base: {base}
data: {{all: {{path: notas.csv}}}}
task:
  name: notas
  text: texto
  label: etiqueta
  split: {{train: 24, dev: 6, test: 12}}
arms:
  full: {{kind: finetune, method: full, precision: fp32, batch_size: 6, epochs: 2, micro_batch_tokens: 128,
         checkpoint_steps: 3, search: {{lr: [3e-4, 1e-3]}}}}
seeds: [0]
"""


class Silent:
    def started(self, node: Node, number: int, total: int, *, resumed: bool) -> None: ...

    def event(self, node: Node, event: Progress | str) -> None: ...

    def finished(self, node: Node, seconds: float, *, reused: bool) -> None: ...


def losses(stage: Path) -> list[list[float]]:
    """Of each trial; the chosen one's are the stage's own."""
    chosen = read_json(stage / "manifest.json")["facts"]["chosen"]
    folders = [stage if number == chosen else stage / "trials" / f"{number:03}" for number in (0, 1)]
    return [[row["loss"] for row in read_metrics(folder / "metrics.jsonl")] for folder in folders]


@pytest.mark.slow
def test_two_processes_killed_and_one_finishes(
    tmp_path: Path, llama_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The losses of all steps are those of one process, to 1e-5: the same samples in the same order. The arm tries two
    rates, so that the first process calls the other twice; both are killed in the second trial."""
    rows = [f'"{sentence} Caso {n}.",{"sí" if n % 2 else "no"}' for n, sentence in enumerate(SENTENCES * 4)]
    write_text(tmp_path / "notas.csv", "\n".join(["texto,etiqueta", *rows]) + "\n")
    write_text(tmp_path / "receta.yaml", RECIPE.format(base=llama_directory))
    monkeypatch.setenv("QUILATE_FAULTS", "fit.step:13:kill")  # after the 8 steps of the first trial
    with pytest.raises(MachineError, match="stage full-s0: one of its processes died") as caught:
        run_recipe(
            config.load(Recipe, tmp_path / "receta.yaml"), base_folder=tmp_path, out=tmp_path / "run",
            listener=Silent(), stop=StopRequest(), until="full-s0", together=Together(2, "fsdp"),
        )  # fmt: skip
    assert "run the same command again" in (caught.value.hint or "")
    (killed,) = (tmp_path / "run" / "stages").glob("full-s0-*")
    (checkpoint,) = (killed / "trials" / "001" / "checkpoints").glob("step-*")
    assert checkpoint.name == "step-00000003"
    states = {status.name: status.state for status in run_status(tmp_path / "run")}
    assert states["full-s0"] == "interrupted at step 3 of trial 2"
    assert len(list(checkpoint.glob("optimizer-0000?-of-00002.safetensors"))) == 2
    alone = make_folder(tmp_path / "alone")
    copyfile(killed / "config.yaml", alone / "config.yaml")
    for folder in (killed, alone):  # here, in one process: `killed` goes on, `alone` begins
        run_stage(folder, StopRequest())
    assert read_json(killed / "manifest.json")["facts"]["tried"] == read_json(alone / "manifest.json")["facts"]["tried"]
    assert [len(trial) for trial in losses(alone)] == [8, 8]
    for found, expected in zip(losses(killed), losses(alone), strict=True):
        assert found == pytest.approx(expected, abs=1e-5)
    models = [load_file(folder / "model" / "model.safetensors") for folder in (killed, alone)]
    assert all((models[0][name] - tensor).abs().mean() < 1e-6 for name, tensor in models[1].items())
