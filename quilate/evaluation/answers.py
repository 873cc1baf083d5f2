"""Answers in words, scored as SQuAD's own scorer does (Rajpurkar et al. 2016, evaluate-v1.1.py).

The normalization is the scorer's, with the articles of the language: MLQA's for Spanish (Lewis et al. 2020).
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

from quilate.tasks.task import AnswerMetric

EXACT_MATCH, TOKEN_F1 = range(2)
ANSWER_SCORES: dict[AnswerMetric, int] = {"exact_match": EXACT_MATCH, "token_f1": TOKEN_F1}

ARTICLES = {
    "en": r"\b(a|an|the)\b",
    "es": r"\b(un|una|unos|unas|el|la|los|las)\b",
}


def normalized(answer: str, language: str) -> str:
    """Lower case, without punctuation, articles and spare white space."""
    text = "".join(c for c in answer.lower() if c not in string.punctuation and unicodedata.category(c)[0] != "P")
    text = re.sub(ARTICLES[language], " ", text) if language in ARTICLES else text
    return " ".join(text.split())


def score_answer(answer: str, right: Sequence[str], language: str) -> tuple[float, float]:
    """Exact match and token F1 with the right answer that fits best."""
    said = normalized(answer, language)
    wanted = [normalized(text, language) for text in right]
    return float(said in wanted), max(_token_f1(said.split(), text.split()) for text in wanted)


def _token_f1(said: list[str], wanted: list[str]) -> float:
    if not said or not wanted:  # as SQuAD 2's scorer has it
        return float(said == wanted)
    same = sum((Counter(said) & Counter(wanted)).values())
    return 2 * same / (len(said) + len(wanted))
