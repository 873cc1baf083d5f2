"""Lines that are not text: RefinedWeb's line-wise corrections (Penedo et al. 2023, arXiv:2306.01116, appendix G.2)."""

from __future__ import annotations

import re
from collections import Counter

from pydantic import Field

from quilate.config import Config

# A number begins with a figure: were it a comma, a line of many commas could be cut in as many ways, and take hours.
_COUNTER = re.compile(
    r"\W*\d[\d.,]*\s*(k|mil|m)?\s*(likes?|me gusta|shares?|compartid[oa]s?|views?|visitas|visualizaciones|comments?|"
    r"comentarios|votos?|retweets?|seguidores|followers|estrellas)\W*",
    re.IGNORECASE,
)
_NUMERIC = re.compile(r"[\d\W_]+")
# Short lines are also removed if they begin, end or anywhere have one of these.
_BEGINS = re.compile(
    r"\W*(sign[- ]?in|log ?in|subscribe|iniciar sesión|inicia sesión|regístrate|suscríbete|compartir en|síguenos|"
    r"aceptar (las )?cookies|ir al contenido|saltar al contenido|menú principal)\b",
    re.IGNORECASE,
)
_ENDS = re.compile(
    r"\b(read more|see more|leer más|ver más|seguir leyendo|más información)\s*(\.\.\.|…|»|>)*$", re.IGNORECASE
)
_HAS = re.compile(
    r"\b(items in (the )?cart|all rights reserved|todos los derechos reservados|política de (cookies|privacidad)|"
    r"aviso legal|(añadir|artículos en) (al|el) carrito|utiliza(mos)? cookies)\b",
    re.IGNORECASE,
)


class LineConfig(Config):
    """Which lines are taken out, and how many may be."""

    max_uppercase: float = Field(default=0.6, ge=0, le=1)
    """Largest share of capitals among the letters of a line ("mainly", says the paper: a guess)."""
    short_line_words: int = Field(default=10, ge=0)
    """Lines of up to so many words are also taken out if they hold a phrase of menus or notices."""
    one_word_lines: bool = True
    """Take out lines of a single word that no full stop ends."""
    max_removed: float = Field(default=0.05, ge=0, le=1)
    """A document that loses a larger share of its words is dropped."""


def line_rule(line: str, config: LineConfig) -> str | None:
    """The rule by which a line is taken out, or None. Blank lines stay."""
    stripped = line.strip()
    if not stripped:
        return None
    if _COUNTER.fullmatch(stripped):
        return "counter"
    if _NUMERIC.fullmatch(stripped):
        return "no letters"
    words = stripped.split()
    if len(words) == 1:
        return "one word" if config.one_word_lines and not stripped.endswith((".", "!", "?", "…")) else None
    letters = [character for character in stripped if character.isalpha()]
    if sum(map(str.isupper, letters)) > config.max_uppercase * len(letters):
        return "capitals"
    short = len(words) <= config.short_line_words
    if short and (_BEGINS.match(stripped) or _ENDS.search(stripped) or _HAS.search(stripped)):
        return "menu or notice"
    return None


def correct_lines(text: str, config: LineConfig) -> tuple[str | None, Counter[str]]:
    """The text without such lines, or None if too much of it went; and the lines taken out by rule."""
    kept: list[str] = []
    removed: Counter[str] = Counter()
    lost = 0
    for line in text.split("\n"):
        rule = line_rule(line, config)
        if rule is None:
            kept.append(line)
        else:
            removed[rule] += 1
            lost += len(line.split())
    if lost > config.max_removed * len(text.split()):
        return None, removed
    return (re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip() if removed else text), removed
