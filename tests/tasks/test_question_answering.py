"""Questions with answers in words: read, split by context, saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quilate.config import validate
from quilate.errors import ConfigError
from quilate.tasks.kinds import load_task
from quilate.tasks.prepare import prepare
from quilate.tasks.question_answering import QuestionAnsweringConfig, QuestionTask


def prepared(rows: list[dict[str, Any]], **keys: Any) -> QuestionTask:
    value = {"kind": "question_answering", "name": "t", "text": "q", "context": "c", "answer": "a",
             "split": {"train": None, "dev": 2, "test": 3}, **keys}  # fmt: skip
    task = prepare(validate(QuestionAnsweringConfig, value, source="t"), {"all": rows}, {"all": {}})
    assert isinstance(task, QuestionTask)
    return task


def test_every_form_of_answer_and_what_is_dropped(tmp_path: Path) -> None:
    forms: list[Any] = ["año 1", ["año 1", "1", "1"], {"text": ["año 1"], "answer_start": [3]}, 1]
    rows = [{"q": f"¿Qué año, {n}?", "c": f"Contexto {n}.", "a": forms[n % 4]} for n in range(12)]
    rows += [{"q": "¿?", "c": "sin respuesta", "a": []}, {"q": "¿Y?", "c": "", "a": "x"}]
    task = prepared(rows)
    items = [*task.train, *task.dev, *task.test]
    assert {item.right_answers for item in items} == {("año 1",), ("año 1", "1"), ("1",)}
    assert all(item.context.removeprefix("Contexto ")[:-1] in item.text for item in items)
    assert (task.report["missing_label"], task.report["empty_text"], task.labels) == (1, 1, [])
    task.save(tmp_path / "t")
    assert load_task(tmp_path / "t") == task


def test_prompts_with_a_context_and_without() -> None:
    rows = [{"q": f"¿Año {n}?", "c": f"Fue en {n}.", "a": str(n)} for n in range(12)]
    template = prepared(rows).config.prompt_template()
    assert template.prompt("¿Año 3?", context="Fue en 3.") == "Fue en 3.\n\nPregunta: ¿Año 3?\nRespuesta:"
    alone = prepared(rows, context="").config.prompt_template()
    assert alone.demonstration("¿Año?", "sí") == "Pregunta: ¿Año?\nRespuesta: sí\n\n"


@pytest.mark.parametrize(
    ("keys", "named"),
    [({"context": "", "extractive": True}, "stretches of a context"), ({"language": "eu"}, "no default template")],
)
def test_unusable_settings_are_refused(keys: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        prepared([], **keys)
