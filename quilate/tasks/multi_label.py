"""Multi-label classification: every text has any number of labels of a fixed set, none included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from quilate.errors import DataError
from quilate.tasks.columns import Row, TextColumn, columns_of, require_column
from quilate.tasks.labels import Item, cell_text
from quilate.tasks.task import CommonTaskConfig, Counts, LabelSetMetric, ReadItem, Task


@dataclass(frozen=True)
class LabelledText(Item):
    """A text with its labels, sorted, none twice; `label` is empty."""

    label_set: tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        return self.label_set

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> LabelledText:
        return cls(**{**row, "label_set": tuple(row["label_set"])})


class MultiLabelConfig(CommonTaskConfig):
    """A multi-label task: which columns hold the text and its labels. A text without labels is an item like any."""

    kind: Literal["multi_label"]
    """Any number of labels a text."""
    label: str
    """Column that holds a list of labels, or a text that lists them (see `separator`); empty or missing for none."""
    separator: str = "|"
    """What stands between two labels where the column holds text."""
    metric: LabelSetMetric = "micro_f1"
    """Score by which arms are compared: `micro_f1` over all labels of all test texts, or `macro_f1`, the mean of the
    labels' own F1. Each arm's threshold is chosen on the development texts: one for all labels for `micro_f1`; for
    `macro_f1` one a label, where there are enough texts that have it."""

    def reader(self, rows: Sequence[Row], counts: Counts) -> ReadItem:
        columns = columns_of(rows)
        text_of = TextColumn(self.text, columns)
        require_column(self.label, columns, role="label")

        def read(row: Row, identity: str, group: str) -> Item | str:
            text = text_of.of(row)
            return LabelledText(identity, text, "", group, self._labels(row)) if text else "empty_text"

        return read

    def _labels(self, row: Row) -> tuple[str, ...]:
        value = row.get(self.label)
        if isinstance(value, Mapping):
            raise DataError(
                f"label: the column '{self.label}' holds objects, not lists of labels",
                hint="give a list of texts, or a text with a separator between labels",
            )
        parts = value if isinstance(value, list) else cell_text(value).split(self.separator)
        return tuple(sorted({cell_text(part) for part in parts} - {""}))

    def labels_of(self, parts: Mapping[str, Sequence[Item]], counts: Counts) -> list[str]:
        """Every label that any text has: what train lacks is missed by every arm, and warned of."""
        return counts.labels_of_any(parts, unseen="unseen_text_labels", column=self.label)


@dataclass(frozen=True)
class MultiLabelTask(Task):
    """A multi-label task ready to use. `labels` are those of any split; arms learn `trained_labels`."""

    config: MultiLabelConfig
    train: Sequence[LabelledText]
    dev: Sequence[LabelledText]
    test: Sequence[LabelledText]

    @property
    def trained_labels(self) -> list[str]:
        return sorted({label for item in self.train for label in item.labels})


def indicators(items: Sequence[Item], labels: Sequence[str]) -> NDArray[np.bool_]:
    """[items, labels] which labels each item has, of those given."""
    return np.array([[label in item.labels for label in labels] for item in items], dtype=bool).reshape(
        len(items), len(labels)
    )
