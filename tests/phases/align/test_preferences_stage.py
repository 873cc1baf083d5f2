"""Reading judgements as a stage: nothing lost uncounted, no conversation on both sides, no test item among them."""

from __future__ import annotations

from pathlib import Path

import pytest
from judged import Folder
from support import SENTENCES

from quilate.config import validate
from quilate.errors import DataError, GateError
from quilate.phases.align.preferences import PREFERENCES, stored_preferences
from quilate.tasks.classification import ClassificationConfig
from quilate.tasks.prepare import prepare


def test_every_prompt_is_on_one_side_and_what_is_left_out_is_counted(folder: Folder) -> None:
    rows = [
        {"prompt": f"{opening} ¿Y qué?", "chosen": f"a{n}", "rejected": f"b{n}", "group": None, "fuente": "xy"[n % 2]}
        for n, opening in enumerate(["Uno", "Dos", "Tres", "Cuatro", "Cinco", "Seis"] * 4)
    ]
    report = folder.judgements("otros", [*rows, rows[0] | {"chosen": ""}], where={"fuente": "x"}, max_held_out=2)
    train, held_out = (stored_preferences(folder.root / "otros", part) for part in ("train", "held_out"))
    assert {p.group for p in train} & {p.group for p in held_out} == set()
    assert len({p.prompt[0]["content"] for p in train + held_out}) == len(train) + len(held_out) == 3
    assert report.counts == {"filtered rows": 12, "a completion is empty": 1}
    assert report.facts["format"] == "pairs" and report.facts["train_pairs"] + report.facts["held_out_pairs"] == 12
    assert report.facts["source"]["path"] == "otros.jsonl"


def test_derived_judgements_are_marked_everywhere(folder: Folder) -> None:
    report = folder.judgements("reglas", [r | {"derived": n < 3} for n, r in enumerate(folder_rows())])
    assert report.facts["derived_prompts"] == 3
    report = folder.judgements("reglas", folder_rows(), derived=True)
    assert report.facts["derived_prompts"] == len(folder_rows())
    assert all(p.derived for p in stored_preferences(folder.root / "reglas", "train"))


def folder_rows() -> list[dict[str, str]]:
    return [{"prompt": f"Pregunta {n} sobre {n * n}", "chosen": "sí", "rejected": "no"} for n in range(12)]


def test_one_group_alone_leaves_nothing_to_train_on(folder: Folder) -> None:
    with pytest.raises(DataError, match="all of one group"):
        folder.judgements("uno", [r | {"group": "p"} for r in folder_rows()])


def test_a_test_item_among_the_prompts_stops_the_run(folder: Folder, tmp_path: Path) -> None:
    rows = [{"texto": f"{sentence} Caso {n}.", "etiqueta": "rd"[n % 2]} for n, sentence in enumerate(SENTENCES * 4)]
    value = {"name": "t", "text": "texto", "label": "etiqueta", "split": {"train": 20, "dev": 6, "test": 12}}
    task = prepare(validate(ClassificationConfig, value, source="t"), {"all": rows}, {"all": {}})
    task.save(tmp_path / "task" / "task")
    folder.judgements("fuga", [*folder_rows(), folder_rows()[0] | {"prompt": task.test[0].text}])
    config = {"preferences": {"path": "fuga.jsonl", "held_out": 0.3}}
    with pytest.raises(GateError, match="1 of 12 test items"):
        folder.run(PREFERENCES, "fuga", config, {"task": tmp_path / "task"})
    folder.run(PREFERENCES, "fuga", config | {"allow_leak": True}, {"task": tmp_path / "task"})
