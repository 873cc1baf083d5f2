"""Questions with options of their own: read from every usual form, dropped when they cannot be asked, never leaked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quilate.config import validate
from quilate.errors import ConfigError, DataError, GateError
from quilate.tasks.kinds import load_task
from quilate.tasks.multiple_choice import ChoiceTask, MultipleChoiceConfig, render_questions
from quilate.tasks.prepare import prepare


def config(**keys: Any) -> MultipleChoiceConfig:
    value = {
        "kind": "multiple_choice",
        "name": "t",
        "text": "q",
        "options": "o",
        "right": "r",
        "split": {"train": 8, "dev": 2, "test": 4},
        **keys,
    }
    return validate(MultipleChoiceConfig, value, source="t")


def row(n: int, **keys: Any) -> dict[str, Any]:
    return {"q": f"¿Cuál es la {n}?", "o": [f"la {n}", f"el año {n}", f"ñu {n}"], "r": 1 + n % 3} | keys


ROWS = [row(n) for n in range(14)]


def prepared(rows: list[dict[str, Any]], **keys: Any) -> ChoiceTask:
    task = prepare(config(**keys), {"all": rows}, {})
    assert isinstance(task, ChoiceTask)
    return task


def test_the_right_option_is_the_one_the_row_names() -> None:
    task = prepared(ROWS)
    for item in [*task.train, *task.dev, *task.test]:
        number = int(item.id.partition(":")[2]) - 1
        assert item.text == f"¿Cuál es la {number}?"
        assert item.options[item.right] == ROWS[number]["o"][number % 3]
        assert item.label == "ABC"[number % 3]
    assert task.labels == ["A", "B", "C"]
    assert (len(task.train), len(task.dev), len(task.test)) == (8, 2, 4)


@pytest.mark.parametrize(
    ("right_is", "said"),
    [("number", "2"), ("number", 2), ("index", 1), ("letter", "b"), ("letter", "B"), ("text", "el año 5")],
)
def test_every_way_of_naming_the_right_one(right_is: str, said: object) -> None:
    task = prepared([*ROWS, row(5, q="¿Y esta?", r=said)] if right_is == "number" else
                    [row(n, r={"index": 1, "letter": "B", "text": f"el año {n}"}[right_is]) for n in range(14)]
                    + [row(5, q="¿Y esta?", r=said)], right_is=right_is)  # fmt: skip
    asked = [item for item in [*task.train, *task.dev, *task.test] if item.text == "¿Y esta?"]
    assert all(item.options[item.right] == "el año 5" for item in asked)
    assert task.report["unusable_answer"] == 0


def test_options_from_columns_objects_and_templates() -> None:
    columns = [{"q": f"¿{n}?", "a": f"uno {n}", "b": "", "c": f"tres {n}", "r": "tres"} for n in range(14)]
    made = render_questions(config(options=["a", "b", "c"]), columns)
    assert made[3] == ("¿3?", ("uno 3", "tres 3"))
    objects = [{"q": "¿?", "o": [{"n": 1, "t": "sí"}, {"n": 2, "t": "no"}], "r": 1}]
    assert render_questions(config(option="t"), objects)[0] == ("¿?", ("sí", "no"))
    assert render_questions(config(option="{{ n }}: {{ t }}"), objects)[0] == ("¿?", ("1: sí", "2: no"))
    with pytest.raises(DataError, match="have no key 'texto'"):
        render_questions(config(option="texto"), objects)
    with pytest.raises(DataError, match="holds str, not a list"):
        render_questions(config(), [{"q": "¿?", "o": "a|b", "r": 1}])


def test_what_cannot_be_asked_is_dropped_and_counted() -> None:
    bad = [
        row(20, o=["sola"]),
        row(21, o=["igual", "igual", "otra"]),
        row(22, o=["sí", "", "no"]),
        row(23, r=9),
        row(24, r=0),
        row(25, r=None),
        row(26, q=" "),
    ]
    report = prepared([*ROWS, *bad]).report
    assert report["read"] == 21
    assert report["unusable_options"] == 3
    assert report["unusable_answer"] == 2
    assert report["missing_label"] == 1
    assert report["empty_text"] == 1
    assert report["unused"] == 0
    assert render_questions(config(), bad)[:3] == [None, None, None]


def test_the_same_question_with_other_options_is_another_item_and_shuffled_options_are_the_same() -> None:
    falsa = "Señale la respuesta FALSA:"
    parts = {
        "train": [row(n, q=falsa) for n in range(8)],
        "dev": [row(n, q=falsa) for n in range(8, 10)],
        "test": [row(n, q=falsa) for n in range(10, 14)],
    }
    assert not prepare(config(), parts, {}).report["allowed_leak"]
    shuffled = {**parts, "test": [*parts["test"], row(3, q=falsa, o=["ñu 3", "la 3", "el año 3"])]}
    with pytest.raises(GateError, match="1 of the 5 test items occur in train"):
        prepare(config(split={"test": 5, "dev": 2}), shuffled, {})


def test_labels_are_the_places_that_test_questions_have() -> None:
    parts = {
        "train": [row(n, o=[f"{c} {n}" for c in "abcde"]) for n in range(8)],
        "dev": [row(8), row(9)],
        "test": [row(n) for n in range(10, 14)],
    }
    task = prepare(config(), parts, {})
    assert task.labels == ["A", "B", "C"]
    assert task.report["never_tested"] == []


def test_it_is_saved_and_read_back_whole(tmp_path: Path) -> None:
    task = prepared(ROWS)
    task.save(tmp_path / "t")
    assert load_task(tmp_path / "t") == task


def test_prompts_in_both_forms() -> None:
    from quilate.inference.choice import Question, shown_options

    question = Question("¿Qué mide la báscula?", ("el peso", "la hora"))
    text, letter = config().prompt_template("text"), config().prompt_template("letter")
    assert text.prompt(question.text, shown_options(question, "text")) == (
        "Pregunta: ¿Qué mide la báscula?\nRespuesta:"
    )
    assert letter.prompt(question.text, shown_options(question, "letter")) == (
        "Pregunta: ¿Qué mide la báscula?\nA) el peso\nB) la hora\nRespuesta:"
    )
    assert letter.demonstration(question.text, "A", shown_options(question, "letter")).endswith("Respuesta: A\n\n")


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"letter_template": "{{ text }}?"}, "must contain {{ options }}"),
        ({"template": "sin nada"}, "must contain {{ text }}"),
        ({"options": ["a"]}, "at least two columns"),
        ({"language": "fr"}, "no default template"),
        ({"drop_leaks": True, "allow_leak": True}, "contradict"),
    ],
)
def test_unusable_settings_are_refused(keys: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        config(**keys)
