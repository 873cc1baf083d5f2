"""Labels, the short texts that stand for them in prompts, and the labelled item."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from quilate.errors import ConfigError


@dataclass(frozen=True)
class Item:
    """One labelled text. Items of one `group` never straddle splits, and are resampled together."""

    id: str
    text: str
    label: str
    group: str

    @property
    def content(self) -> str:
        """All of what a model reads of it: what must not stand in two splits."""
        return self.text

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels it is an example of."""
        return (self.label,)

    @property
    def answers(self) -> tuple[str, ...]:
        """What is right: items of equal content and other answers contradict each other."""
        return self.labels

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Item:
        """From what `dataclasses.asdict` gave."""
        return cls(**row)


def cell_text(value: Any) -> str:
    """A cell as text: "" for a missing one (None, NaN, []), no decimals on whole numbers, no space around."""
    if value is None or value == [] or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():  # integers with gaps arrive as floats from Parquet
        return str(int(value))
    return str(value).strip()


def check_verbalizers(mapping: Mapping[str, str]) -> None:
    """Refuse texts that cannot stand for a label.

    Raises:
        ValueError: empty, with spaces around or a line break, or two labels share one.
    """
    for label, verbalizer in mapping.items():
        if not verbalizer.strip():
            raise ValueError(f"the verbalizer of label '{label}' is empty: a model cannot be asked to write nothing")
        if verbalizer != verbalizer.strip() or "\n" in verbalizer:
            raise ValueError(f"the verbalizer of label '{label}' must be one line without spaces around it")
    shared = [text for text, count in Counter(text.casefold() for text in mapping.values()).items() if count > 1]
    if shared:
        labels = [label for label, text in mapping.items() if text.casefold() == shared[0]]
        raise ValueError(
            f"labels {_quoted(labels)} share the verbalizer '{mapping[labels[0]]}': their answers are the same"
        )


def verbalizers_of(labels: Iterable[str], mapping: Mapping[str, str], *, known: Collection[str]) -> list[str]:
    """The verbalizer of each label, in order; a label absent from `mapping` stands for itself.

    Args:
        known: every label value seen in the data, kept or not.

    Raises:
        ConfigError: `mapping` names a label that no row has, or the result is unusable (see `check_verbalizers`).
    """
    for label in mapping:
        if label not in known:
            nearest = difflib.get_close_matches(label, known, n=1, cutoff=0.5)
            raise ConfigError(
                f"labels: no row has the label '{label}'" + (f": did you mean '{nearest[0]}'?" if nearest else ""),
                hint=f"the data's labels are: {_quoted(sorted(known)[:30])}",
            )
    full = {label: mapping.get(label, label) for label in labels}
    try:
        check_verbalizers(full)
    except ValueError as error:
        raise ConfigError(f"labels: {error}", hint="give each label its own short text under `labels:`") from error
    return list(full.values())


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
