"""Every stage of recipes/tiny.yaml that trains, run in this process: a new phase is there as soon as the recipe has it.

A recipe with several tasks measures every arm on each, so the kind that learns them at once is added here instead.
"""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quilate import faults
from quilate.config import load
from quilate.engine.interrupts import stop_on_signals
from quilate.files import read_json
from quilate.recipe import worker
from quilate.recipe.graph import build_graph
from quilate.recipe.run import spec_of
from quilate.recipe.schema import Recipe
from quilate.recipe.worker import run_stage

RECIPE = Path(__file__).parent.parent.parent / "recipes" / "tiny.yaml"
TASKS = [
    "tasks.tono.data.all.path=tiny-opinions.csv",
    "tasks.tono.task={name: Tono, text: opinión, label: tono, split: {train: 20, dev: 6, test: 10}}",
    "stages.both={kind: multitask, tasks: [task, tono], method: full, lr: 1e-3, epochs: 1}",
]

# Six steps or so, in fp32, which repeats to the bit on any machine and follows another order of its sums closely.
COMMON = {"checkpoint_steps": 2, "precision": "fp32"}
OF_KIND: dict[str, dict[str, Any]] = {
    "pretrain": {"tokens": 1800, "batch_tokens": 300},
    "adapt": {"tokens": 1800, "batch_tokens": 300},
    "finetune": {"batch_size": 5},
    "multitask": {"batch_size": 8},
    "sft": {"batch_size": 3},
    "reward": {"batch_size": 2},
    "dpo": {"batch_size": 2},
    "distill": {"batch_size": 3},
    "grpo": {"batch_size": 4},
    "cloning": {"batch_size": 3},
    "ilql": {"batch_size": 4},
}

NAN_STEP = 2  # the step, from 1, whose loss is not a number, in every run


def _trains(stage: Any) -> bool:
    """By gradient steps: the classifier of `method: head` has a solver."""
    return hasattr(stage, "checkpoint_steps") and getattr(stage, "method", None) != "head"


def training_stages() -> dict[str, str]:
    """The kind of every stage and arm that trains, by name."""
    recipe = load(Recipe, RECIPE, TASKS)
    return {name: stage.kind for name, stage in (recipe.stages | recipe.arms).items() if _trains(stage)}


class Phases:
    """The tiny recipe's stages, each finished when it is first asked for, beside copies to be harmed."""

    def __init__(self, out: Path, base: Path, patch: pytest.MonkeyPatch) -> None:
        self.out = out
        self.graph = build_graph(load(Recipe, RECIPE, [f"base={base}", *TASKS]), RECIPE.parent)
        self.notes: list[str] = []
        self.on_progress: Callable[[dict[str, Any]], None] = lambda _: None
        patch.setattr(worker, "say", self._listen)

    def _listen(self, **event: Any) -> None:
        """Poisons a step, and draws random numbers as a logger might."""
        random.random()
        np.random.rand()
        if "note" in event:
            self.notes.append(event["note"])
        elif event["progress"]["unit"] == "steps" and event["progress"]["done"] == NAN_STEP - 1:
            faults.arm("fit.loss", lambda loss: loss * math.nan)

    def node(self, name: str) -> str:
        return name if name in self.graph.nodes else f"{name}-s0"

    def undisturbed(self, name: str) -> Path:
        """The folder of a finished stage."""
        node = self.graph.nodes[self.node(name)]
        folder = node.folder(self.out)
        if not (folder / "manifest.json").exists():
            for source in node.inputs.values():
                self.undisturbed(source)
            self._prepare(name, folder)
            self.run(folder)
        return folder

    def fresh(self, name: str, folder: Path) -> Path:
        """A folder in which the stage has not begun, its inputs finished."""
        self.undisturbed(name)
        self._prepare(name, folder)
        return folder

    def _prepare(self, name: str, folder: Path) -> None:
        node = self.graph.nodes[self.node(name)]
        spec = spec_of(node, self.graph, self.out, RECIPE.parent)
        if "checkpoint_steps" in spec.config:
            spec.config.update(COMMON | OF_KIND.get(node.kind, {}))
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        spec.write(folder)

    def run(self, folder: Path) -> None:
        """As the worker does: SIGTERM is a request to stop."""
        try:
            with stop_on_signals() as stop:
                run_stage(folder, stop)
        finally:
            faults.disarm()


def left_by(folder: Path) -> dict[str, bytes]:
    """What must repeat: every file of the models, and the metrics. Left out: seconds and logs."""
    files = [path for name in ("metrics.jsonl", "scores.safetensors") if (path := folder / name).exists()]
    for name in ("model", "adapter", "scorer"):
        files += [p for p in (folder / name).rglob("*") if p.is_file() and p.suffix != ".md"]
    content = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    # A path of the run directory may stand in it: that of the base in an adapter's config, say.
    return {name: data.replace(str(folder).encode(), b"FOLDER") for name, data in content.items()}


def facts_of(folder: Path) -> dict[str, Any]:
    manifest = read_json(folder / "manifest.json")
    return {"facts": manifest["facts"], "counts": manifest["counts"], "tokens": manifest["cost"]["train_tokens"]}
