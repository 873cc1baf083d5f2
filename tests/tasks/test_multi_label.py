"""Texts with several labels: read from lists and texts, split, warned of, saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quilate.config import validate
from quilate.errors import DataError
from quilate.tasks.kinds import load_task
from quilate.tasks.multi_label import MultiLabelConfig, MultiLabelTask, indicators
from quilate.tasks.prepare import prepare


def prepared(rows: Any, **keys: Any) -> MultiLabelTask:
    value = {"kind": "multi_label", "name": "t", "text": "texto", "label": "temas",
             "split": {"train": None, "dev": 2, "test": 3}, **keys}  # fmt: skip
    config = validate(MultiLabelConfig, value, source="t")
    task = prepare(config, rows if isinstance(rows, dict) else {"all": rows}, {})
    assert isinstance(task, MultiLabelTask)
    return task


ROWS = [{"texto": f"Aviso número {n}, año {n}.", "temas": ["año", "ñu"][: n % 3]} for n in range(15)]


def test_lists_and_texts_give_the_same_items(tmp_path: Path) -> None:
    task = prepared(ROWS)
    wanted = {f"Aviso número {n}, año {n}.": ((), ("año",), ("año", "ñu"))[n % 3] for n in range(15)}
    items = [*task.train, *task.dev, *task.test]
    assert {item.text: item.labels for item in items} == wanted
    assert task.labels == task.trained_labels == ["año", "ñu"]
    as_text = [row | {"temas": " ; ".join([*row["temas"], *row["temas"]])} for row in ROWS]
    assert {i.text: i.labels for i in prepared(as_text, separator=";").train} == {i.text: i.labels for i in task.train}
    task.save(tmp_path / "t")
    assert load_task(tmp_path / "t") == task


def test_a_text_without_labels_is_an_item_and_one_without_words_is_not() -> None:
    task = prepared([*ROWS, {"texto": "Gracias."}, {"texto": " ", "temas": ["año"]}])
    assert [i.labels for i in (*task.train, *task.dev, *task.test) if i.text == "Gracias."] == [()]
    assert task.report["empty_text"] == 1


def test_labels_that_train_lacks_stay_to_be_found_and_are_warned_of() -> None:
    test = [{"texto": f"Prueba {n}.", "temas": ["año", "sólo aquí"]} for n in range(3)]
    task = prepared({"train": ROWS, "test": test})
    assert task.labels == ["año", "sólo aquí", "ñu"]
    assert task.trained_labels == ["año", "ñu"]
    warned = {warning["code"]: warning["values"] for warning in task.report["warnings"]}
    assert warned["unseen_text_labels"] == {"split": "test", "count": 3, "names": ["sólo aquí"]}
    assert warned["never_tested"]["names"] == ["ñu"]


def test_contradictions_are_counted_and_objects_refused() -> None:
    task = prepared([*ROWS, {"texto": "Aviso número 1, año 1.", "temas": ["ñu"]}])
    assert task.report["conflicting_labels"] == 1
    with pytest.raises(DataError, match="'temas' holds objects"):
        prepared([{"texto": "a", "temas": {"año": 1}}])
    with pytest.raises(DataError, match="no training item has anything under 'temas'"):
        prepared([{"texto": f"n {n}", "temas": []} for n in range(9)])


def test_indicators_by_hand() -> None:
    items = prepared(ROWS).train
    found = indicators(items, ["ñu", "otra", "año"])
    assert found.shape == (len(items), 3)
    np.testing.assert_array_equal(found[:, 0], ["ñu" in item.labels for item in items])
    assert not found[:, 1].any()
    assert indicators([], ["ñu"]).shape == (0, 1)
