"""Score an arm on the shared dev and test items."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from quilate import faults
from quilate.config import Config
from quilate.engine.runlog import Progress
from quilate.evaluation.spans import count_spans
from quilate.files import read_json, read_jsonl, write_json, write_jsonl
from quilate.inference.scorer import ProgressCallback, load_scorer
from quilate.inference.scores import LabelScores
from quilate.inference.spans import Found
from quilate.phases.stage import StageContext, StageKind, StageReport
from quilate.tasks.extraction import Document, ExtractionTask, Span
from quilate.tasks.kinds import load_task
from quilate.tasks.labels import Item
from quilate.tasks.multiple_choice import ChoiceTask
from quilate.tasks.task import Task

# Below this many dev items a temperature is noise; scores are then used as they are (guess).
MIN_DEV_ITEMS = 30


class EvaluateConfig(Config):
    pass


def gold_indices(items: Sequence[Item], labels: Sequence[str]) -> np.ndarray:
    """[items] index of each item's label; -1 for a label the task does not have (it can never be predicted)."""
    index = {label: i for i, label in enumerate(labels)}
    return np.array([index.get(item.label, -1) for item in items])


def gold_of(task: Task) -> np.ndarray | None:
    """[test items] what was to be answered, as `judge` wants it; None where it is spans."""
    return None if isinstance(task, ExtractionTask) else gold_indices(task.test, task.labels)


def read_probabilities(folder: Path) -> np.ndarray:
    """The test probabilities [items, labels] of a finished evaluate stage, at the temperature chosen on dev."""
    from quilate.evaluation.metrics import with_temperature

    return with_temperature(
        load_file(folder / "scores.safetensors")["test"], read_json(folder / "evaluation.json")["temperature"]
    )


def read_counts(folder: Path) -> np.ndarray:
    """What an extractor's finished evaluate stage counted in the test documents: [documents, labels, 4]."""
    counts: np.ndarray = load_file(folder / "counts.safetensors")["test"]
    return counts


def read_spans(folder: Path) -> list[tuple[Span, ...]]:
    """The spans that an extractor found in the test documents."""
    return [tuple(Span(*span) for span in row["spans"]) for row in read_jsonl(folder / "found.jsonl")]


@dataclass(frozen=True)
class Answered:
    """One split's answers: `array` is scores [items, labels] or counts [documents, labels, 4]; `cut` items did not fit
    the model (documents: in one window); `counts` is what else befell them, `cost` what an endpoint charged."""

    array: np.ndarray
    cut: int
    tokens: int
    spans: list[tuple[Span, ...]] | None = None
    counts: dict[str, int] = field(default_factory=dict)
    cost: float = 0.0


def answer(task: Task, scorer: Any, items: Sequence[Item], on_progress: ProgressCallback) -> Answered:
    """Ask an arm's scorer for the answers to items of its task, whatever the kind."""
    match task:
        case ExtractionTask():
            documents = [item for item in items if isinstance(item, Document)]
            found: Found = scorer.find([document.text for document in documents], on_progress)
            counts = [
                count_spans(document.spans, spans, task.labels)
                for document, spans in zip(documents, found.spans, strict=True)
            ]
            array = np.stack(counts) if counts else np.zeros((0, len(task.labels), 4), dtype=np.int64)
            return Answered(array, found.windowed, found.tokens, found.spans, found.counts)
        case ChoiceTask():
            scored: LabelScores = scorer.score(items, on_progress)
            lacking = len(task.labels) - scored.scores.shape[1]  # dev or test may have questions of more options
            padded = np.pad(scored.scores, ((0, 0), (0, lacking)), constant_values=-np.inf)
            return Answered(padded, scored.truncated, scored.tokens, counts=scored.counts, cost=scored.cost)
        case _:
            scored = scorer.score([item.text for item in items], on_progress)
            return Answered(scored.scores, scored.truncated, scored.tokens, counts=scored.counts, cost=scored.cost)


def _run(context: StageContext[EvaluateConfig]) -> StageReport:
    task = load_task(context.inputs["task"] / "task")
    scorer = load_scorer(context.inputs["arm"] / "scorer")
    total = len(task.dev) + len(task.test)

    begun = time.perf_counter()

    def listen(offset: int, done: int) -> None:
        faults.at("evaluate.batch")
        context.stop.raise_if_set()
        finished = offset + done
        left = (time.perf_counter() - begun) / max(1, finished) * (total - finished)
        context.listener(Progress(finished, total, "items", seconds_left=left))

    dev = answer(task, scorer, task.dev, lambda done, _: listen(0, done))
    started = time.perf_counter()
    test = answer(task, scorer, task.test, lambda done, _: listen(len(task.dev), done))
    seconds = time.perf_counter() - started
    facts = {
        "temperature": _temperature(task, dev.array),
        "seconds_per_1000": 1000 * seconds / max(1, len(task.test)),
        "tokens": test.tokens,
        "money": dev.cost + test.cost,
        "money_per_1000": 1000 * test.cost / max(1, len(task.test)),
        "dev_items": len(task.dev),
        "test_items": len(task.test),
    }
    if test.spans is None:
        save_file({"dev": dev.array, "test": test.array}, context.folder / "scores.safetensors")
        cut = "prompts cut"
    else:
        save_file({"dev": dev.array, "test": test.array}, context.folder / "counts.safetensors")
        rows = [[[span.start, span.end, span.label] for span in spans] for spans in test.spans]
        ids = [item.id for item in task.test]
        write_jsonl(context.folder / "found.jsonl", [{"id": i, "spans": r} for i, r in zip(ids, rows, strict=True)])
        cut = "documents in several windows"
    write_json(context.folder / "evaluation.json", facts)
    counts = {f"test {cut}": test.cut, f"dev {cut}": dev.cut}
    counts |= {f"test {name}": count for name, count in test.counts.items()}
    return StageReport(counts=counts, facts=facts)


def _temperature(task: Task, dev: np.ndarray) -> float:
    if isinstance(task, ExtractionTask) or len(task.dev) < MIN_DEV_ITEMS:
        return 1.0
    # Here, not above: scikit-learn and scipy take half a second that others need not pay.
    from quilate.evaluation.metrics import fit_temperature

    return fit_temperature(gold_indices(task.dev, task.labels), dev)


EVALUATE = StageKind("evaluate", 3, EvaluateConfig, _run)
