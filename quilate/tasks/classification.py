"""Classification: every text has one label of a fixed set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from quilate.errors import DataError
from quilate.tasks.columns import Row, TextColumn, columns_of, require_column
from quilate.tasks.labels import Item, cell_text, check_verbalizers, verbalizers_of
from quilate.tasks.task import CommonTaskConfig, Counts, LabelMetric, ReadItem, Task
from quilate.tasks.templates import PromptTemplate
from quilate.tokenization.sandbox import is_template

DEFAULT_TEMPLATES = {"es": "Texto: {{ text }}\nEtiqueta:", "en": "Text: {{ text }}\nLabel:"}


class ClassificationConfig(CommonTaskConfig):
    """A classification task: which columns, which rows, how it is split, how a language model sees it."""

    kind: Literal["classification"] = "classification"
    """One label a text. `multi_label`, `multiple_choice`, `extraction` and `question_answering` are the other
    kinds."""
    label: str
    """Column that holds the label."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Short text that stands for each label in prompts; by default the label itself."""
    template: str = ""
    """How an item is shown to a language model, a Jinja template with `{{ text }}` and optionally `{{ labels }}`. The
    label is written after it, with one space between. Default: `Texto: ... Etiqueta:` in the task's language."""
    instruction: str = ""
    """What a language model reads once, before the demonstrations."""
    metric: LabelMetric = "accuracy"
    """Score by which arms are compared."""
    unseen_labels: Literal["stop", "drop"] = "stop"
    """What to do with dev and test rows whose label no training row has."""

    @field_validator("labels", mode="before")
    @classmethod
    def _number_labels(cls, value: Any) -> Any:
        """In YAML `0: negativo` has a number for a key; labels are texts."""
        if not isinstance(value, Mapping):
            return value
        return {cell_text(key) if isinstance(key, (int, float)) else key: text for key, text in value.items()}

    @field_validator("labels")
    @classmethod
    def _usable_verbalizers(cls, value: dict[str, str]) -> dict[str, str]:
        check_verbalizers(value)
        return value

    @model_validator(mode="after")
    def _usable_template(self) -> ClassificationConfig:
        if not self.template and self.language not in DEFAULT_TEMPLATES:
            raise ValueError(
                f"there is no default template for language '{self.language}' (only {', '.join(DEFAULT_TEMPLATES)}): "
                "give one under `template:`"
            )
        if self.template:
            check_template(self.template)
        return self

    def prompt_template(self, verbalizers: Sequence[str] = ()) -> PromptTemplate:
        """The template as configured or by language.

        Raises:
            ConfigError: it is not valid Jinja, uses unknown variables, or leaves the sandbox.
        """
        template = self.template or DEFAULT_TEMPLATES[self.language]
        return PromptTemplate(template, instruction=self.instruction, verbalizers=verbalizers)

    def check(self) -> None:
        self.prompt_template()

    def reader(self, rows: Sequence[Row], counts: Counts) -> ReadItem:
        columns = columns_of(rows)
        text_of = TextColumn(self.text, columns)
        require_column(self.label, columns, role="label")
        counts.label_values |= {cell_text(row.get(self.label)) for row in rows} - {""}

        def read(row: Row, identity: str, group: str) -> Item | str:
            text, label = text_of.of(row), cell_text(row.get(self.label))
            if not text or not label:
                return "empty_text" if not text else "missing_label"
            return Item(identity, text, label, group)

        return read

    def usable(self, pools: dict[str, list[Item]], counts: Counts) -> dict[str, list[Item]]:
        known = {item.label for item in pools["train"]}
        if self.unseen_labels == "stop":
            return pools
        kept = {name: [item for item in pool if item.label in known] for name, pool in pools.items()}
        counts.unseen_label |= {n: len(pools[n]) - len(kept[n]) for n in ("dev", "test") if n in pools}
        return kept

    def labels_of(self, parts: Mapping[str, Sequence[Item]], counts: Counts) -> list[str]:
        _refuse_unseen(parts)
        counts.note_never_tested(parts)
        labels = sorted({item.label for item in parts["train"]})
        verbalizers_of(labels, self.labels, known=counts.label_values)
        return labels


def render_texts(config: ClassificationConfig, rows: Sequence[Row]) -> list[str]:
    """The texts of rows that need no label, for prediction; "" where there is none.

    Raises:
        DataError: the text column is missing; the message names the nearest.
    """
    reader = TextColumn(config.text, columns_of(rows))
    return [reader.of(row) for row in rows]


def check_template(template: str) -> None:
    """Refuse a template that cannot serve as a prompt.

    Raises:
        ValueError: it does not show the text, or ends in white space.
    """
    if not is_template(template):
        raise ValueError("template: it must contain {{ text }}, or every prompt would be the same")
    if template != template.rstrip():
        raise ValueError("template: it ends in a space or line break, but a space and the label follow it; use `|-`")


@dataclass(frozen=True)
class ClassificationTask(Task):
    """A classification task ready to use. `labels` is sorted, `verbalizers` aligned with it."""

    config: ClassificationConfig

    @property
    def verbalizers(self) -> list[str]:
        return [self.verbalizer(label) for label in self.labels]

    def verbalizer(self, label: str) -> str:
        """The short text that stands for a label."""
        return self.config.labels.get(label, label)

    def prompt_template(self) -> PromptTemplate:
        """The prompts of this task, its verbalizers filled in."""
        return self.config.prompt_template(self.verbalizers)


def _refuse_unseen(parts: Mapping[str, Sequence[Item]]) -> None:
    known = {item.label for item in parts["train"]}
    unseen = {name: Counter(item.label for item in parts[name] if item.label not in known) for name in ("dev", "test")}
    if any(unseen.values()):
        listed = "; ".join(
            f"{name}: " + ", ".join(f"'{label}' ({count} rows)" for label, count in sorted(found.items()))
            for name, found in unseen.items()
            if found
        )
        raise DataError(
            f"labels that no training row has: {listed}",
            hint="add training rows of these labels, raise split.train, exclude them with `where`, "
            "or set unseen_labels: drop",
        )
