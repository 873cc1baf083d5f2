"""Multiple choice: every question has options of its own, and one of them is right.

An answer is the place of an option, named by a letter. What a language model writes is the option's text, or its letter
after a prompt that lists the options.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import field_validator, model_validator

from quilate.errors import DataError
from quilate.tasks.classification import check_template
from quilate.tasks.columns import Row, TextColumn, columns_of, require_column
from quilate.tasks.labels import Item, cell_text
from quilate.tasks.task import CommonTaskConfig, Counts, ReadItem, Task
from quilate.tasks.templates import PromptTemplate
from quilate.tokenization.sandbox import SandboxedTemplate, is_template

LETTERS = string.ascii_uppercase

AnswerForm = Literal["text", "letter"]  # what a model writes for an option

DEFAULT_TEMPLATES: dict[AnswerForm, dict[str, str]] = {
    "text": {"es": "Pregunta: {{ text }}\nRespuesta:", "en": "Question: {{ text }}\nAnswer:"},
    "letter": {
        "es": "Pregunta: {{ text }}{% for option in options %}\n{{ option }}{% endfor %}\nRespuesta:",
        "en": "Question: {{ text }}{% for option in options %}\n{{ option }}{% endfor %}\nAnswer:",
    },
}


@dataclass(frozen=True)
class ChoiceItem(Item):
    """A question; `label` is the letter of the right one of its `options`."""

    options: tuple[str, ...]

    @property
    def content(self) -> str:
        """The question and its options in one order: the same ones shuffled are the same item."""
        return "\n".join([self.text, *sorted(self.options)])

    @property
    def right(self) -> int:
        return LETTERS.index(self.label)

    @property
    def answers(self) -> tuple[str, ...]:
        return (self.options[self.right],)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> ChoiceItem:
        return cls(**{**row, "options": tuple(row["options"])})


class MultipleChoiceConfig(CommonTaskConfig):
    """A multiple-choice task: which columns hold the question, its options and the right one."""

    kind: Literal["multiple_choice"]
    """Every question has its own options, one of which is right."""
    options: str | list[str]
    """Column that holds a list of options, or several columns (or Jinja templates) with one option each; empty ones
    of these are left out."""
    option: str = ""
    """Where the options are objects: the key that holds their text, or a Jinja template over their keys."""
    right: str
    """Column that says which option is right."""
    right_is: Literal["number", "index", "letter", "text"] = "number"
    """How it says so: counted from 1, counted from 0, as a letter, or as the option's text."""
    template: str = ""
    """How a question is shown to a language model that answers with an option's text: Jinja with `{{ text }}` and
    optionally `{{ options }}`. Default: `Pregunta: ... Respuesta:` in the task's language."""
    letter_template: str = ""
    """The same for arms that answer with a letter (`answer: letter`); here each of `{{ options }}` begins with its
    letter, `A) ...`. By default the options stand below the question, one a line."""
    instruction: str = ""
    """What a language model reads once, before the demonstrations."""
    metric: Literal["accuracy"] = "accuracy"
    """Score by which arms are compared."""

    @field_validator("options")
    @classmethod
    def _at_least_two_columns(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, list) and len(value) < 2:
            raise ValueError("give one column that holds a list, or at least two columns with an option each")
        return value

    @model_validator(mode="after")
    def _usable_templates(self) -> MultipleChoiceConfig:
        for form, template in (("text", self.template), ("letter", self.letter_template)):
            if template:
                check_template(template)
            elif self.language not in DEFAULT_TEMPLATES["text"]:
                raise ValueError(
                    f"there is no default template for language '{self.language}' "
                    f"(only {', '.join(DEFAULT_TEMPLATES['text'])}): give `template:` and `letter_template:`"
                )
            if form == "letter" and template and "options" not in template:
                raise ValueError("letter_template: it must contain {{ options }}, or a letter would stand for nothing")
        return self

    def prompt_template(self, form: AnswerForm) -> PromptTemplate:
        """The template of one form of answer, as configured or by language.

        Raises:
            ConfigError: it is not valid Jinja, uses unknown variables, or leaves the sandbox.
        """
        template = (self.template if form == "text" else self.letter_template) or DEFAULT_TEMPLATES[form][self.language]
        return PromptTemplate(template, instruction=self.instruction, names=("text", "options"))

    def check(self) -> None:
        self.prompt_template("text")
        self.prompt_template("letter")

    def question_reader(self, columns: Sequence[str]) -> QuestionReader:
        """How questions and options are read from rows of these columns, for training and prediction.

        Raises:
            DataError: a column is missing.
        """
        return QuestionReader(self, columns)

    def reader(self, rows: Sequence[Row], counts: Counts) -> ReadItem:
        columns = columns_of(rows)
        questions = self.question_reader(columns)
        require_column(self.right, columns, role="right")

        def read(row: Row, identity: str, group: str) -> Item | str:
            text, options = questions.of(row)
            if not text:
                return "empty_text"
            if not usable_options(options):
                return "unusable_options"
            said = cell_text(row.get(self.right))
            if not said:
                return "missing_label"
            right = self._right(said, options)
            if right is None:
                return "unusable_answer"
            return ChoiceItem(identity, text, LETTERS[right], group, options)

        return read

    def _right(self, said: str, options: tuple[str, ...]) -> int | None:
        """The place of the right option; None if what is said names none."""
        match self.right_is:
            case "letter":
                place = LETTERS.find(said.upper()) if len(said) == 1 else -1
            case "text":
                place = options.index(said) if said in options else -1
            case _:
                place = int(said) - (self.right_is == "number") if said.isdecimal() else -1
        return place if 0 <= place < len(options) else None

    def labels_of(self, parts: Mapping[str, Sequence[Item]], counts: Counts) -> list[str]:
        """The letters of the places that development and test questions have."""
        asked = [item for name in ("dev", "test") for item in parts[name] if isinstance(item, ChoiceItem)]
        return list(LETTERS[: max(len(item.options) for item in asked)])


def usable_options(options: Sequence[str]) -> bool:
    """Whether a question can be asked: two options at least, none empty, no two equal, a letter for each."""
    return 2 <= len(options) <= len(LETTERS) and all(options) and len(set(options)) == len(options)


class QuestionReader:
    """Question and options of a row. See `MultipleChoiceConfig.question_reader`."""

    def __init__(self, config: MultipleChoiceConfig, columns: Sequence[str]) -> None:
        self._text = TextColumn(config.text, columns)
        self._list: str | None = None
        self._parts: list[TextColumn] = []
        if isinstance(config.options, str):
            self._list = config.options
            require_column(config.options, columns, role="options")
        else:
            self._parts = [TextColumn(option, columns) for option in config.options]
        self._option = config.option
        self._template = SandboxedTemplate(config.option, name="option") if is_template(config.option) else None

    def of(self, row: Row) -> tuple[str, tuple[str, ...]]:
        """The question ("" if there is none) and its options, as they stand.

        Raises:
            DataError: the options are no list, or an option lacks the key that should hold its text.
        """
        text = self._text.of(row)
        if self._list is None:
            return text, tuple(option for part in self._parts if (option := part.of(row)))
        options = row.get(self._list) or []
        if not isinstance(options, list):
            raise DataError(
                f"options: the column '{self._list}' holds {type(options).__name__}, not a list",
                hint="name one column an option: `options: [a, b, c]`, or give the rows as jsonl or parquet",
            )
        return text, tuple(self._text_of(option) for option in options)

    def _text_of(self, option: Any) -> str:
        if not isinstance(option, Mapping):
            return cell_text(option)
        if self._template is not None:
            return self._template.render(**option).strip()
        if self._option not in option:
            raise DataError(
                f"option: the options are objects, and have no key '{self._option}'",
                hint=f"set `option:` to the key that holds their text; they have: {', '.join(map(str, option))}",
            )
        return cell_text(option[self._option])


def render_questions(config: MultipleChoiceConfig, rows: Sequence[Row]) -> list[tuple[str, tuple[str, ...]] | None]:
    """The questions and options of rows that need no answer, for prediction; None where they cannot be asked.

    Raises:
        DataError: a column is missing.
    """
    reader = config.question_reader(columns_of(rows))
    found = [reader.of(row) for row in rows]
    return [(text, options) if text and usable_options(options) else None for text, options in found]


@dataclass(frozen=True)
class ChoiceTask(Task):
    """A multiple-choice task ready to use. `labels` are the letters that answers may have."""

    config: MultipleChoiceConfig
    train: Sequence[ChoiceItem]
    dev: Sequence[ChoiceItem]
    test: Sequence[ChoiceItem]
