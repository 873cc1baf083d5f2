"""Effects of learning several tasks, on answers whose scores are known beforehand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from quilate.evaluation.statistics import STATISTICS, label_features
from quilate.evaluation.transfer import AskedModel, AskedTask, transfer_evidence

ITEMS = 20
TASKS = {name: AskedTask("accuracy", STATISTICS["accuracy"].score, None) for name in ("meta", "tono")}


def asked(model: str, on: str | None, trained_on: list[str], right: dict[str, list[int]]) -> list[AskedModel]:
    """`right`: of each task, how many of the twenty items each run got right."""
    gold = np.zeros(ITEMS, dtype=int)
    return [
        AskedModel(
            model, on, "full" if trained_on else None, task, trained_on,
            [label_features("accuracy", gold, np.where(np.arange(ITEMS) < n, 0, 1), 2) for n in runs],
        )
        for task, runs in right.items()
    ]  # fmt: skip


ROWS = [
    *asked("base", None, [], {"meta": [4], "tono": [10]}),
    *asked("first", "base", ["tono"], {"meta": [4], "tono": [18, 18]}),
    *asked("direct", "base", ["meta"], {"meta": [12, 14], "tono": [8, 8]}),
    *asked("after", "first", ["meta"], {"meta": [16, 16], "tono": [11, 13]}),
    *asked("together", "base", ["meta", "tono"], {"meta": [12, 12], "tono": [19, 17]}),
]


def test_the_matrix_and_every_effect_by_hand() -> None:
    scores, effects = transfer_evidence(ROWS, TASKS, resamples=1000)
    matrix = {(s.model, s.task): s.score for s in scores}
    assert matrix["after", "tono"] == pytest.approx(0.6) and matrix["base", "meta"] == pytest.approx(0.2)
    assert next(s.runs for s in scores if (s.model, s.task) == ("direct", "meta")) == pytest.approx([0.6, 0.7])
    found = {(e.kind, e.model, e.against, e.task): round(e.difference, 6) for e in effects}
    assert found == {
        ("step", "first", "base", "meta"): 0.0,
        ("step", "first", "base", "tono"): 0.4,
        ("step", "direct", "base", "meta"): 0.45,
        ("step", "direct", "base", "tono"): -0.1,
        ("step", "after", "first", "meta"): 0.6,
        ("step", "after", "first", "tono"): -0.3,  # forgotten
        ("step", "together", "base", "meta"): 0.4,
        ("step", "together", "base", "tono"): 0.4,
        ("transfer", "after", "direct", "meta"): 0.15,  # what the task in between was worth
        ("interference", "together", "direct", "meta"): -0.05,
        ("interference", "together", "first", "tono"): 0.0,
    }
    assert all(e.items == ITEMS and e.ci95[0] <= e.difference <= e.ci95[1] for e in effects)


def test_models_of_other_methods_are_not_compared() -> None:
    rows = [replace(row, method="lora") if row.model == "direct" else row for row in ROWS]
    effects = transfer_evidence(rows, TASKS, resamples=1000)[1]
    assert not [e for e in effects if e.kind != "step" and e.against == "direct"]
