"""The rules that look at one document alone, in RefinedWeb's order (Penedo et al. 2023, arXiv:2306.01116, figure 2)."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

from quilate.curation import gopher
from quilate.curation.config import CurateConfig
from quilate.curation.documents import Document, Raw
from quilate.curation.extraction import Extractor
from quilate.curation.languages import Identifier
from quilate.curation.linewise import correct_lines
from quilate.curation.personal import PersonalDataConfig, Redactor
from quilate.curation.streams import Broken
from quilate.curation.tally import EXAMPLES, Tally
from quilate.curation.urls import UrlRules

EXAMPLE_CHARACTERS = 400

# Takes a text and the tally; gives the text, corrected perhaps, and the rule that drops it, or None.
Judge = Callable[[str, Tally], tuple[str, str | None]]


class DocumentRules:
    """Addresses, extraction, language, repetition, quality, lines; steps that the config sets to null are left out."""

    def __init__(self, config: CurateConfig, base: Path) -> None:
        self._urls = UrlRules(config.urls, base) if config.urls is not None else None
        self._config = config
        self._stop_words = config.stop_words()
        self._identifier = Identifier(config.language) if config.language is not None else None
        judges: dict[str, Judge] = {
            "language": self._language, "repetition": self._repetition, "quality": self._quality, "lines": self._lines,
        }  # fmt: skip
        self._judges = {name: judge for name, judge in judges.items() if getattr(config, name) is not None}
        self._example_redactor = Redactor(config.personal_data or PersonalDataConfig())

    def pass_through(self, raw: Raw, source: str, extractor: Extractor, tally: Tally) -> Document | None:
        """The document if it passes every rule; counts what happens to it."""
        size = len(raw.content.encode() if isinstance(raw.content, str) else raw.content)
        tally.source(source).enter(size)
        if self._urls is not None:
            rule = self._urls.broken(raw.url)
            if not count(tally, "urls", size, rule, size):
                return None
        try:
            text = normalized(extractor.text(raw))
        except Broken as broken:
            tally.refused[broken.reason] += 1
            count(tally, "extraction", size, broken.reason, size)
            return None
        language: str | None = None
        count(tally, "extraction", size, None, len(text.encode()))
        for name, judge in self._judges.items():
            before, size = text, len(text.encode())
            text, rule = judge(text, tally)
            if not count(tally, name, size, rule, len(text.encode())):
                self.keep_example(tally, f"{name}: {rule}", before)
                return None
            if text != before:
                tally.steps[name].changed["documents corrected"] += 1
        return Document(raw.id, text, source, raw.url, language)

    def keep_example(self, tally: Tally, rule: str, text: str) -> None:
        """Keep the beginning of a dropped text, without the personal data that the rules find, for `--with-text`."""
        kept = tally.examples.setdefault(rule, [])
        if len(kept) < EXAMPLES:
            kept.append(self._example_redactor.redact(text[: 2 * EXAMPLE_CHARACTERS]).text[:EXAMPLE_CHARACTERS])

    def _language(self, text: str, tally: Tally) -> tuple[str, str | None]:
        assert self._identifier is not None
        found, wanted = self._identifier.judge(text)
        tally.languages[found] += 1
        if wanted:
            return text, None
        assert self._config.language is not None
        return text, "not sure" if found in self._config.language.accept else f"language {found}"

    def _repetition(self, text: str, _: Tally) -> tuple[str, str | None]:
        assert self._config.repetition is not None
        return text, gopher.repetition(text, self._config.repetition)

    def _quality(self, text: str, _: Tally) -> tuple[str, str | None]:
        assert self._config.quality is not None
        return text, gopher.quality(text, self._config.quality, self._stop_words)

    def _lines(self, text: str, tally: Tally) -> tuple[str, str | None]:
        assert self._config.lines is not None
        corrected, removed = correct_lines(text, self._config.lines)
        tally.steps["lines"].changed.update({f"lines removed: {rule}": n for rule, n in removed.items()})
        if corrected is None:
            return text, "too many lines removed"
        return corrected, None if corrected else "nothing left"


def count(tally: Tally, step: str, size: int, rule: str | None, left: int) -> bool:
    """Count a document at a step, in with `size` bytes and out with `left`; whether it goes on."""
    numbers = tally.steps[step]
    numbers.enter(size)
    if rule is not None:
        numbers.drop(rule, size)
        return False
    numbers.leave(left)
    return True


def normalized(text: str) -> str:
    """Composed characters, one kind of line end, and no NUL."""
    plain = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    return unicodedata.normalize("NFC", plain).strip()
