"""Score an arm on the shared dev and test items."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from quilate.config import Config
from quilate.engine.runlog import Progress
from quilate.files import read_json, write_json
from quilate.inference.scorer import load_scorer
from quilate.phases.stage import StageContext, StageKind, StageReport
from quilate.tasks.classification import Task
from quilate.tasks.labels import Item

# Below this many dev items a temperature is noise; scores are then used as they are (guess).
MIN_DEV_ITEMS = 30


class EvaluateConfig(Config):
    pass


def gold_indices(items: Sequence[Item], labels: Sequence[str]) -> np.ndarray:
    """[items] index of each item's label; -1 for a label the task does not have (it can never be predicted)."""
    index = {label: i for i, label in enumerate(labels)}
    return np.array([index.get(item.label, -1) for item in items])


def read_probabilities(folder: Path) -> np.ndarray:
    """The test probabilities [items, labels] of a finished evaluate stage, at the temperature chosen on dev."""
    from quilate.evaluation.metrics import with_temperature

    return with_temperature(
        load_file(folder / "scores.safetensors")["test"], read_json(folder / "evaluation.json")["temperature"]
    )


def _run(context: StageContext[EvaluateConfig]) -> StageReport:
    task = Task.load(context.inputs["task"] / "task")
    scorer = load_scorer(context.inputs["arm"] / "scorer")
    total = len(task.dev) + len(task.test)

    begun = time.perf_counter()

    def listen(offset: int, done: int) -> None:
        context.stop.raise_if_set()
        finished = offset + done
        left = (time.perf_counter() - begun) / max(1, finished) * (total - finished)
        context.listener(Progress(finished, total, "items", seconds_left=left))

    dev = scorer.score([item.text for item in task.dev], lambda done, _: listen(0, done))
    started = time.perf_counter()
    test = scorer.score([item.text for item in task.test], lambda done, _: listen(len(task.dev), done))
    seconds = time.perf_counter() - started
    temperature = 1.0
    if len(task.dev) >= MIN_DEV_ITEMS:
        # Here, not above: scikit-learn and scipy take half a second that others need not pay.
        from quilate.evaluation.metrics import fit_temperature

        temperature = fit_temperature(gold_indices(task.dev, task.labels), dev.scores)
    save_file({"dev": dev.scores, "test": test.scores}, context.folder / "scores.safetensors")
    evaluation = {
        "temperature": temperature,
        "seconds_per_1000": 1000 * seconds / max(1, len(task.test)),
        "tokens": test.tokens,
        "money": dev.cost + test.cost,
        "money_per_1000": 1000 * test.cost / max(1, len(task.test)),
        "dev_items": len(task.dev),
        "test_items": len(task.test),
    }
    write_json(context.folder / "evaluation.json", evaluation)
    counts = {"test prompts cut": test.truncated, "dev prompts cut": dev.truncated}
    counts |= {f"test {name}": count for name, count in test.counts.items()}
    return StageReport(counts=counts, facts=evaluation)


EVALUATE = StageKind("evaluate", 3, EvaluateConfig, _run)
