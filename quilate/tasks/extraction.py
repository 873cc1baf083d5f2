"""Extraction: every document has labelled spans, given by character offsets into its text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import model_validator

from quilate.errors import DataError
from quilate.tasks.classification import check_template
from quilate.tasks.columns import Row, columns_of, require_column
from quilate.tasks.labels import Item, cell_text
from quilate.tasks.task import CommonTaskConfig, Counts, ReadItem, SpanMetric, Task
from quilate.tasks.templates import PromptTemplate
from quilate.tokenization.sandbox import is_template

DEFAULT_TEMPLATES = {"es": "Texto: {{ text }}\nEntidades:", "en": "Text: {{ text }}\nEntities:"}


@dataclass(frozen=True, order=True)
class Span:
    """`text[start:end]` is an entity of kind `label`."""

    start: int
    end: int
    label: str


@dataclass(frozen=True)
class Document(Item):
    """A text with its spans, in order, none twice; `label` is empty."""

    spans: tuple[Span, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(span.label for span in self.spans)

    @property
    def answers(self) -> tuple[str, ...]:
        return tuple(map(str, self.spans))

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Document:
        return cls(**{**row, "spans": tuple(Span(**span) for span in row["spans"])})


def without_overlaps(spans: Iterable[Span]) -> tuple[Span, ...]:
    """The spans that a tagger can learn and say: of those that overlap, the longest; of equally long ones, the first.

    One tag a token cannot express a span inside another.
    """
    kept: list[Span] = []
    for span in sorted(spans, key=lambda s: (s.start - s.end, s)):
        if all(span.end <= other.start or other.end <= span.start for other in kept):
            kept.append(span)
    return tuple(sorted(kept))


class ExtractionConfig(CommonTaskConfig):
    """An extraction task: which columns hold a document and its spans. `text` names a column: offsets count its
    characters, so no template can stand between. Without `group`, a document is its own group."""

    kind: Literal["extraction"]
    """Every document has labelled spans."""
    spans: str
    """Column that holds a list of objects, one a span; a missing list means that the document has none."""
    start: str = "start"
    """Key of a span that holds its first character's place, from 0."""
    end: str = "end"
    """Key that holds the place after its last character."""
    label: str = "label"
    """Key that holds its label."""
    template: str = ""
    """How a document is shown to a language model that writes records (`answer: records`), a Jinja template with
    `{{ text }}` and optionally `{{ labels }}`. Default: `Texto: ... Entidades:` in the task's language."""
    instruction: str = ""
    """What such a model reads once, before the demonstrations."""
    metric: SpanMetric = "span_f1"
    """Score by which arms are compared, over all spans of all test documents. `span_f1` counts a span as found if
    start, end and label are right; `span_f1_partial` counts one that overlaps a span of the same label as half."""

    @model_validator(mode="after")
    def _text_is_a_column(self) -> ExtractionConfig:
        if is_template(self.text):
            raise ValueError("text: name a column: spans are given by offsets, which a template would shift")
        if self.template:
            check_template(self.template)
        elif self.language not in DEFAULT_TEMPLATES:
            raise ValueError(
                f"there is no default template for language '{self.language}' (only {', '.join(DEFAULT_TEMPLATES)}): "
                "give one under `template:`"
            )
        return self

    def prompt_template(self, labels: Sequence[str] = ()) -> PromptTemplate:
        """The template as configured or by language.

        Raises:
            ConfigError: it is not valid Jinja, uses unknown variables, or leaves the sandbox.
        """
        template = self.template or DEFAULT_TEMPLATES[self.language]
        return PromptTemplate(template, instruction=self.instruction, verbalizers=labels)

    def check(self) -> None:
        self.prompt_template()

    def reader(self, rows: Sequence[Row], counts: Counts) -> ReadItem:
        columns = columns_of(rows)
        require_column(self.text, columns, role="text")
        require_column(self.spans, columns, role="spans")

        def read(row: Row, identity: str, group: str) -> Item | str:
            text = raw_text(self, row)
            if not text.strip():
                return "empty_text"
            found = row.get(self.spans) or []
            if not isinstance(found, list):
                raise DataError(
                    f"spans: the column '{self.spans}' holds {type(found).__name__}, not a list of objects",
                    hint="give the documents as jsonl or parquet",
                )
            spans = {self._span(span, text, identity) for span in found}
            return Document(identity, text, "", group, tuple(sorted(spans)))

        return read

    def _span(self, value: Any, text: str, identity: str) -> Span:
        """A span, checked against its text.

        Raises:
            DataError: a key is missing, the offsets lie outside of the text, or what the span says its text is does not
                stand there.
        """
        try:
            start, end, label = value[self.start], value[self.end], cell_text(value[self.label])
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{identity}: a span is not an object with the keys {self.start}, {self.end} and {self.label}",
                hint="name the keys under start:, end: and label:",
            ) from error
        if type(start) is not int or type(end) is not int or not 0 <= start < end <= len(text) or not label:
            raise DataError(
                f"{identity}: a span from {start} to {end} does not fit its text of {len(text)} characters, or has no "
                "label",
                hint="offsets count characters (not bytes) of the text column as it stands, from 0; `end` is exclusive",
            )
        said = value.get("text")
        if isinstance(said, str) and said.split() != text[start:end].split():
            raise DataError(
                f"{identity}: the text of the span from {start} to {end} is not what stands there",
                hint="were the offsets counted in bytes, or on a text with other line ends?",
            )
        return Span(start, end, label)

    def labels_of(self, parts: Mapping[str, Sequence[Item]], counts: Counts) -> list[str]:
        """Every label that any document has: what train lacks is missed by every arm, and warned of."""
        labels = counts.labels_of_any(parts, unseen="unseen_span_labels", column=self.spans)
        for name in ("train", "test"):
            spans = [document.spans for document in parts[name] if isinstance(document, Document)]
            lost = sum(len(found) - len(without_overlaps(found)) for found in spans)
            if lost:
                counts.warn("overlapping_spans", split=name, count=lost, of=sum(map(len, spans)))
        return labels


def raw_text(config: ExtractionConfig, row: Row) -> str:
    """A row's text as it stands, white space and all; "" for a missing one."""
    value = row.get(config.text)
    return value if isinstance(value, str) else ""


@dataclass(frozen=True)
class ExtractionTask(Task):
    """An extraction task ready to use. `labels` are those of any split; a tagger learns `trained_labels`."""

    config: ExtractionConfig
    train: Sequence[Document]
    dev: Sequence[Document]
    test: Sequence[Document]

    @property
    def trained_labels(self) -> list[str]:
        return sorted({label for document in self.train for label in document.labels})
