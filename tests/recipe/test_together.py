"""A stage trained by two processes through the recipe: killed, finished by one process, and the other way round."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file
from support import SENTENCES

from quilate import config
from quilate.engine.interrupts import StopRequest
from quilate.engine.runlog import Progress, read_metrics
from quilate.errors import MachineError
from quilate.files import read_json, write_text
from quilate.recipe.executors.subprocess import ALONE, Together
from quilate.recipe.graph import Node
from quilate.recipe.run import run_recipe
from quilate.recipe.schema import Recipe

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
  full: {{kind: finetune, method: full, precision: fp32, lr: 1e-3, batch_size: 6, epochs: 2, micro_batch_tokens: 128,
         checkpoint_steps: 3}}
seeds: [0]
"""


class Silent:
    def started(self, node: Node, number: int, total: int, *, resumed: bool) -> None: ...

    def event(self, event: Progress | str) -> None: ...

    def finished(self, node: Node, seconds: float, *, reused: bool) -> None: ...


@pytest.mark.slow
def test_two_processes_killed_and_one_finishes(
    tmp_path: Path, llama_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The losses of all steps are those of one process, to 1e-5: the same samples in the same order."""
    rows = [f'"{sentence} Caso {n}.",{"sí" if n % 2 else "no"}' for n, sentence in enumerate(SENTENCES * 4)]
    write_text(tmp_path / "notas.csv", "\n".join(["texto,etiqueta", *rows]) + "\n")
    write_text(tmp_path / "receta.yaml", RECIPE.format(base=llama_directory))
    recipe = config.load(Recipe, tmp_path / "receta.yaml")

    def run(out: str, together: Together) -> Path:
        run_recipe(
            recipe, base_folder=tmp_path, out=tmp_path / out, listener=Silent(), stop=StopRequest(), until="full-s0",
            together=together,
        )  # fmt: skip
        return next((tmp_path / out / "stages").glob("full-s0-*"))

    alone = run("alone", ALONE)
    monkeypatch.setenv("QUILATE_FAULTS", "fit.step:5:kill")
    with pytest.raises(MachineError, match="stage full-s0: one of its processes died") as caught:
        run("killed", Together(2, "fsdp"))
    assert "run the same command again" in (caught.value.hint or "")
    monkeypatch.delenv("QUILATE_FAULTS")
    (checkpoint,) = (tmp_path / "killed" / "stages").glob("full-s0-*/checkpoints/step-*")
    assert checkpoint.name == "step-00000003"
    finished = run("killed", ALONE)
    assert finished.name == alone.name
    losses = [[row["loss"] for row in read_metrics(stage / "metrics.jsonl")] for stage in (finished, alone)]
    assert len(losses[0]) == 8
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    models = [load_file(stage / "model" / "model.safetensors") for stage in (finished, alone)]
    assert all((models[0][name] - tensor).abs().max() < 1e-5 for name, tensor in models[1].items())
    together = run("together", Together(2, "ddp"))
    facts = read_json(together / "manifest.json")["facts"]
    assert facts["processes"] == {"number": 2, "sharding": "ddp"}
    again = [row["loss"] for row in read_metrics(together / "metrics.jsonl")]
    assert again == pytest.approx(losses[1], abs=1e-5)
