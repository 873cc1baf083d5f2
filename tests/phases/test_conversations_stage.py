"""The conversations stage: templates over columns, whole groups held out, leaks, and files that give nothing."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from support import SENTENCES

from quilate.data.conversations import Conversation
from quilate.engine.interrupts import StopRequest
from quilate.errors import DataError, GateError
from quilate.phases.conversations import (
    CONVERSATIONS,
    ConversationsConfig,
    ConversationsStageConfig,
    load_conversations,
    split_by_group,
    stored_conversations,
)
from quilate.phases.stage import StageContext, StageReport
from quilate.tasks.classification import ClassificationConfig
from quilate.tasks.kinds import load_task
from quilate.tasks.prepare import prepare


def conversation(id: str, asked: str, group: str | None = None) -> Conversation:
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": f"Respuesta {id}."}]
    return Conversation(id, messages, group=group)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def run(folder: Path, *, allow_leak: bool = False, **config: Any) -> StageReport:
    settings = ConversationsStageConfig(
        conversations=ConversationsConfig(path="c.jsonl", **config), allow_leak=allow_leak
    )
    inputs = {"task": folder} if (folder / "task").exists() else {}
    return CONVERSATIONS.run(
        StageContext(settings, inputs, folder, 0, folder, lambda _: None, lambda _: None, StopRequest())
    )


def test_templates_make_conversations_of_any_table(tmp_path: Path) -> None:
    with (tmp_path / "casos.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["caso", "opción", "razón"], ["Niña con tos", "Asma", "Por los pitidos."]])
    config = ConversationsConfig(
        path="casos.csv", prompt="{{ caso }}. ¿{{ opción }}?", completion="razón", system="{{ 'Eres médica.' }}"
    )
    [found] = load_conversations(config, tmp_path).conversations
    assert [tuple(m.values()) for m in found.messages] == [
        ("system", "Eres médica."), ("user", "Niña con tos. ¿Asma?"), ("assistant", "Por los pitidos."),
    ]  # fmt: skip
    assert found.context == 2


@pytest.mark.parametrize("name", ["c.parquet", "c.json", "c.jsonl.zst"])
def test_every_kind_of_file_gives_the_same(tmp_path: Path, name: str) -> None:
    import pyarrow
    from pyarrow import parquet

    turns = [{"role": "user", "content": "¿Año?"}, {"role": "assistant", "content": "Éste."}]
    rows = [{"messages": turns}]
    if name.endswith("parquet"):
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / name)
    else:
        content = (json.dumps(rows if name.endswith("json") else rows[0], ensure_ascii=False) + "\n").encode()
        packed = pyarrow.compress(content, codec="zstd", asbytes=True) if name.endswith("zst") else content
        (tmp_path / name).write_bytes(packed)
    [found] = load_conversations(ConversationsConfig(path=name), tmp_path).conversations
    assert found == Conversation("1", turns)


def test_groups_and_like_questions_are_held_out_whole() -> None:
    """Two groups, one question asked twice in other words' case, one long question with a word more."""
    long = " ".join(SENTENCES[:2])
    alike = [("a", "¿Qué es la tos?"), ("b", "¿QUÉ ES LA TOS?"), ("c", long), ("d", f"{long} Gracias.")]
    found = [conversation(id, asked) for id, asked in alike]
    found += [conversation(f"g{i}", f"Pregunta {i} de un grupo.", group=f"p{i % 3}") for i in range(12)]
    for share in (0.1, 0.3, 0.5, 0.7):
        train, held_out = split_by_group(found, share)
        assert len(train) + len(held_out) == len(found)
        assert len(held_out) >= share * len(found)
        sides = [{c.id for c in side} for side in (train, held_out)]
        for together in ({"a", "b"}, {"c", "d"}, *({f"g{i}" for i in range(k, 12, 3)} for k in range(3))):
            assert any(together <= side for side in sides)
    assert split_by_group(found[::-1], 0.3)[1] == split_by_group(found, 0.3)[1][::-1]
    assert split_by_group(found, 1.0) == ([], found)


def test_the_stage_counts_and_keeps(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": f"{s} ¿Y?", "completion": "Ya.", "año": i} for i, s in enumerate(SENTENCES)
    ]
    write(tmp_path / "c.jsonl", [*rows, {"prompt": "nada", "completion": ""}])
    report = run(tmp_path, held_out=0.5, max_held_out=4, where={"año": {"max": 9}}, max_conversations=9)
    assert report.counts == {
        "filtered rows": 3,  # two of a later year, one of none
        "beyond max_conversations": 1,
        "held out and beyond max_held_out": 1,
    }
    train, held_out = (stored_conversations(tmp_path, part) for part in ("train", "held_out"))  # type: ignore[arg-type]
    assert (len(train), len(held_out)) == (4, 4) == (
        report.facts["train_conversations"], report.facts["held_out_conversations"],
    )  # fmt: skip
    assert {c.messages[0]["content"] for c in train + held_out} <= {row["prompt"] for row in rows}
    assert train[0].context == 1


def test_a_test_item_in_a_conversation_stops_the_run(tmp_path: Path) -> None:
    rows = [{"texto": f"{s} Nota {n}.", "etiqueta": "ab"[n % 2]} for n, s in enumerate(SENTENCES * 3)]
    config = ClassificationConfig(name="t", text="texto", label="etiqueta", split={"train": 12, "dev": 4, "test": 8})
    prepare(config, {"all": rows}, {"all": {}}).save(tmp_path / "task")
    leaked = load_task(tmp_path / "task").test[0].text
    write(tmp_path / "c.jsonl", [{"prompt": f"¿Qué tal {n}?", "completion": leaked.upper() if n == 3 else f"Bien {n}."}
                                 for n in range(8)])  # fmt: skip
    with pytest.raises(GateError, match="1 of 8 test items"):
        run(tmp_path)
    assert run(tmp_path, allow_leak=True).facts["train_conversations"] == 7


@pytest.mark.parametrize(
    ("rows", "config", "message"),
    [
        (
            [{"messages": [{"role": "user", "content": "solo"}]}] * 3,
            {},
            "not one of 3 rows gives a conversation .3 no assist",
        ),
        ([{"prompt": "a", "completion": "b", "lang": "en"}], {"language": "es"}, "1 in another language"),
        ([{"prompt": "Di: a", "completion": c} for c in "bc"], {}, "2 conversations are all alike"),
        ([{"texto": "a"}], {}, "no known conversation format has the columns texto"),
        ([{"texto": "a"}], {"prompt": "testo", "completion": "texto"}, "did you mean 'texto'"),
    ],
)
def test_files_that_give_nothing_say_why(
    tmp_path: Path, rows: list[dict[str, Any]], config: dict[str, Any], message: str
) -> None:
    write(tmp_path / "c.jsonl", rows)
    with pytest.raises(DataError, match=message):
        run(tmp_path, **config)
