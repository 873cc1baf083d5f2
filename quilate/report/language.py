"""Every string of the report in English and Spanish. Sentences that follow from numbers are in evaluation.wording."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quilate.errors import UsageError
from quilate.evaluation import wording
from quilate.evaluation.schema import Notice
from quilate.report.catalogue import STRINGS


class Language:
    """Looks up and formats; `t` in the templates."""

    def __init__(self, lang: str) -> None:
        if lang not in STRINGS:
            raise UsageError(f"there is no report in '{lang}'", hint=f"choose one of: {', '.join(STRINGS)}")
        self.lang = lang

    def __call__(self, key: str, **values: Any) -> str:
        """The string of `key`, its `{x:meaning}` filled (see evaluation.wording)."""
        return wording.fill(STRINGS[self.lang][key], values, self.lang)

    def known(self, prefix: str, name: str) -> str:
        """The string of `prefix.name`; a name that has none is shown as it is."""
        return STRINGS[self.lang].get(f"{prefix}.{name}", name.replace("_", " "))

    def say(self, notice: Notice) -> str:
        return wording.say(notice, self.lang)

    def percent(self, share: float) -> str:
        return wording.percent(share, self.lang)

    def points(self, difference: float) -> str:
        """A signed difference in points, without the unit."""
        sign = "+" if round(100 * difference, 1) > 0 else ""
        return sign + wording.number(100 * difference, 1, self.lang)

    def duration(self, seconds: float) -> str:
        return wording.duration(seconds, self.lang)

    def count(self, value: float) -> str:
        return wording.number(value, 0, self.lang)

    def decimal(self, value: float, decimals: int = 3) -> str:
        return wording.number(value, decimals, self.lang)

    def names(self, items: list[str]) -> str:
        return wording.names(items, self.lang)

    def runs(self, seeds: int) -> str:
        return wording.runs(seeds, self.lang)

    def p_value(self, p: float) -> str:
        """Two significant digits, never 0."""
        if p < 0.001:
            return f"< {wording.number(0.001, 3, self.lang)}"
        return wording.number(p, 2 if p >= 0.095 else 3, self.lang)

    def big(self, value: float, unit: str = "") -> str:
        """1234567 -> 1.2 M; powers of 1000."""
        for factor, suffix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
            if value >= factor:
                return f"{wording.number(value / factor, 1, self.lang)}\N{NO-BREAK SPACE}{suffix}{unit}"
        return f"{wording.number(value, 0, self.lang)}{chr(0xA0) + unit if unit else ''}"


def missing_keys(catalogues: Mapping[str, Mapping[str, str]] = STRINGS) -> set[str]:
    """Keys that some language lacks."""
    every = {key for catalogue in catalogues.values() for key in catalogue}
    return {f"{lang}: {key}" for lang, catalogue in catalogues.items() for key in every - catalogue.keys()}
