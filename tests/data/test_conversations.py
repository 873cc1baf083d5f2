"""Conversations: every layout to one form, what is dropped by reason, OASST's best paths."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from quilate.data.conversations import convert, sniff_layout
from quilate.data.tables import SourceConfig, read_table
from quilate.errors import DataError

ASKED, SAID = "¿Qué es la otitis?", "Una inflamación del oído."
U, A, S = ({"role": r, "content": c} for r, c in (("user", ASKED), ("assistant", SAID), ("system", "Sé breve.")))

LAYOUTS: dict[str, tuple[dict[str, Any], list[dict[str, str]], int]] = {
    "messages": ({"messages": [S, U, A]}, [S, U, A], 0),
    "messages in parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": ASKED}]}, A]},
        [U, A],
        0,
    ),
    "prompt-completion": ({"prompt": ASKED, "completion": SAID}, [U, A], 1),
    "prompt-completion of messages": (
        {
            "prompt": [U, A, U],
            "completion": [{"role": "assistant", "content": "Otra vez: duele."}],
            "system": "Sé breve.",
        },
        [S, U, A, U, {"role": "assistant", "content": "Otra vez: duele."}],
        4,
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": SAID}], "system": "Sé breve."},
        [S, U, A],
        0,
    ),
    "alpaca": ({"instruction": ASKED, "input": "", "output": SAID}, [U, A], 0),
    "alpaca with input": (
        {"instruction": "Resume.", "input": "Texto con ñ.", "output": SAID, "history": [[ASKED, SAID]]},
        [U, A, {"role": "user", "content": "Resume.\n\nTexto con ñ."}, A],
        0,
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_becomes_messages(name: str) -> None:
    row, messages, context = LAYOUTS[name]
    layout = sniff_layout(list(row))
    assert name.startswith(layout)
    found = convert([row], layout)
    assert [(c.messages, c.context) for c in found.conversations] == [(messages, context)]
    assert not +found.counts


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([U, {"role": "assistant", "content": " \n"}], "empty turn"),
        ([U], "no assistant turn"),
        ([], "no messages"),
        ([S], "no assistant turn"),
        ([A, U], "user and assistant do not alternate"),
        ([U, U, A], "user and assistant do not alternate"),
        ([U, S, A], "user and assistant do not alternate"),
        ([U, {"role": "tool", "content": "x"}, A], "role is not system, user or assistant"),
        ([U, {"content": SAID}], "role is not system, user or assistant"),
        ([U, {"role": "assistant", "content": None}], "content is not text"),
        ([U, {"role": "assistant", "content": [{"type": "image"}]}], "content is not text"),
        (["hola"], "messages are not a list of objects"),
        (None, "messages are not a list of objects"),
    ],
)
def test_what_cannot_be_used_is_dropped_with_its_reason(messages: Any, reason: str) -> None:
    found = convert([{"messages": messages}, {"messages": [U, A]}], "messages")
    assert [c.id for c in found.conversations] == ["2"]
    assert +found.counts == {reason: 1}


def test_what_is_left_out_of_a_kept_conversation_is_counted_too() -> None:
    empty = {"role": "system", "content": ""}
    found = convert([{"messages": [empty, U, A, U]}, {"messages": [U, A]}], "messages")
    assert [c.messages for c in found.conversations] == [[U, A]]
    assert +found.counts == {
        "empty system prompt left out": 1,
        "last user turn without an answer left out": 1,
        "duplicate conversation": 1,
    }


def test_rows_in_another_language_are_dropped() -> None:
    found = convert([{"messages": [U, A], "lang": lang} for lang in ("es", "en")], "messages", language="es")
    assert len(found.conversations) == 1 and found.counts["in another language"] == 1


def test_groups_are_kept() -> None:
    rows = [{"prompt": f"{ASKED} {i}", "completion": SAID, "paciente": p} for i, p in enumerate([7, None])]
    assert [c.group for c in convert(rows, "prompt-completion", group="paciente").conversations] == ["7", None]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["prompt", "chosen", "rejected"], "these are preferences"),
        (["texto", "etiqueta"], "no known conversation format has the columns texto, etiqueta"),
    ],
)
def test_unknown_layouts_are_refused(columns: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        sniff_layout(columns)


def message(id: str, parent: str | None, text: str, **keys: Any) -> dict[str, Any]:
    depth_role = "prompter" if text.endswith("?") else "assistant"
    return {"message_id": id, "parent_id": parent, "text": text, "role": depth_role, "lang": "es", "rank": None,
            "message_tree_id": "r", "deleted": False} | keys  # fmt: skip


TREE = [
    message("r", None, "¿Duele?"),
    message("a", "r", "No.", rank=1),
    message("b", "r", "Sí.", rank=0),
    message("c", "a", "¿Seguro que no?"),
    message("d", "b", "¿Y mañana?"),
    message("e", "b", "¿Cuánto?"),
    message("f", "e", "Yes.", rank=0, lang="en"),
    message("g", "e", "Mucho.", rank=2),
    message("h", "e", "Bastante.", rank=1),
    message("i", "e", "Nada.", rank=0, deleted=True),
]
BEST = ["¿Duele?", "Sí.", "¿Cuánto?", "Bastante."]


def nested(id: str) -> dict[str, Any]:
    found = next(dict(m) for m in TREE if m["message_id"] == id)
    replies = [nested(m["message_id"]) for m in TREE if m["parent_id"] == id]
    return {k: v for k, v in found.items() if k not in ("parent_id", "message_tree_id")} | {"replies": replies}


@pytest.mark.parametrize("layout", ["oasst-messages", "oasst-trees"])
def test_the_best_ranked_path_of_a_tree(layout: str) -> None:
    """By hand: of the question's answers rank 0; of its replies, unranked, the one that was answered; of those answers
    the best that is not deleted and in the language."""
    rows = TREE if layout == "oasst-messages" else [{"message_tree_id": "r", "prompt": nested("r")}]
    assert sniff_layout(list(rows[0])) == layout
    found = convert(rows, layout, language="es")  # type: ignore[arg-type]
    [path] = found.conversations
    assert [m["content"] for m in path.messages] == BEST
    assert [m["role"] for m in path.messages] == ["user", "assistant"] * 2
    assert path.group == "r"
    assert +found.counts == {"messages off the best path": 6}
    assert [m["content"] for m in convert(rows, layout).conversations[0].messages] == [*BEST[:3], "Yes."]  # type: ignore[arg-type]
    assert convert(rows, layout, language="fr").counts["tree in another language"] == 1  # type: ignore[arg-type]


def test_broken_trees_lose_nothing_in_silence() -> None:
    rows = [
        *TREE[:3],
        message("x", "missing", "Sin padre."),
        message("y", "x", "¿Nieto?"),
        message("z", "nowhere", "Otro.", message_tree_id="q"),
        message("w", "z", "¿Y?", message_tree_id="q"),
    ]
    found = convert(rows, "oasst-messages")
    assert [[m["content"] for m in c.messages] for c in found.conversations] == [["¿Duele?", "Sí."]]
    assert +found.counts == {
        "message without its parent or its own name": 2,
        "message of a tree without its root": 1,
        "messages off the best path": 2,
    }
    circle = [message("r", None, "¿Duele?"), message("s", "s", "Sí.")]
    assert convert(circle, "oasst-messages").counts["no assistant turn"] == 1


def test_a_json_array_is_a_table(tmp_path: Path) -> None:
    rows = [{"instruction": ASKED, "output": SAID}, "nada", {"instruction": "año", "output": SAID, "extra": 1}]
    (tmp_path / "a.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    table = read_table(SourceConfig(path="a.json"), base=tmp_path)
    assert table.rows == [rows[0], rows[2]] and table.columns == ["instruction", "output", "extra"]
    assert table.notes["quarantined"] == {"not_an_object": 1}
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(json.dumps(rows[:1]).encode()))
    assert read_table(SourceConfig(path="b.json.gz"), base=tmp_path).rows == rows[:1]


@pytest.mark.parametrize(
    ("content", "message"),
    [('{"a": 1}', "not an array of objects"), ('[{"a": 1}', "not JSON"), ('{"a": 1}\n{"a": 2}', "not JSON")],
)
def test_a_broken_json_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_table(SourceConfig(path="a.json"), base=tmp_path)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "layout", "conversations"),
    [
        ("guanaco_es", "messages", 347),
        ("en_100_trees", "oasst-trees", 100),
        ("en_validation_messages", "oasst-messages", 188),
    ],
)
def test_the_real_oasst_files(name: str, layout: str, conversations: int) -> None:
    folder = Path(os.environ.get("QUILATE_DATA", "")) / "oasst1"
    if not folder.is_dir():
        pytest.skip("QUILATE_DATA does not name a folder with oasst1")
    table = read_table(SourceConfig(path=f"{name}.jsonl.gz"), base=folder)
    assert sniff_layout(table.columns) == layout
    found = convert(table.rows, layout)  # type: ignore[arg-type]
    assert len(found.conversations) == conversations
    for conversation in found.conversations:
        assert conversation.messages[-1]["role"] == "assistant"
