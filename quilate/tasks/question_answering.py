"""Question answering: an answer is text, a stretch of a given context (extractive) or a model's own words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import model_validator

from quilate.tasks.classification import check_template
from quilate.tasks.columns import Row, TextColumn, columns_of, require_column
from quilate.tasks.labels import Item, cell_text
from quilate.tasks.task import AnswerMetric, CommonTaskConfig, Counts, ReadItem, Task
from quilate.tasks.templates import PromptTemplate

DEFAULT_TEMPLATES = {
    "es": "{% if context %}{{ context }}\n\n{% endif %}Pregunta: {{ text }}\nRespuesta:",
    "en": "{% if context %}{{ context }}\n\n{% endif %}Question: {{ text }}\nAnswer:",
}


@dataclass(frozen=True)
class AskedItem(Item):
    """A question, the context it is asked about ("" for none), and every answer that is right; `label` is empty."""

    context: str
    right_answers: tuple[str, ...]

    @property
    def content(self) -> str:
        return f"{self.context}\n{self.text}".strip()

    @property
    def labels(self) -> tuple[str, ...]:
        return ()

    @property
    def answers(self) -> tuple[str, ...]:
        return self.right_answers

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> AskedItem:
        return cls(**{**row, "right_answers": tuple(row["right_answers"])})


class QuestionAnsweringConfig(CommonTaskConfig):
    """A question-answering task: which columns hold the question, its context and its right answers."""

    kind: Literal["question_answering"]
    """A question is answered by text."""
    context: str = ""
    """Column that holds what the question is about, or a Jinja template over the columns; empty if there is none."""
    answer: str
    """Column that holds the right answer, a list of right answers, or SQuAD's object with such a list under `text`. A
    question without any is dropped and counted."""
    extractive: bool = False
    """Answers are stretches of the context: a grammar lets a model write nothing else (needs the extra `grammar`)."""
    template: str = ""
    """How a question is shown to a language model: Jinja with `{{ text }}` and `{{ context }}`. Default: the context,
    then `Pregunta: ... Respuesta:` in the task's language."""
    instruction: str = ""
    """What a language model reads once, before the demonstrations."""
    metric: AnswerMetric = "token_f1"
    """Score by which arms are compared, as SQuAD's own scorer computes them (Rajpurkar et al. 2016): `exact_match` of
    the normalized answer, or `token_f1`, the overlap of its words; with the right answer that fits best."""

    @model_validator(mode="after")
    def _usable_settings(self) -> QuestionAnsweringConfig:
        if self.extractive and not self.context:
            raise ValueError("extractive: answers are stretches of a context: name its column under `context:`")
        if self.template:
            check_template(self.template)
        elif self.language not in DEFAULT_TEMPLATES:
            raise ValueError(
                f"there is no default template for language '{self.language}' (only {', '.join(DEFAULT_TEMPLATES)}): "
                "give one under `template:`"
            )
        return self

    def prompt_template(self) -> PromptTemplate:
        """The template as configured or by language.

        Raises:
            ConfigError: it is not valid Jinja, uses unknown variables, or leaves the sandbox.
        """
        template = self.template or DEFAULT_TEMPLATES[self.language]
        return PromptTemplate(template, instruction=self.instruction, names=("text", "context"))

    def check(self) -> None:
        self.prompt_template()

    def question_reader(self, columns: Sequence[str]) -> QuestionReader:
        """How questions and contexts are read from rows of these columns, for training and prediction.

        Raises:
            DataError: a column is missing.
        """
        return QuestionReader(self, columns)

    def reader(self, rows: Sequence[Row], counts: Counts) -> ReadItem:
        columns = columns_of(rows)
        questions = self.question_reader(columns)
        require_column(self.answer, columns, role="answer")

        def read(row: Row, identity: str, group: str) -> Item | str:
            text, context = questions.of(row)
            if not text or (self.context and not context):
                return "empty_text"
            answers = _right_answers(row.get(self.answer))
            return AskedItem(identity, text, "", group, context, answers) if answers else "missing_label"

        return read

    def labels_of(self, parts: Mapping[str, Sequence[Item]], counts: Counts) -> list[str]:
        """None: answers are not of a fixed set."""
        return []


def _right_answers(value: Any) -> tuple[str, ...]:
    if isinstance(value, Mapping):
        value = value.get("text")
    parts = value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(text for part in parts if (text := cell_text(part))))


class QuestionReader:
    """Question and context of a row. See `QuestionAnsweringConfig.question_reader`."""

    def __init__(self, config: QuestionAnsweringConfig, columns: Sequence[str]) -> None:
        self._text = TextColumn(config.text, columns)
        self._context = TextColumn(config.context, columns) if config.context else None

    def of(self, row: Row) -> tuple[str, str]:
        return self._text.of(row), "" if self._context is None else self._context.of(row)


@dataclass(frozen=True)
class QuestionTask(Task):
    """A question-answering task ready to use. It has no labels."""

    config: QuestionAnsweringConfig
    train: Sequence[AskedItem]
    dev: Sequence[AskedItem]
    test: Sequence[AskedItem]
