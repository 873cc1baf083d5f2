"""Rules on addresses, RefinedWeb's first step (Penedo et al. 2023, arXiv:2306.01116, section 3.1 and appendix G.1)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field

from quilate.config import Config
from quilate.errors import explained_os_errors

# A start, in Spanish and English, and no more than that: RefinedWeb blocked 4.6 million domains by a list of others.
BANNED_WORDS = ["porn", "porno", "xxx", "milf", "hentai"]
SOFT_BANNED_WORDS = ["sex", "sexo", "escort", "escorts", "casino", "casinos", "apuestas", "viagra", "cialis", "nude"]

_WORD = re.compile(r"[^a-z0-9]+")


class UrlConfig(Config):
    """Which addresses are not wanted. Documents without an address pass."""

    blocked_domains: list[str] = Field(default_factory=list)
    """Domains that are left out with all below them: those known to be bad, and curated ones (an encyclopaedia, say)
    that you take from elsewhere."""
    blocked_domains_file: str | None = None
    """A text file with more of them, one a line, relative to the recipe's folder."""
    banned_words: list[str] = Field(default=BANNED_WORDS)
    """Words of which an address may have none."""
    soft_banned_words: list[str] = Field(default=SOFT_BANNED_WORDS)
    """Words of which an address may have fewer than `soft_words`."""
    soft_words: int = Field(default=2, ge=1)
    """How many different ones are too many."""
    unique: bool = True
    """Keep the first document of every address only."""


class UrlRules:
    """The rules, ready to judge."""

    def __init__(self, config: UrlConfig, base: Path) -> None:
        listed: Iterable[str] = config.blocked_domains
        if config.blocked_domains_file is not None:
            path = base / config.blocked_domains_file
            with explained_os_errors(path, "read the blocked domains"):
                text = path.read_text(encoding="utf-8")
            listed = [*listed, *(line for line in text.split() if not line.startswith("#"))]
        self._domains = frozenset(domain.lower().strip(".") for domain in listed)
        self._hard, self._soft = frozenset(config.banned_words), frozenset(config.soft_banned_words)
        self._soft_words = config.soft_words

    def broken(self, url: str | None) -> str | None:
        """The rule that an address breaks first, or None."""
        if not url:
            return None
        try:
            host = (urlsplit(url if "//" in url else f"//{url}").hostname or "").strip(".")
        except ValueError:
            return "not an address"
        labels = host.split(".")
        if any(".".join(labels[i:]) in self._domains for i in range(len(labels))):
            return "blocked domain"
        words = set(_WORD.split(url.lower()))
        if words & self._hard:
            return "banned word"
        return "several suspicious words" if len(words & self._soft) >= self._soft_words else None
