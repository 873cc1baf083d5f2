"""The wrong predictions as a CSV. It holds source text: it is written only when the user asks for text."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quilate.evaluation.metrics import predictions
from quilate.evaluation.outcomes import ArmOutcome

COLUMNS = ("arm", "seed", "item", "text", "gold", "predicted", "probability_of_predicted", "probability_of_gold")
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
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for _, row in sorted(rows, key=lambda pair: pair[0]):
        writer.writerow([_inert(str(cell)) for cell in row])
    return text.getvalue().encode("utf-8-sig")


def _inert(cell: str) -> str:
    return f"'{cell}" if cell.startswith(_FORMULA) else cell
