"""Score an arm on the shared dev and test items."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from quilate import faults
from quilate.config import Config
from quilate.engine.runlog import Progress
from quilate.evaluation.answers import ANSWER_SCORES, score_answer
from quilate.evaluation.spans import count_spans
from quilate.evaluation.thresholds import choose_thresholds, count_labels, given_labels
from quilate.files import read_json, read_jsonl, write_json, write_jsonl
from quilate.inference.answers import WrittenAnswers
from quilate.inference.scorer import ProgressCallback, load_scorer
from quilate.inference.scores import LabelScores
from quilate.inference.spans import Found
from quilate.phases.stage import StageContext, StageKind, StageReport
from quilate.tasks.extraction import Document, ExtractionTask, Span
from quilate.tasks.kinds import load_task
from quilate.tasks.labels import Item
from quilate.tasks.multi_label import MultiLabelTask, indicators
from quilate.tasks.multiple_choice import ChoiceTask
from quilate.tasks.question_answering import AskedItem, QuestionTask
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
    """[test items] what was to be answered, as `judge` wants it; None where answers are sets or texts."""
    return None if answers_are_sets(task) or isinstance(task, QuestionTask) else gold_indices(task.test, task.labels)


def answers_are_sets(task: Task) -> bool:
    """Whether an item is answered by any number of things, which are counted, and not by one label."""
    return isinstance(task, ExtractionTask | MultiLabelTask)


def read_probabilities(folder: Path) -> np.ndarray:
    """The test probabilities [items, labels] of a finished evaluate stage, at the temperature chosen on dev."""
    from quilate.evaluation.metrics import with_temperature

    return with_temperature(
        load_file(folder / "scores.safetensors")["test"], read_json(folder / "evaluation.json")["temperature"]
    )


def read_counts(folder: Path) -> np.ndarray:
    """What a finished evaluate stage counted in the test items, where answers are sets: [items, labels, 4]."""
    counts: np.ndarray = load_file(folder / "counts.safetensors")["test"]
    return counts


def read_answer_scores(folder: Path) -> np.ndarray:
    """[test items, 2] exact match and token F1 of the answers of a finished evaluate stage, where they are texts."""
    scores: np.ndarray = load_file(folder / "answers.safetensors")["test"]
    return scores


def read_answers(folder: Path) -> list[str]:
    """The answers that the test questions were given."""
    return [row["answer"] for row in read_jsonl(folder / "found.jsonl")]


def read_spans(folder: Path) -> list[tuple[Span, ...]]:
    """The spans that an extractor found in the test documents."""
    return [tuple(Span(*span) for span in row["spans"]) for row in read_jsonl(folder / "found.jsonl")]


def read_label_sets(folder: Path) -> list[tuple[str, ...]]:
    """The labels that the test texts of a multi-label task were given."""
    return [tuple(row["labels"]) for row in read_jsonl(folder / "found.jsonl")]


@dataclass(frozen=True)
class Answered:
    """One split's answers: `array` is scores [items, labels] or, of documents, counts [documents, labels, 4] or, of
    questions, [questions, 2] how well each of the `texts` answers; `cut`
    items did not fit the model (documents: in one window); `counts` is what else befell them, `cost` what an endpoint
    charged."""

    array: np.ndarray
    cut: int
    tokens: int
    spans: list[tuple[Span, ...]] | None = None
    counts: dict[str, int] = field(default_factory=dict)
    cost: float = 0.0
    texts: list[str] = field(default_factory=list)


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
            return Answered(array, found.windowed, found.tokens, found.spans, found.counts, found.cost)
        case MultiLabelTask():
            scored: LabelScores = scorer.score([item.text for item in items], on_progress)
            known = [task.labels.index(label) for label in scorer.labels]
            wide = np.full((len(items), len(task.labels)), -np.inf)  # a label that train lacks is never given
            wide[:, known] = scored.scores
            return Answered(wide, scored.truncated, scored.tokens, counts=scored.counts)
        case QuestionTask():
            questions = [item for item in items if isinstance(item, AskedItem)]
            said: WrittenAnswers = scorer.write(questions, on_progress)
            language = task.config.language
            rated = [
                score_answer(text, question.right_answers, language)
                for text, question in zip(said.answers, questions, strict=True)
            ]
            values = np.array(rated, dtype=np.float64).reshape(len(rated), 2)
            befell = {"answers that did not end": said.unfinished} | said.counts
            return Answered(values, said.truncated, said.tokens, None, befell, said.cost, said.answers)
        case ChoiceTask():
            scored = scorer.score(items, on_progress)
            lacking = len(task.labels) - scored.scores.shape[1]  # dev or test may have questions of more options
            padded = np.pad(scored.scores, ((0, 0), (0, lacking)), constant_values=-np.inf)
            return Answered(padded, scored.truncated, scored.tokens, counts=scored.counts, cost=scored.cost)
        case _:
            scored = scorer.score([item.text for item in items], on_progress)
            return Answered(scored.scores, scored.truncated, scored.tokens, counts=scored.counts, cost=scored.cost)


def features_of(
    task: Task, items: Sequence[Item], answers: NDArray[Any]
) -> tuple[NDArray[np.float32], Callable[[NDArray[np.float64]], NDArray[np.float64]]]:
    """Answers to items of a task, as `Answered.array`, as (items, features), and the score of their sums (see
    `resample`)."""
    # Here, not above: scikit-learn and scipy take half a second that others need not pay.
    from quilate.evaluation import metrics
    from quilate.evaluation.statistics import COUNT_SCORES, STATISTICS, label_features, mean_score

    metric = task.config.metric
    if isinstance(task, QuestionTask):
        own = answers[:, ANSWER_SCORES[task.config.metric]]
        return np.stack([own, np.ones(len(own))], axis=1).astype(np.float32), mean_score
    if isinstance(task, MultiLabelTask):  # thresholds as `evaluate` will choose them, on the same development items
        has, known = indicators(items, task.labels), np.isfinite(answers).all(axis=0)
        given = np.zeros_like(has)
        given[:, known] = answers[:, known] >= choose_thresholds(has[:, known], answers[:, known], task.config.metric)
        answers = count_labels(has, given)
    if answers_are_sets(task):
        return COUNT_SCORES[metric].features(answers), COUNT_SCORES[metric].score
    assert metric == "accuracy" or metric == "macro_f1"  # the other kinds of task have no other
    predicted = metrics.predictions(metrics.with_temperature(answers, 1.0))
    gold = gold_indices(items, task.labels)
    return label_features(metric, gold, predicted, len(task.labels)), STATISTICS[metric].score


def score_of(task: Task, items: Sequence[Item], answers: NDArray[Any]) -> float:
    """The task's metric of answers to items, as `Answered.array`."""
    features, score = features_of(task, items, answers)
    return float(score(features.sum(axis=0, dtype=np.float64)))


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
    facts: dict[str, Any] = {
        "temperature": _temperature(task, dev.array),
        "thresholds": _thresholds(task, dev.array),
        "seconds_per_1000": 1000 * seconds / max(1, len(task.test)),
        "tokens": test.tokens,
        "money": dev.cost + test.cost,
        "money_per_1000": 1000 * test.cost / max(1, len(task.test)),
        "dev_items": len(task.dev),
        "test_items": len(task.test),
    }
    _save(context.folder, task, dev, test, facts["thresholds"])
    cut = "documents in several windows" if isinstance(task, ExtractionTask) else "prompts cut"
    write_json(context.folder / "evaluation.json", facts)
    counts = {f"test {cut}": test.cut, f"dev {cut}": dev.cut}
    counts |= {f"test {name}": count for name, count in test.counts.items()}
    return StageReport(counts=counts, facts=facts)


def _save(folder: Path, task: Task, dev: Answered, test: Answered, thresholds: dict[str, float]) -> None:
    """Scores of labels; and, where answers are sets, the counts and what was found."""
    ids = [item.id for item in task.test]
    found: list[dict[str, Any]]
    if isinstance(task, QuestionTask):
        save_file({"dev": dev.array, "test": test.array}, folder / "answers.safetensors")
        write_jsonl(folder / "found.jsonl", [{"id": i, "answer": t} for i, t in zip(ids, test.texts, strict=True)])
        return
    if not isinstance(task, ExtractionTask):
        save_file({"dev": dev.array, "test": test.array}, folder / "scores.safetensors")
    if not answers_are_sets(task):
        return
    if isinstance(task, MultiLabelTask):
        cuts = [thresholds[label] for label in task.labels]
        counts = {
            name: count_labels(indicators(items, task.labels), answered.array >= cuts)
            for name, items, answered in (("dev", task.dev, dev), ("test", task.test, test))
        }
        found = [{"labels": [task.labels[place] for place in given_labels(row, cuts)]} for row in test.array]
    else:
        assert test.spans is not None
        counts = {"dev": dev.array, "test": test.array}
        found = [{"spans": [[span.start, span.end, span.label] for span in spans]} for spans in test.spans]
    save_file(counts, folder / "counts.safetensors")
    write_jsonl(folder / "found.jsonl", [{"id": i} | row for i, row in zip(ids, found, strict=True)])


def _thresholds(task: Task, dev: np.ndarray) -> dict[str, float]:
    """The log-odds from which on each label is given, where a text may have several; half way if dev has too few."""
    if not isinstance(task, MultiLabelTask):
        return {}
    if len(task.dev) < MIN_DEV_ITEMS:
        return dict.fromkeys(task.labels, 0.0)
    known = np.isfinite(dev).all(axis=0)
    gold = indicators(task.dev, task.labels)[:, known]
    chosen = iter(choose_thresholds(gold, dev[:, known], task.config.metric))
    return {label: next(chosen) if is_known else 0.0 for label, is_known in zip(task.labels, known, strict=True)}


def _temperature(task: Task, dev: np.ndarray) -> float:
    if answers_are_sets(task) or isinstance(task, QuestionTask) or len(task.dev) < MIN_DEV_ITEMS:
        return 1.0
    # Here, not above: scikit-learn and scipy take half a second that others need not pay.
    from quilate.evaluation.metrics import fit_temperature

    return fit_temperature(gold_indices(task.dev, task.labels), dev)


EVALUATE = StageKind("evaluate", 3, EvaluateConfig, _run)
