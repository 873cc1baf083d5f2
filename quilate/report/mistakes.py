"""What holds source text, as CSV: wrong predictions, and what a model wrote while it was trained from rewards. Written
only when the user asks for text."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quilate.evaluation.answers import EXACT_MATCH, TOKEN_F1
from quilate.evaluation.metrics import predictions
from quilate.evaluation.outcomes import ArmOutcome
from quilate.tasks.extraction import Document, Span
from quilate.tasks.labels import Item
from quilate.tasks.question_answering import AskedItem

COLUMNS = ("arm", "seed", "item", "text", "gold", "predicted", "probability_of_predicted", "probability_of_gold")
SET_COLUMNS = ("arm", "seed", "item", "error", "label", "text")
ANSWER_COLUMNS = ("arm", "seed", "item", "question", "right", "answered", "token_f1")
SPAN_COLUMNS = ("arm", "seed", "document", "error", "start", "end", "label", "text")
SAMPLE_COLUMNS = ("stage", "iteration", "score", "prompt", "completion")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def errors_csv(outcome: ArmOutcome, texts: Sequence[str], gold: NDArray[np.integer], labels: Sequence[str]) -> bytes:
    """Every wrong prediction of every run, the most confident mistakes first.

    Returns:
        UTF-8 with a byte order mark, so that Excel opens accents right. A cell that a spreadsheet would run as a
        formula gets an apostrophe in front.
    """
    rows = []
    for seed, probabilities in zip(_seeds(outcome), outcome.probabilities, strict=True):
        predicted = predictions(probabilities)
        for item in map(int, np.flatnonzero(predicted != gold)):
            p_predicted, p_gold = probabilities[item, predicted[item]], probabilities[item, gold[item]]
            cells = (texts[item], labels[gold[item]], labels[predicted[item]])
            rows.append((-p_predicted, [outcome.name, seed, item, *cells, f"{p_predicted:.4f}", f"{p_gold:.4f}"]))
    return _csv(COLUMNS, [row for _, row in sorted(rows, key=lambda pair: pair[0])])


def samples_csv(stage: str, log: Sequence[Mapping[str, Any]]) -> bytes:
    """One completion an iteration of training from rewards, with its score: how the policy changed, in its own words.

    Args:
        log: the rows of the stage's `rollouts.jsonl`; those of older runs have no sample, and are left out.

    Returns:
        As `errors_csv`.
    """
    told = ((row["iteration"], row["sample"]) for row in log if "sample" in row)
    rows = [[stage, n, round(said["score"], 4), said["prompt"], said["completion"]] for n, said in told]
    return _csv(SAMPLE_COLUMNS, rows)


def span_errors_csv(
    outcome: ArmOutcome, documents: Sequence[Document], found: Sequence[Sequence[tuple[Span, ...]]]
) -> bytes:
    """Every span that a run of an extractor missed, and every one that is none, document by document.

    Args:
        found: for every run, for every document, the spans it found.

    Returns:
        As `errors_csv`.
    """
    rows: list[list[object]] = []
    for seed, of_run in zip(_seeds(outcome), found, strict=True):
        for document, spans in zip(documents, of_run, strict=True):
            for error, wrong in (
                ("missed", set(document.spans) - set(spans)),
                ("none", set(spans) - set(document.spans)),
            ):
                for span in sorted(wrong):
                    text = document.text[span.start : span.end]
                    rows.append([outcome.name, seed, document.id, error, span.start, span.end, span.label, text])
    return _csv(SPAN_COLUMNS, rows)


def label_set_errors_csv(
    outcome: ArmOutcome, items: Sequence[Item], given: Sequence[Sequence[tuple[str, ...]]]
) -> bytes:
    """Every label that a run missed, and every one that it gave wrongly, text by text.

    Args:
        given: for every run, for every text, the labels it was given.

    Returns:
        As `errors_csv`.
    """
    rows: list[list[object]] = []
    for seed, of_run in zip(_seeds(outcome), given, strict=True):
        for item, labels in zip(items, of_run, strict=True):
            for error, wrong in (("missed", set(item.labels) - set(labels)), ("none", set(labels) - set(item.labels))):
                rows += [[outcome.name, seed, item.id, error, label, item.text] for label in sorted(wrong)]
    return _csv(SET_COLUMNS, rows)


def answer_errors_csv(outcome: ArmOutcome, items: Sequence[AskedItem], said: Sequence[Sequence[str]]) -> bytes:
    """Every answer of every run that is not exactly right, the worst first.

    Args:
        said: for every run, the answer to every question.

    Returns:
        As `errors_csv`.
    """
    rows: list[tuple[float, list[object]]] = []
    for seed, scores, answers in zip(_seeds(outcome), outcome.scored, said, strict=True):
        for item, score, answer in zip(items, scores, answers, strict=True):
            if score[EXACT_MATCH] < 1:
                f1 = float(score[TOKEN_F1])
                cells = (item.text, " | ".join(item.right_answers), answer, f"{f1:.4f}")
                rows.append((f1, [outcome.name, seed, item.id, *cells]))
    return _csv(ANSWER_COLUMNS, [row for _, row in sorted(rows, key=lambda pair: pair[0])])


def _seeds(outcome: ArmOutcome) -> list[str]:
    return ["any"] if outcome.seed_independent else [str(seed) for seed in outcome.seeds]


def _csv(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_inert(cell) if isinstance(cell, str) else cell for cell in row])
    return text.getvalue().encode("utf-8-sig")


def _inert(cell: str) -> str:
    return f"'{cell}" if cell.startswith(_FORMULA) else cell
