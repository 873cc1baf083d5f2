"""The wrong predictions as a CSV. It holds source text: it is written only when the user asks for text."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quilate.evaluation.metrics import predictions
from quilate.evaluation.outcomes import ArmOutcome
from quilate.tasks.extraction import Document, Span

COLUMNS = ("arm", "seed", "item", "text", "gold", "predicted", "probability_of_predicted", "probability_of_gold")
SPAN_COLUMNS = ("arm", "seed", "document", "error", "start", "end", "label", "text")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def errors_csv(outcome: ArmOutcome, texts: Sequence[str], gold: NDArray[np.integer], labels: Sequence[str]) -> bytes:
    """Every wrong prediction of every run, the most confident mistakes first.

    Returns:
        UTF-8 with a byte order mark, so that Excel opens accents right. A cell that a spreadsheet would run as a
        formula gets an apostrophe in front.
    """
    seeds = ["any"] if outcome.seed_independent else [str(seed) for seed in outcome.seeds]
    rows = []
    for seed, probabilities in zip(seeds, outcome.probabilities, strict=True):
        predicted = predictions(probabilities)
        for item in map(int, np.flatnonzero(predicted != gold)):
            p_predicted, p_gold = probabilities[item, predicted[item]], probabilities[item, gold[item]]
            cells = (texts[item], labels[gold[item]], labels[predicted[item]])
            rows.append((-p_predicted, [outcome.name, seed, item, *cells, f"{p_predicted:.4f}", f"{p_gold:.4f}"]))
    return _csv(COLUMNS, [row for _, row in sorted(rows, key=lambda pair: pair[0])])


def span_errors_csv(
    outcome: ArmOutcome, documents: Sequence[Document], found: Sequence[Sequence[tuple[Span, ...]]]
) -> bytes:
    """Every span that a run of an extractor missed, and every one that is none, document by document.

    Args:
        found: for every run, for every document, the spans it found.

    Returns:
        As `errors_csv`.
    """
    seeds = ["any"] if outcome.seed_independent else [str(seed) for seed in outcome.seeds]
    rows: list[list[object]] = []
    for seed, of_run in zip(seeds, found, strict=True):
        for document, spans in zip(documents, of_run, strict=True):
            for error, wrong in (
                ("missed", set(document.spans) - set(spans)),
                ("none", set(spans) - set(document.spans)),
            ):
                for span in sorted(wrong):
                    text = document.text[span.start : span.end]
                    rows.append([outcome.name, seed, document.id, error, span.start, span.end, span.label, text])
    return _csv(SPAN_COLUMNS, rows)


def _csv(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_inert(str(cell)) for cell in row])
    return text.getvalue().encode("utf-8-sig")


def _inert(cell: str) -> str:
    return f"'{cell}" if cell.startswith(_FORMULA) else cell
