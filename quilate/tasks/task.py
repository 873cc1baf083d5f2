"""What tasks of every kind have in common: rows become items in three splits, with everything that was dropped counted.

A kind of task is a config (which columns; how an item is read from a row) and a `Task` subclass; `quilate.tasks.kinds`
lists them. `Task.report` has these keys:

    read                rows given, all files
    filtered            rows dropped by `where`; filtered_by: {column: rows}
    empty_text          rows dropped for an empty text
    missing_label       rows dropped for a missing label (or right answer)
    unusable_options    rows dropped for fewer than two options, an empty one, or two that are equal
    unusable_answer     rows dropped because their right answer is none of their options
    missing_group       rows without a value in the group column, each made its own group
    unseen_label        {"dev": rows, "test": rows} dropped because train lacks their label (unseen_labels: drop)
    duplicates_tied     rows whose text another row also has, tied into one group (only when quilate splits)
    overlaps_tied       distinct texts tied by n-gram overlap (only when quilate splits)
    conflicting_labels  distinct texts that carry more than one answer
    dropped_leaks       {"train": rows, "dev": rows} removed by drop_leaks
    unused              usable rows beyond the sizes asked for
    splits              {split: {"items", "groups", "duplicates", "labels": {label: items or spans}}}
    never_tested        labels that have training items and no test item
    leaks               {pair: {"items", "exact", "overlap", "group", "any_ngram", "of"}} for the pairs train-test,
                        train-dev, dev-test; counts of the later split's items, `of` how many it has
    allowed_leak        true when leaks were found and `allow_leak` let the task go on
    warnings            what to warn of, as {"code", "values"}: quilate.evaluation.wording has the sentences
    sources             the notes of the tables, by split
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from quilate.config import Config
from quilate.errors import DataError
from quilate.files import atomic_folder, write_json, write_jsonl
from quilate.tasks.columns import Condition, Row
from quilate.tasks.labels import Item
from quilate.tasks.splits import SplitConfig

SPLITS = ("train", "dev", "test")

LabelMetric = Literal["accuracy", "macro_f1"]
LabelSetMetric = Literal["micro_f1", "macro_f1"]
SpanMetric = Literal["span_f1", "span_f1_partial"]
AnswerMetric = Literal["exact_match", "token_f1"]
Metric = LabelMetric | LabelSetMetric | SpanMetric | AnswerMetric

# (row, id, group) -> the item, or the name of the count under which the row is dropped.
ReadItem = Callable[[Row, str, str], Item | str]


class Counts:
    """What happened to the rows on the way."""

    NAMES = (
        "read", "filtered", "empty_text", "missing_label", "unusable_options", "unusable_answer", "missing_group",
        "duplicates_tied", "overlaps_tied",
    )  # fmt: skip

    def __init__(self) -> None:
        self.simple: Counter[str] = Counter()
        self.filtered_by: Counter[str] = Counter()
        self.unseen_label: dict[str, int] = {"dev": 0, "test": 0}
        self.dropped_leaks: dict[str, int] = {"train": 0, "dev": 0}
        self.label_values: set[str] = set()
        self.never_tested: list[str] = []
        self.warnings: list[dict[str, Any]] = []

    def warn(self, code: str, **values: Any) -> None:
        self.warnings.append({"code": code, "values": values})

    def note_never_tested(self, parts: Mapping[str, Sequence[Item]]) -> None:
        """Record and warn of labels that training items have and no test item has."""
        trained, tested = ({label for item in parts[name] for label in item.labels} for name in ("train", "test"))
        self.never_tested = sorted(trained - tested)
        if self.never_tested:
            self.warn("never_tested", count=len(self.never_tested), names=self.never_tested)

    def labels_of_any(self, parts: Mapping[str, Sequence[Item]], *, unseen: str, column: str) -> list[str]:
        """The labels of any item, sorted, where an item may have several; warns of those that train lacks.

        Args:
            unseen: the warning's code.
            column: where the labels come from, for the message.

        Raises:
            DataError: no training item has a label.
        """
        found = {name: [label for item in items for label in item.labels] for name, items in parts.items()}
        known = set(found["train"])
        if not known:
            raise DataError(f"no training item has anything under '{column}'", hint="check the name of that column")
        for name in ("dev", "test"):
            missing = [label for label in found[name] if label not in known]
            if missing:
                self.warn(unseen, split=name, count=len(missing), names=sorted(set(missing)))
        self.note_never_tested(parts)
        return sorted({label for labels in found.values() for label in labels})

    def total_dropped_later(self) -> int:
        return sum(self.unseen_label.values()) + sum(self.dropped_leaks.values())

    def report(self) -> dict[str, Any]:
        return {
            **{name: self.simple[name] for name in self.NAMES},
            "filtered_by": dict(sorted(self.filtered_by.items())),
            "unseen_label": self.unseen_label,
            "dropped_leaks": self.dropped_leaks,
        }


class CommonTaskConfig(Config):
    """What every kind of task is told, and what `prepare` asks of a kind."""

    name: str
    """Name of the task in reports."""
    kind: str
    """Kind of task."""
    text: str
    """Column that holds the text, or a Jinja template over the columns, e.g. `{{ title }}: {{ body }}`."""
    group: str | None = None
    """Column whose equal values must stay in one split: the patient, the document, the three-character code."""
    where: dict[str, Condition] = Field(default_factory=dict)
    """Conditions on columns; rows that fail one are dropped and counted."""
    metric: Metric
    """Score by which arms are compared."""
    language: str = "es"
    """Language of the texts, as an ISO 639-1 code; chooses the default template."""
    split: SplitConfig = SplitConfig()
    """Sizes of the splits; with given files, how many of their rows to use."""
    drop_leaks: bool = False
    """With given files: remove from train (and from dev) what also occurs in the test split, instead of stopping."""
    allow_leak: bool = False
    """Go on although splits share texts or groups; every report then says so."""

    @model_validator(mode="after")
    def _one_way_with_leaks(self) -> CommonTaskConfig:
        if self.drop_leaks and self.allow_leak:
            raise ValueError("drop_leaks and allow_leak contradict each other: choose one")
        return self

    @abstractmethod
    def reader(self, rows: Sequence[Row], counts: Counts) -> ReadItem:
        """How the rows of one table become items.

        Raises:
            DataError: a column is missing.
        """

    def check(self) -> None:
        """Refuse templates that cannot be rendered.

        Raises:
            ConfigError: a template is not valid Jinja, uses unknown variables, or leaves the sandbox.
        """

    def usable(self, pools: dict[str, list[Item]], counts: Counts) -> dict[str, list[Item]]:
        """Given splits without the items that the task cannot have; all of them, unless a kind says otherwise."""
        return pools

    @abstractmethod
    def labels_of(self, parts: Mapping[str, Sequence[Item]], counts: Counts) -> list[str]:
        """The task's labels, sorted; warns in `counts` of what the splits lack.

        Raises:
            DataError: dev or test cannot be solved from train.
        """


@dataclass(frozen=True)
class Task:
    """A task ready to use; `report` as this module's head says."""

    config: CommonTaskConfig
    labels: list[str]
    train: Sequence[Item]
    dev: Sequence[Item]
    test: Sequence[Item]
    report: dict[str, Any]

    @property
    def name(self) -> str:
        return self.config.name

    def save(self, folder: Path) -> None:
        """Write `task.json` and one JSONL file a split into a private folder, atomically; equal tasks, equal bytes."""
        with atomic_folder(folder, fault="task") as temporary:
            write_json(
                temporary / "task.json",
                {"config": self.config.as_json(), "labels": self.labels, "report": self.report},
            )
            for name in SPLITS:
                write_jsonl(temporary / f"{name}.jsonl", [asdict(item) for item in getattr(self, name)])
