"""From rows to a task: what is dropped is counted, what is wrong stops with a message that helps."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from quilate import faults
from quilate.config import validate
from quilate.data.tables import SourceConfig, read_table
from quilate.errors import ConfigError, DataError, GateError, MachineError
from quilate.tasks.classification import ClassificationConfig, render_texts
from quilate.tasks.kinds import load_task
from quilate.tasks.prepare import prepare

HEADQA_TEXT = "{{ qtext }}{% for a in answers %}\n{{ a.aid }}) {{ a.atext }}{% endfor %}"


def config(**keys: Any) -> ClassificationConfig:
    small = {"train": None, "dev": 4, "test": 10}
    value = {"name": "t", "text": "texto", "label": "etiqueta", "split": small, **keys}
    return validate(ClassificationConfig, value, source="tarea.yaml")


def row(number: int, label: str | None = None, **more: Any) -> dict[str, Any]:
    return {"texto": f"síntoma número {number}", "etiqueta": label or ("sí" if number % 2 else "no"), **more}


ROWS = [row(n) for n in range(60)]


def given_splits(**changes: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    parts = {"train": ROWS[:40], "dev": ROWS[40:45], "test": ROWS[45:]}
    return {**parts, **changes}


def test_everything_dropped_is_counted() -> None:
    rows = [
        *ROWS,
        row(100, texto=None),
        row(101, texto="  "),
        {"texto": "sin etiqueta"},
        row(102, etiqueta=""),
        {**row(103), "texto": "SÍNTOMA, número 1."},  # equal to row 1 after normalization
        {**row(104, "no"), "texto": "síntoma número 3"},  # and to row 3, with the other label
        row(105, edad=3),
    ]
    task = prepare(config(where={"edad": {"not_in": [3]}}), {"all": rows}, {"all": {"path": "x"}})
    report = task.report
    assert report["read"] == 67
    assert report["filtered"] == 1
    assert report["filtered_by"] == {"edad": 1}
    assert (report["empty_text"], report["missing_label"]) == (2, 2)
    assert report["duplicates_tied"] == 4
    assert report["conflicting_labels"] == 1
    assert [report["splits"][name]["items"] for name in ("train", "dev", "test")] == [48, 4, 10]
    used = sum(part["items"] for part in report["splits"].values())
    assert report["filtered"] + report["empty_text"] + report["missing_label"] + report["unused"] + used == 67
    assert report["sources"] == {"all": {"path": "x"}}
    json.dumps(report, allow_nan=False)


def test_counts_add_up_with_given_splits() -> None:
    parts = given_splits(dev=[*ROWS[40:45], row(200, "raro")], test=[*ROWS[45:], ROWS[0], row(201, "raro")])
    task = prepare(config(unseen_labels="drop", drop_leaks=True, split={"dev": 4, "test": 16}), parts, {})
    report = task.report
    assert report["unseen_label"] == {"dev": 1, "test": 1}
    assert report["dropped_leaks"] == {"train": 1, "dev": 0}
    assert report["leaks"]["train-test"]["items"] == 0
    used = sum(part["items"] for part in report["splits"].values())
    assert report["read"] == used + report["unused"] + 2 + 1
    assert report["unused"] == 1  # one dev row


def test_labels_ids_and_verbalizers() -> None:
    rows = [{**row(n), "etiqueta": float(n % 2)} for n in range(60)]
    task = prepare(config(labels={0: "negativo", 1: "positivo"}), {"all": rows}, {})
    assert (task.labels, task.verbalizers) == (["0", "1"], ["negativo", "positivo"])
    assert task.verbalizer("1") == "positivo"
    item = task.test[0]
    assert rows[int(item.id.removeprefix("all:")) - 1]["texto"] == item.text
    assert item.group == item.id
    assert task.prompt_template().prompt("tos") == "Texto: tos\nEtiqueta:"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"sí": " "}, "verbalizer of label 'sí' is empty"),
        ({"sí": "x", "no": "X"}, "labels 'sí', 'no' share the verbalizer 'x'"),
        ({"sí": "dos\nlíneas"}, "must be one line"),
        ({"sí": "no"}, "labels 'no', 'sí' share the verbalizer 'no'"),
        ({"si": "a"}, "no row has the label 'si': did you mean 'sí'"),
    ],
)
def test_unusable_verbalizers(labels: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        prepare(config(labels=labels), {"all": ROWS}, {})
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"template": "Texto: {{ text }} "}, "ends in a space or line break"),
        ({"template": "siempre lo mismo"}, "must contain {{ text }}"),
        ({"template": "{{ txt }}"}, "uses 'txt', which is not defined"),
        ({"template": "{{ text.__class__ }}"}, "sandbox"),
        ({"language": "fr"}, "no default template for language 'fr'"),
        ({"drop_leaks": True, "allow_leak": True}, "contradict each other"),
        ({"where": {"edad": {"mni": 2}}}, "unknown key 'mni': did you mean 'min'"),
        ({"text": "{{ texto.__class__ }}"}, "text: the template tries to leave its sandbox"),
    ],
)
def test_unusable_configs(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        task = prepare(config(**keys), {"all": ROWS}, {})
        task.prompt_template().prompt("x")


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ({"n": {"min": 2}}, [2, 3]),
        ({"n": {"min": 1, "max": 2.0}}, [1, 2]),
        ({"n": 3}, [3]),
        ({"n": [1, "3"]}, [1, 3]),
        ({"n": {"not_in": [1]}}, [2, 3, None]),
        ({"n": ""}, [None]),
        ({"n": {"min": 1}, "s": {"is_in": ["b"]}}, [2]),
    ],
)
def test_where(where: dict[str, Any], kept: list[int | None]) -> None:
    from quilate.tasks.columns import filter_rows

    for value in (int, str):  # csv cells are texts
        rows = [{"n": value(1), "s": "a"}, {"n": value(2), "s": "b"}, {"n": value(3), "s": "c"}, {"s": "d"}]
        result, dropped = filter_rows(rows, config(where=where).where)
        assert [None if "n" not in found else int(found["n"]) for _, found in result] == kept
        assert sum(dropped.values()) == 4 - len(kept)


def test_a_number_is_needed_for_min() -> None:
    with pytest.raises(DataError, match="where: etiqueta: row 1 does not hold a number"):
        prepare(config(where={"etiqueta": {"min": 1}}), {"all": ROWS}, {})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"text": "text"}, "text: the table has no column 'text': did you mean 'texto'"),
        ({"text": "{{ txto }}!"}, "text: the table has no column 'txto': did you mean 'texto'"),
        ({"label": "etiquetas"}, "label: the table has no column 'etiquetas': did you mean 'etiqueta'"),
        ({"group": "paciente"}, "group: the table has no column 'paciente'"),
        ({"where": {"nivel": 1}}, "where: the table has no column 'nivel'"),
    ],
)
def test_unknown_columns(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        prepare(config(**keys), {"all": ROWS}, {})
    assert caught.value.exit_code == 3
    assert "its columns are: texto, etiqueta" in str(caught.value)


def test_text_templates_see_missing_cells_as_nothing() -> None:
    rows = [{"título": "Nota", "texto": "dolor", "lista": [1, 2]}, {"texto": "tos"}]
    texts = render_texts(config(text="{{ row['título'] }}: {{ texto }} {{ lista }}"), rows)
    assert texts == ["Nota: dolor 1, 2", ": tos"]
    assert render_texts(config(), rows) == ["dolor", "tos"]


def test_unseen_labels_stop() -> None:
    parts = given_splits(test=[*ROWS[45:], row(200, "raro"), row(201, "raro"), row(202, "otro")])
    with pytest.raises(DataError, match=r"no training row has: test: 'otro' \(1 rows\), 'raro' \(2 rows\)") as caught:
        prepare(config(split={"dev": 4, "test": 100}), parts, {})
    assert "unseen_labels: drop" in str(caught.value)


def test_a_class_with_one_example_is_never_tested_and_said_so() -> None:
    task = prepare(config(), {"all": [*ROWS, row(300, "único")]}, {})
    assert task.report["never_tested"] == ["único"]
    assert task.report["warnings"][0]["code"] == "never_tested"
    assert "único" in task.labels


@pytest.mark.parametrize(
    ("leak", "kind"),
    [
        ({"texto": "Síntoma: NÚMERO 3"}, "1 equal, 0 overlapping, 0 of a shared group"),
        ({"p": "p3"}, "1 of a shared group"),
    ],
)
def test_given_splits_that_leak_stop(leak: dict[str, str], kind: str) -> None:
    rows = [{**r, "p": f"p{n}"} for n, r in enumerate(ROWS)]
    parts = {"train": rows[:40], "dev": rows[40:45], "test": [*rows[45:], {**row(500, "sí"), "p": "p500", **leak}]}
    sizes = {"dev": 4, "test": 100}
    with pytest.raises(GateError, match="1 of the 16 test items occur in train") as caught:
        prepare(config(group="p", split=sizes), parts, {})
    assert caught.value.exit_code == 5
    assert kind in str(caught.value)
    allowed = prepare(config(group="p", split=sizes, allow_leak=True), parts, {})
    assert allowed.report["leaks"]["train-test"]["items"] == 1
    assert allowed.report["allowed_leak"] is True
    assert "splits_leak" in [warning["code"] for warning in allowed.report["warnings"]]
    dropped = prepare(config(group="p", split=sizes, drop_leaks=True), parts, {})
    assert len(dropped.train) == 39
    assert dropped.report["allowed_leak"] is False


def test_a_carved_dev_does_not_hide_a_group_leak() -> None:
    rows = [{**r, "p": f"p{n}"} for n, r in enumerate(ROWS)]
    same_text = [{**rows[1], "p": "p0"}, {**rows[1], "p": "p9"}]  # ties p0 and p9 while dev is carved
    parts = {"train": [*rows[2:9], *rows[10:40], *same_text], "test": [*rows[45:], {**row(500), "p": "p9"}]}
    with pytest.raises(GateError, match="1 of a shared group"):
        prepare(config(group="p", split={"dev": 4, "test": 100}), parts, {})


def test_splits_made_here_never_leak() -> None:
    rows = [{**row(n), "texto": ("Nota {}!" if n % 3 else "nota {}").format(n // 3)} for n in range(300)]
    task = prepare(config(split={"dev": 20, "test": 40}), {"all": rows}, {})
    assert all(found["items"] == 0 for found in task.report["leaks"].values())
    assert task.report["duplicates_tied"] == 300
    assert task.report["splits"]["test"]["duplicates"] > 0


def test_short_train_warns_and_uses_what_there_is() -> None:
    task = prepare(config(split={"train": 500, "dev": 4, "test": 10}), {"all": ROWS}, {})
    assert len(task.train) == 46
    assert task.report["warnings"] == [
        {"code": "fewer_rows", "values": {"split": "train", "asked": 500, "available": 46}}
    ]


def test_rows_that_cannot_make_a_task() -> None:
    with pytest.raises(DataError, match="all: none of the 60 rows is usable: 60 dropped by `where`"):
        prepare(config(where={"etiqueta": "quizás"}), {"all": ROWS}, {})
    with pytest.raises(DataError, match="the source has no test file"):
        prepare(config(), {"train": ROWS}, {})


def test_save_and_load(tmp_path: Path) -> None:
    rows = [*ROWS, {**row(400), "texto": "línea\u2028separada \x85 ñ 😀\nfin"}]
    task = prepare(config(labels={"sí": "afirmativo"}), {"all": rows}, {"all": {"path": "ñ.csv"}})
    task.save(tmp_path / "tarea")
    assert load_task(tmp_path / "tarea") == task
    assert stat.S_IMODE((tmp_path / "tarea").stat().st_mode) == 0o700
    before = {path.name: path.read_bytes() for path in (tmp_path / "tarea").iterdir()}
    assert sorted(before) == ["dev.jsonl", "task.json", "test.jsonl", "train.jsonl"]
    prepare(task.config, {"all": rows}, {"all": {"path": "ñ.csv"}}).save(tmp_path / "tarea")
    assert {path.name: path.read_bytes() for path in (tmp_path / "tarea").iterdir()} == before


def test_damaged_saved_task_and_full_disk(tmp_path: Path) -> None:
    task = prepare(config(), {"all": ROWS}, {})
    folder = tmp_path / "t"
    task.save(folder)
    lines = (folder / "test.jsonl").read_text().splitlines(keepends=True)
    (folder / "test.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(DataError, match="do not have the sizes"):
        load_task(folder)
    (folder / "test.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(DataError, match="does not hold a whole task"):
        load_task(folder)
    (folder / "test.jsonl").unlink()
    with pytest.raises(DataError, match="does not exist"):
        load_task(folder)
    task.save(folder)
    faults.arm("files.write", "disk-full", nth=2)
    try:
        with pytest.raises(MachineError, match="the disk is full"):
            task.save(folder)
    finally:
        faults.disarm()
    assert load_task(folder) == task  # the earlier one is untouched


def test_icd10_siblings_never_straddle() -> None:
    try:
        table = read_table(SourceConfig(path="package:cie"), base=Path())
    except MachineError as error:
        pytest.skip(error.message)
    task = prepare(
        config(
            text="description",
            label="chapter_code",
            group="category",
            where={"level": {"min": 2}},
            split={"train": 600, "dev": 200, "test": 500},
        ),
        {"all": table.rows},
        {"all": table.notes},
    )
    assert [len(part) for part in (task.train, task.dev, task.test)] == [600, 200, 500]
    assert len(task.labels) == 21
    assert task.report["filtered"] == 230
    categories = [
        {table.rows[int(item.id.removeprefix("all:")) - 1]["category"] for item in part}
        for part in (task.train, task.dev, task.test)
    ]
    assert not categories[0] & categories[1]
    assert not categories[0] & categories[2]
    assert not categories[1] & categories[2]
    assert all(found["items"] == 0 for found in task.report["leaks"].values())
    assert task.report["never_tested"] == []
    assert task.report["splits"]["test"]["groups"] > 200


@pytest.mark.data
def test_headqa_official_splits() -> None:
    """No item is an exact copy, but 4 test items overlap train by their 13-word n-grams: the gate finds them."""
    if not os.environ.get("QUILATE_DATA"):
        pytest.skip("QUILATE_DATA is not set: it names the folder with the real data sets")
    rows = {
        name: read_table(SourceConfig(path=f"${{QUILATE_DATA}}/headqa/es_{name}.jsonl.gz"), base=Path()).rows
        for name in ("train", "dev", "test")
    }
    keys: dict[str, Any] = {"text": HEADQA_TEXT, "label": "category", "where": {"image": ""}}
    whole = {"train": None, "dev": 1366, "test": 2742}
    with pytest.raises(GateError, match=r"4 of the 2675 test items occur in train \(0 equal, 4 overlapping"):
        prepare(config(**keys, split=whole), rows, {})
    clean = prepare(config(**keys, split=whole, drop_leaks=True), rows, {})
    assert clean.report["dropped_leaks"] == {"train": 4, "dev": 1}
    demo = prepare(config(**keys, split={"train": 800, "test": 600}, drop_leaks=True), rows, {})
    assert [len(part) for part in (demo.train, demo.dev, demo.test)] == [800, 200, 600]
    assert demo.labels == ["biology", "chemistry", "medicine", "nursery", "pharmacology", "psychology"]
    shares = [count / 600 for count in demo.report["splits"]["test"]["labels"].values()]
    official = [454, 458, 396, 455, 457, 455]
    assert all(abs(share - count / 2675) < 1 / 600 for share, count in zip(shares, official, strict=True))
    questions_only = config(text="qtext", label="category", where={"image": ""}, split=whole)
    with pytest.raises(GateError, match=r"\d+ equal"):  # short stems such as "La piruvato carboxilasa:" repeat
        prepare(questions_only, rows, {})
