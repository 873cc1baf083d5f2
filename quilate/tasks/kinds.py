"""Every kind of task there is, by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from quilate.config import Config, validate
from quilate.errors import DataError
from quilate.files import read_json, read_jsonl
from quilate.tasks.classification import ClassificationConfig, ClassificationTask
from quilate.tasks.extraction import Document, ExtractionConfig, ExtractionTask
from quilate.tasks.labels import Item
from quilate.tasks.multi_label import LabelledText, MultiLabelConfig, MultiLabelTask
from quilate.tasks.multiple_choice import ChoiceItem, ChoiceTask, MultipleChoiceConfig
from quilate.tasks.question_answering import AskedItem, QuestionAnsweringConfig, QuestionTask
from quilate.tasks.task import SPLITS, Task

TASKS: dict[str, type[Task]] = {
    "classification": ClassificationTask,
    "multi_label": MultiLabelTask,
    "multiple_choice": ChoiceTask,
    "extraction": ExtractionTask,
    "question_answering": QuestionTask,
}
_ITEMS: dict[str, type[Item]] = {
    "classification": Item,
    "multi_label": LabelledText,
    "multiple_choice": ChoiceItem,
    "extraction": Document,
    "question_answering": AskedItem,
}


def _classification_by_default(value: Any) -> Any:
    return {"kind": "classification", **value} if isinstance(value, Mapping) else value


TaskConfig = Annotated[
    ClassificationConfig | MultiLabelConfig | MultipleChoiceConfig | ExtractionConfig | QuestionAnsweringConfig,
    Field(discriminator="kind"),
    BeforeValidator(_classification_by_default),
]


class _Saved(Config):
    config: TaskConfig


def load_task(folder: Path) -> Task:
    """Read what `Task.save` wrote.

    Raises:
        DataError: a file is missing, altered, or does not agree with the others.
    """
    head = read_json(folder / "task.json")
    try:
        config = validate(_Saved, {"config": head["config"]}, source=str(folder / "task.json")).config
        parts = {
            name: [_ITEMS[config.kind].from_json(row) for row in read_jsonl(folder / f"{name}.jsonl")]
            for name in SPLITS
        }
        task = TASKS[config.kind](config, head["labels"], **parts, report=head["report"])
        counts = {name: part["items"] for name, part in task.report["splits"].items()}
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder} does not hold a whole task", hint="remove it and run again") from error
    if counts != {name: len(parts[name]) for name in SPLITS}:
        raise DataError(
            f"{folder}: the splits do not have the sizes that task.json records", hint="remove it and run again"
        )
    return task
