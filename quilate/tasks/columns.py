"""Columns of a table: which must be there, which rows are wanted, and how a row becomes a text."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import model_validator

from quilate.config import Config
from quilate.errors import DataError
from quilate.tasks.labels import cell_text
from quilate.tokenization.sandbox import SandboxedTemplate, is_template

Row = Mapping[str, Any]
Scalar = str | int | float | bool


class Condition(Config):
    """What a column's value must be for its row to be used. Every key given must hold."""

    min: float | int | None = None
    """Smallest number allowed."""
    max: float | int | None = None
    """Largest number allowed."""
    is_in: list[Scalar] | None = None
    """Values allowed; `column: value` and `column: [a, b]` are short for this."""
    not_in: list[Scalar] | None = None
    """Values not allowed; the empty text stands for a missing value."""

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if isinstance(value, list):
            return {"is_in": value}
        return {"is_in": [value]} if isinstance(value, Scalar) else value

    def holds(self, value: Any, *, column: str, row: int) -> bool:
        """Whether a cell satisfies the condition. A missing cell is below every `min` and above every `max`.

        Raises:
            DataError: `min` or `max` is asked of something that is not a number.
        """
        text = cell_text(value)
        if self.is_in is not None and text not in map(cell_text, self.is_in):
            return False
        if self.not_in is not None and text in map(cell_text, self.not_in):
            return False
        if self.min is None and self.max is None:
            return True
        if not text:
            return False
        try:
            number = float(text)
        except ValueError as error:
            raise DataError(
                f"where: {column}: row {row} does not hold a number, so min and max cannot be applied",
                hint="filter with is_in or not_in, or correct the column",
            ) from error
        return (self.min is None or number >= self.min) and (self.max is None or number <= self.max)


def columns_of(rows: Sequence[Row]) -> list[str]:
    """Every key of any row, in order of first appearance."""
    return list(dict.fromkeys(key for row in rows for key in row))


def require_column(name: str, columns: Sequence[str], *, role: str) -> None:
    """Check that a column exists.

    Raises:
        DataError: it does not; the message names the nearest.
    """
    if name not in columns:
        nearest = difflib.get_close_matches(name, columns, n=1, cutoff=0.5)
        raise DataError(
            f"{role}: the table has no column '{name}'" + (f": did you mean '{nearest[0]}'?" if nearest else ""),
            hint=f"its columns are: {', '.join(columns)}",
        )


def filter_rows(rows: Sequence[Row], where: Mapping[str, Condition]) -> tuple[list[tuple[int, Row]], Counter[str]]:
    """Keep the rows for which every condition holds.

    Returns:
        The kept rows with their numbers (from 1), and how many rows each column's condition dropped first.
    """
    columns = columns_of(rows)
    for column in where:
        require_column(column, columns, role="where")
    kept: list[tuple[int, Row]] = []
    dropped: Counter[str] = Counter()
    for number, row in enumerate(rows, start=1):
        for column, condition in where.items():
            if not condition.holds(row.get(column), column=column, row=number):
                dropped[column] += 1
                break
        else:
            kept.append((number, row))
    return kept, dropped


class TextColumn:
    """How a row becomes a text: a column's value, or a template over the row's columns (and `row` for odd names).

    Raises:
        ConfigError: the template is not usable.
        DataError: the column, or one that the template uses, is in no row.
    """

    def __init__(self, text: str, columns: Sequence[str]) -> None:
        self._column = text
        self._columns = list(columns)
        self._template: SandboxedTemplate | None = None
        if is_template(text):
            self._template = SandboxedTemplate(text, name="text")
            for used in sorted(self._template.variables - {"row"}):
                require_column(used, columns, role="text")
        else:
            require_column(text, columns, role="text")

    def of(self, row: Row) -> str:
        """The text, without space around it; "" when there is none."""
        if self._template is None:
            return cell_text(row.get(self._column))
        cells = {column: row.get(column) for column in self._columns}
        return self._template.render(**{**cells, "row": cells}).strip()
